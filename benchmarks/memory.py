"""Measure full-size SDXL within less and less memory: gigabytes, seconds and the same picture.

A separate process paints the same picture at each limit: `ram_gb` on the CPU, `vram_gb` on a GPU.
The peak is that of the whole process on the CPU, and of torch's allocator on a GPU.
"""

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image

from benchmarks.checkpoints import find_cpu_dtype, write_random_checkpoint
from benchmarks.harness import print_line
from overpaint.models.family import shipped_configs
from tests.memory import COUNTED, read_peak_bytes

LIMITS_GB = (16, 12, 8, 6, 4, 3)
SIDE_PX, STEPS = {"cpu": 512, "cuda": 1024}, 3
"""The first step reads all weights once; the others are timed."""


@dataclass(frozen=True)
class Measured:
    """A picture within a limit.

    Attributes:
        step_s: seconds of a guided step.
        decode_s: seconds from the last step to the picture.
        peak_gb: memory at the peak.
        picture: the file of the picture.
    """

    step_s: float
    decode_s: float
    peak_gb: float
    picture: str


def measure(*, quick: bool) -> dict[str, Any]:
    """Measure on the CPU; quick: only two limits."""
    return measure_device("cpu", find_cpu_dtype(), LIMITS_GB[1:3] if quick else LIMITS_GB)


def measure_device(device: str, dtype: str, limits_gb: tuple[int, ...]) -> dict[str, Any]:
    """Paint without a limit, if the machine has the memory, and within each limit."""
    if not COUNTED.exists():
        print_line("  skipped: needs Linux's /proc")
        return {"skipped": "needs Linux's /proc"}
    result: dict[str, Any] = {"dtype": dtype}
    with tempfile.TemporaryDirectory(prefix="overpaint-bench-") as temporary:
        folder, _ = write_random_checkpoint(Path(temporary), shipped_configs("sdxl"))
        total_gb = psutil.virtual_memory().total / 1e9
        limits = [0, *(limit for limit in limits_gb if device != "cpu" or limit < total_gb)]
        first: Measured | None = None
        for limit in limits:
            command = [sys.executable, "-m", "benchmarks.memory"]
            command += [str(folder), device, dtype, str(limit), f"{temporary}/{limit}.png"]
            run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found = Measured(**json.loads(run.stdout.splitlines()[-1]))
            first = first or found
            name = f"{limit} GB" if limit else "no limit"
            own = asdict(found) | {
                "ratio": round(found.step_s / first.step_s, 3),
                "psnr_db": compute_psnr(Image.open(first.picture), Image.open(found.picture)),
            }
            del own["picture"]
            result[name] = own
            print_line(f"  {name}: " + ", ".join(f"{key} {value}" for key, value in own.items()))
    return result


def compute_psnr(one: Image.Image, other: Image.Image) -> float | str:
    """Return the peak signal-to-noise ratio of two pictures in dB, or "equal"."""
    a, b = (np.asarray(picture, np.float64) for picture in (one, other))
    error = float(np.square(a - b).mean())
    return "equal" if error == 0 else round(float(10 * np.log10(255**2 / error)), 2)


def paint(folder: str, device: str, dtype: str, limit_gb: float, output: str) -> Measured:
    """Paint the picture in this process."""
    from overpaint import Finished, Request, Step
    from overpaint.painter import load

    side = SIDE_PX[device]
    request = Request(
        prompt="a picture", width=side, height=side, num_inference_steps=STEPS, seed=1
    )
    limits: dict[str, Any] = {"ram_gb" if device == "cpu" else "vram_gb": limit_gb or None}
    if device == "cuda" and limit_gb:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(limit_gb * 1e9 / total)
    painter = load(folder, device=device, dtype=dtype, plan_for=request, progress=False, **limits)
    times: list[float] = []
    for event in painter.stream(request):
        if device == "cuda":
            torch.cuda.synchronize()
        if isinstance(event, Step | Finished):
            times.append(time.perf_counter())
        if isinstance(event, Finished):
            event.images[0].save(output)
    peak = torch.cuda.max_memory_reserved() if device == "cuda" else read_peak_bytes()
    steps = times[:-1]
    return Measured(
        round((steps[-1] - steps[0]) / (len(steps) - 1), 2),
        round(times[-1] - steps[-1], 2),
        round(peak / 1e9, 2),
        output,
    )


def main(folder: str, device: str, dtype: str, limit_gb: str, output: str) -> None:
    print(json.dumps(asdict(paint(folder, device, dtype, float(limit_gb), output))))


if __name__ == "__main__":
    main(*sys.argv[1:])
