"""Measure a whole picture, from the prompt to the pixels: Overpaint against diffusers' pipeline.

Both use the same weights, dtype, sampler, schedule and number of network calls. They run in turn in
one process. Overpaint's caches are cleared before each run.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks import peer
from benchmarks.checkpoints import DTYPES_BY_NAME, find_cpu_dtype, write_random_checkpoint
from benchmarks.harness import Timings, interleave, print_line
from overpaint.imaging import codec
from overpaint.models.family import shipped_configs
from overpaint.models.library import catalog
from overpaint.painter import Painter, load
from overpaint.request import Request
from overpaint.result import Result

PROMPT = "a watercolor painting of a red house left of a green tree"
STRENGTH, GUIDANCE = 0.6, 5.0
NATIVE = 128  # the miniature's side


@dataclass(frozen=True)
class Job:
    """A picture to paint with both, and the number of rounds.

    Attributes:
        side: of the picture in pixels.
        steps: steps that run.
        rounds: runs of each.
        picture: whether the job repaints a picture.
        masked: the share of the picture under a square mask in the middle; 0 for no mask.
        crop: whether Overpaint paints only the region around the mask.
        padding: diffusers paints only this many pixels around the mask; None for everything.
    """

    side: int
    steps: int
    rounds: int
    picture: bool = True
    masked: float = 0.0
    crop: bool = False
    padding: int | None = None

    @property
    def name(self) -> str:
        kind = "image to image" if self.picture else "text to image"
        if self.masked:
            kind = f"inpainting, {self.masked:.0%} masked"
        cropped = (", cropped by both" if self.padding else ", cropped") if self.crop else ""
        return f"{kind}{cropped}, {self.side}², {self.steps} steps"

    @property
    def mask(self) -> Image.Image:
        """A mask that is white in the middle, over the masked share."""
        mask, half = Image.new("L", (self.side, self.side)), round(self.side * self.masked**0.5 / 2)
        low, high = self.side // 2 - half, self.side // 2 + half
        mask.paste(255, (low, low, high, high))
        return mask


class Meter:
    """Counts a network's calls in each run, and measures their time.

    Attributes:
        calls: the number of calls of each run.
        seconds: the seconds of the calls of each run.
    """

    def __init__(self, network: torch.nn.Module):
        self.calls: list[int] = []
        self.seconds: list[float] = []
        network.register_forward_pre_hook(self._enter)
        network.register_forward_hook(self._leave)

    def metered(self, run: Callable[[], object]) -> Callable[[], None]:
        def once() -> None:
            self.calls.append(0)
            self.seconds.append(0.0)
            run()

        return once

    def clear(self) -> None:
        self.calls.clear()
        self.seconds.clear()

    def _enter(self, *_: Any) -> None:
        self._start = time.perf_counter()

    def _leave(self, *_: Any) -> None:
        self.calls[-1] += 1
        self.seconds[-1] += time.perf_counter() - self._start


def measure_miniature(*, quick: bool, model: str = catalog.MINIATURE) -> dict[str, Any]:
    """Measure the built-in model, in fp32, 30 steps, guided."""
    painter = load(model, device="cpu", dtype="fp32")
    pipeline = peer.load_pipeline(catalog.resolve_model(model), torch.float32)
    rounds = 3 if quick else 9
    jobs = [
        Job(128, 30, rounds, picture=False),
        Job(128, 30, rounds),
        Job(128, 30, rounds, masked=0.25),
        Job(256, 30, rounds, masked=0.05),
        Job(256, 30, rounds, masked=0.05, crop=True),
        Job(256, 30, rounds, masked=0.05, crop=True, padding=16),
    ]
    return compare(painter, pipeline, jobs)


def measure_busy(*, quick: bool) -> dict[str, Any]:
    """Measure the built-in model while another process keeps one processor busy."""
    painter = load(catalog.MINIATURE, device="cpu", dtype="fp32")
    pipeline = peer.load_pipeline(catalog.resolve_model(catalog.MINIATURE), torch.float32)
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        return compare(painter, pipeline, [Job(NATIVE, 30, 3 if quick else 9)])
    finally:
        busy.kill()
        busy.wait()


def measure_full_size(*, quick: bool) -> dict[str, Any]:
    """Measure SDXL base with random weights, image to image, guided."""
    dtype = find_cpu_dtype()
    with tempfile.TemporaryDirectory(prefix="overpaint-bench-") as temporary:
        folder, _ = write_random_checkpoint(
            Path(temporary), shipped_configs("sdxl"), DTYPES_BY_NAME[dtype]
        )
        painter = load(str(folder), device="cpu", dtype=dtype)
        first, second = painter.model.text_encoders
        pipeline = peer.make_pipeline(
            {
                **peer.load_parts(folder, DTYPES_BY_NAME[dtype], "vae"),
                "unet": peer.share_unet(painter.model.unet),
                "text_encoder": first.model,
                "text_encoder_2": second.model,
                "tokenizer": first.tokenizer,
                "tokenizer_2": second.tokenizer,
            }
        )
    jobs = [Job(512, 4, rounds=3), Job(512, 4, rounds=2, masked=0.25), Job(1024, 1, rounds=2)]
    if quick:
        jobs = [Job(512, 1, rounds=1)]
    return {"dtype": dtype} | compare(painter, pipeline, jobs)


def compare(painter: Painter, pipeline: Any, jobs: list[Job]) -> dict[str, Any]:
    """Run every job with both; print and return seconds and ratios."""
    meters = Meter(painter.model.unet), Meter(pipeline.unet)
    return {
        job.name: compare_runs(
            job.name,
            make_overpaint_run(painter, job),
            make_diffusers_run(pipeline, job),
            meters,
            rounds=job.rounds,
        )
        for job in jobs
    }


def compare_runs(
    name: str,
    run: Callable[[], object],
    diffusers_run: Callable[[], object],
    meters: tuple[Meter, Meter],
    *,
    rounds: int,
) -> dict[str, Any]:
    """Time Overpaint's run and diffusers' in turn; both must call their networks equally often."""
    mine, other = meters
    for meter in meters:
        meter.clear()
    whole = interleave(
        {"overpaint": mine.metered(run), "diffusers": other.metered(diffusers_run)}, rounds
    )
    if mine.calls != other.calls:
        raise RuntimeError(
            f"{name}: the numbers of network calls differ: {mine.calls} and {other.calls}"
        )
    network = Timings(
        {"overpaint": mine.seconds[1:], "diffusers": other.seconds[1:]}
    )  # after warm-up
    result = {
        "ratio": round(whole.ratio("overpaint", "diffusers"), 3),
        "network_ratio": round(network.ratio("overpaint", "diffusers"), 3),
        "overpaint_seconds": round(whole.median("overpaint"), 3),
        "diffusers_seconds": round(whole.median("diffusers"), 3),
        "network_calls": mine.calls[0],
    }
    print_line(f"  {name}: " + ", ".join(f"{key} {value}" for key, value in result.items()))
    return result


def make_overpaint_run(painter: Painter, job: Job) -> Callable[[], Result]:
    fields: dict[str, Any] = {
        "prompt": PROMPT,
        "num_inference_steps": job.steps,
        "guidance_scale": GUIDANCE,
        "sampler": "dpmpp_2m",
        "schedule": "karras",
        "seed": 0,
        "width": job.side,
        "height": job.side,
    }
    picture = codec.read_picture(draw_gradient(job.side))
    if job.picture:
        fields |= {"image": picture, "strength": STRENGTH}
    if job.masked:
        fields |= {"mask": codec.read_picture(job.mask), "fill": "original"}
        fields["crop"] = "auto" if job.crop else "off"

    def run() -> Result:
        painter.model.cache.clear()
        return painter.run(Request(**fields))

    return run


def make_diffusers_run(pipeline: Any, job: Job) -> Callable[[], object]:
    fields: dict[str, Any] = {"prompt": PROMPT, "guidance_scale": GUIDANCE}
    if job.picture:
        pipeline = (
            peer.make_inpainting_pipeline(pipeline)
            if job.masked
            else peer.make_image_to_image_pipeline(pipeline)
        )
        if job.masked:
            fields |= {"mask_image": job.mask, "width": job.side, "height": job.side}
        if job.padding:
            native = {"width": NATIVE, "height": NATIVE}
            fields |= {"padding_mask_crop": job.padding, **native}
        asked = peer.find_requested_steps(job.steps, STRENGTH)
        fields |= {
            "image": draw_gradient(job.side),
            "strength": STRENGTH,
            "num_inference_steps": asked,
        }
    else:
        fields |= {"width": job.side, "height": job.side, "num_inference_steps": job.steps}
    return lambda: pipeline(**fields, generator=torch.Generator().manual_seed(0))


def draw_gradient(side: int) -> Image.Image:
    """Draw a tilted gradient."""
    return Image.linear_gradient("L").rotate(20).resize((side, side)).convert("RGB")
