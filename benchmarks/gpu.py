"""Full-size random SDXL on a CUDA device; `make gpu` runs all parts.

`python -m benchmarks.gpu [--part NAME] [--again]` builds and downloads nothing. Each part runs in
a separate process, and its result is written at once, so that a run can be continued: parts whose
results are there are not measured again. The results are in benchmarks/results/gpu-DEVICE.json.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks import peer
from benchmarks.checkpoints import write_random_checkpoint
from benchmarks.harness import interleave, print_line
from benchmarks.memory import LIMITS_GB, compute_psnr, measure_device
from benchmarks.painting import Job, make_diffusers_run, make_overpaint_run
from overpaint.models.family import shipped_configs
from overpaint.painter import load

JOBS = tuple(Job(side, 30, picture=True, rounds=3) for side in (1024, 512))
RESULTS = Path(__file__).parent / "results"


def measure_eager() -> dict[str, Any]:
    """Compare with diffusers as it is."""
    return _compare(lambda unet: unet)


def measure_compiled() -> dict[str, Any]:
    """Compare with diffusers whose UNet torch compiles."""
    return _compare(lambda unet: torch.compile(unet, mode="max-autotune-no-cudagraphs"))


def measure_memory() -> dict[str, Any]:
    """Paint within less and less memory."""
    return measure_device("cuda", "bf16", LIMITS_GB)


def measure_eight_bits() -> dict[str, Any]:
    """Compare weights of 8 bits with those of 16 bits, and the pictures of both."""
    with tempfile.TemporaryDirectory(prefix="overpaint-bench-") as temporary:
        folder, _ = write_random_checkpoint(
            Path(temporary), shipped_configs("sdxl"), torch.bfloat16
        )
        painters = {name: load(folder, device="cuda", dtype=name) for name in EIGHT_BITS}
    result: dict[str, Any] = {}
    for job in JOBS:
        runs = {name: make_overpaint_run(own, job) for name, own in painters.items()}
        pictures = {name: run().image for name, run in runs.items()}
        timings = interleave({k: _synchronized(run) for k, run in runs.items()}, job.rounds)
        result[job.name] = {
            name: {
                "seconds": round(timings.median(name), 3),
                "ratio": round(timings.ratio(name, "bf16"), 3),
                "psnr_db": compute_psnr(pictures["bf16"], pictures[name]),
            }
            for name in runs
        }
        print_line(f"  {job.name}: {result[job.name]}")
    result["unet_gb"] = {
        name: round(sum(own.nbytes for own in painter.model.unet.parameters()) / 1e9, 2)
        for name, painter in painters.items()
    }
    return result


EIGHT_BITS = ("bf16", "fp8", "int8")
"""The dtypes of `measure_eight_bits`; the others are compared with the first one."""

PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "eager": measure_eager,
    "fp8": measure_eight_bits,
    "memory": measure_memory,
    "compiled": measure_compiled,
}
"""The parts, in the order of their use if the time ends early."""


def _compare(prepare: Callable[[Any], Any]) -> dict[str, Any]:
    """Time pictures of Overpaint and of diffusers, whose UNet `prepare` changes."""
    with tempfile.TemporaryDirectory(prefix="overpaint-bench-") as temporary:
        folder, _ = write_random_checkpoint(
            Path(temporary), shipped_configs("sdxl"), torch.bfloat16
        )
        painter = load(folder, device="cuda", dtype="bf16")
        pipeline: Any = peer.load_pipeline(folder, torch.bfloat16).to("cuda")
    pipeline.unet = prepare(pipeline.unet)
    result: dict[str, Any] = {}
    for job in JOBS:
        contestants = {
            "overpaint": _synchronized(make_overpaint_run(painter, job)),
            "diffusers": _synchronized(make_diffusers_run(pipeline, job)),
        }
        timings = interleave(contestants, job.rounds)
        result[job.name] = {
            **{f"{name}_seconds": round(timings.median(name), 3) for name in contestants},
            "ratio": round(timings.ratio("overpaint", "diffusers"), 3),
            "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2),
        }
        print_line(f"  {job.name}: " + ", ".join(f"{k} {v}" for k, v in result[job.name].items()))
    return result


def _synchronized(run: Callable[[], object]) -> Callable[[], None]:
    def timed() -> None:
        run()
        torch.cuda.synchronize()

    return timed


def run_parts(names: list[str], path: Path, *, again: bool) -> dict[str, Any]:
    """Measure parts in separate processes, and write each result to a file as soon as it is there.

    Args:
        names: the parts.
        path: the file, with the results of earlier runs.
        again: whether to measure parts that have results.

    Returns:
        All results.
    """
    result: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    programs = ("torch", "diffusers", "transformers")
    versions = {name: version(name) for name in programs} | {"cuda": torch.version.cuda}
    for name in names:
        if name in result and not again:
            print_line(f"{name}: measured before; --again measures it again")
            continue
        print_line(f"{name}: {PARTS[name].__doc__}")
        command = [sys.executable, "-m", "benchmarks.gpu", "--measure", name]
        run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        *lines, last = run.stdout.splitlines()
        print_line("\n".join(lines))
        result[name] = {"versions": versions} | json.loads(last)
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(result, indent=2) + "\n")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--part", choices=PARTS, action="append", help="all parts by default")
    parser.add_argument("--again", action="store_true", help="measure parts that have results")
    parser.add_argument("--measure", choices=PARTS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(PARTS[given.measure]()))
        return
    device = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower())
    path = RESULTS / f"gpu-{device}.json"
    result = run_parts(given.part or list(PARTS), path, again=given.again)
    print_line(f"written to {path}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
