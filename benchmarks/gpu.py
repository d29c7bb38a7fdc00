"""Full-size random SDXL on a CUDA device: Overpaint against diffusers, eager and compiled.

`make gpu` runs it. Builds and downloads nothing; writes benchmarks/results/gpu-NAME.json.
"""

import json
import re
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks import peer
from benchmarks.checkpoints import write_random_checkpoint
from benchmarks.harness import interleave, print_line
from benchmarks.painting import Job, make_diffusers_run, make_overpaint_run
from overpaint.models.family import shipped_configs
from overpaint.painter import load

JOBS = tuple(Job(side, 30, picture=True, rounds=3) for side in (1024, 512))
RESULTS = Path(__file__).parent / "results"


def measure() -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="overpaint-bench-") as temporary:
        folder, _ = write_random_checkpoint(
            Path(temporary), shipped_configs("sdxl"), torch.bfloat16
        )
        painter = load(folder, device="cuda", dtype="bf16")
        eager: Any = peer.load_pipeline(folder, torch.bfloat16).to("cuda")
    unet = eager.unet
    compiled_unet = torch.compile(unet, mode="max-autotune-no-cudagraphs")
    result: dict[str, Any] = {}
    for job in JOBS:
        run_eager, run_overpaint = make_diffusers_run(eager, job), make_overpaint_run(painter, job)

        def run_compiled(job: Job = job) -> object:
            eager.unet = compiled_unet
            try:
                return make_diffusers_run(eager, job)()
            finally:
                eager.unet = unet

        contestants = {"overpaint": run_overpaint, "diffusers": run_eager, "compiled": run_compiled}
        timings = interleave({n: synchronized(run) for n, run in contestants.items()}, job.rounds)
        result[job.name] = {
            **{f"{name}_seconds": round(timings.median(name), 3) for name in contestants},
            "ratio": round(timings.ratio("overpaint", "diffusers"), 3),
            "ratio_to_compiled": round(timings.ratio("overpaint", "compiled"), 3),
            "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2),
        }
        print_line(f"  {job.name}: " + ", ".join(f"{k} {v}" for k, v in result[job.name].items()))
    return result


def synchronized(run: Callable[[], object]) -> Callable[[], None]:
    def timed() -> None:
        run()
        torch.cuda.synchronize()

    return timed


def main() -> None:
    device = torch.cuda.get_device_name()
    names = ("torch", "diffusers", "transformers")
    result = {
        "device": device,
        "versions": {name: version(name) for name in names} | {"cuda": torch.version.cuda},
        "full-size": measure(),
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"gpu-{re.sub(r'[^a-z0-9]+', '-', device.lower())}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print_line(f"written to {path}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
