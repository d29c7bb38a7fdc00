"""Measure the peak host memory of loading, relative to the size of the weights.

A separate process loads a random checkpoint of SDXL's shapes, from fp16, as it is published, to
bf16. The result excludes the resident memory of the imported libraries.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks.checkpoints import write_random_checkpoint
from benchmarks.harness import print_line
from overpaint.models.family import shipped_configs
from tests.memory import COUNTED, added
from tests.models import original


def measure(*, quick: bool) -> dict[str, Any]:
    """Measure SDXL base at full size; quick: half a billion parameters."""
    if not COUNTED.exists():
        print_line("  skipped: needs Linux's /proc")
        return {"skipped": "needs Linux's /proc"}
    configs = original.tiny_configs(**original.WIDE) if quick else shipped_configs("sdxl")
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="overpaint-bench-") as temporary:
        folder, weights = write_random_checkpoint(Path(temporary), configs)
        result["weights_gb"] = round(weights / 1e9, 2)
        result["accelerate"] = (
            find_spec("accelerate") is not None
        )  # diffusers takes less memory with it
        print_line(f"  weights in bf16              {weights / 1e9:6.2f} GB")
        for name in LOADERS:
            command = [sys.executable, "-m", "benchmarks.loading", name, str(folder)]
            run = subprocess.run(command, check=True, capture_output=True, text=True)
            result[name] = json.loads(run.stdout.splitlines()[-1])
            over = result[name]["peak_gb"] * 1e9 / weights
            result[name]["peak_over_weights"] = round(over, 3)
            print_line(
                f"  {name:28} {result[name]['peak_gb']:6.2f} GB at its peak, {over:.2f} of the "
                f"weights; {result[name]['seconds']:.1f} s"
            )
    return result


def make_overpaint_loader(folder: Path) -> Callable[[], Any]:
    import overpaint
    from overpaint.models.checkpoint import load_model

    assert overpaint
    return lambda: load_model(folder, device="cpu", dtype="bf16")


def make_diffusers_loader(folder: Path) -> Callable[[], Any]:
    from benchmarks.peer import load_pipeline

    return lambda: load_pipeline(folder, torch.bfloat16)


LOADERS = {"overpaint": make_overpaint_loader, "diffusers": make_diffusers_loader}


def main(name: str, folder: str) -> None:
    """Load once in this process; print memory and time as JSON."""
    load = LOADERS[name](Path(folder))
    start = time.perf_counter()
    peak, resting = added(load)
    seconds = time.perf_counter() - start
    print(
        json.dumps(
            {
                "peak_gb": round(peak / 1e9, 2),
                "resting_gb": round(resting / 1e9, 2),
                "seconds": round(seconds, 2),
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
