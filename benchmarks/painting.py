"""A whole picture, from the prompt to the pixels: Overpaint against diffusers' own pipeline.

The same weights, dtype, sampler, schedule and number of network calls, in one process, in turn.
Overpaint's caches are emptied before each run.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks import peer
from benchmarks.checkpoints import write_random_checkpoint
from benchmarks.harness import Timings, interleave, say
from overpaint.imaging import codec
from overpaint.models.family import shipped_configs
from overpaint.models.library import catalog
from overpaint.painter import Painter, load
from overpaint.request import Request

PROMPT = "a watercolor painting of a red house left of a green tree"
STRENGTH, GUIDANCE = 0.6, 5.0
NATIVE = 128  # the miniature's side


@dataclass(frozen=True)
class Job:
    """What both are asked to paint, and how often.

    Attributes:
        side: of the picture in pixels.
        steps: that run.
        rounds: of both.
        picture: repaint one.
        masked: the share of it that a square mask in the middle lets be painted; 0 for no mask.
        crop: let Overpaint paint the mask's surroundings alone.
        padding: have diffusers do so too, with so many pixels around the mask.
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
        """White in the middle, of the share that is masked."""
        mask, half = Image.new("L", (self.side, self.side)), round(self.side * self.masked**0.5 / 2)
        low, high = self.side // 2 - half, self.side // 2 + half
        mask.paste(255, (low, low, high, high))
        return mask


class Meter:
    """Counts a network's calls in each run, and the time spent in them.

    Attributes:
        calls: of each run.
        seconds: likewise.
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


def miniature(*, quick: bool, model: str = catalog.MINIATURE) -> dict[str, Any]:
    """The built-in model, in fp32, 30 steps, guided."""
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


def full_size(*, quick: bool) -> dict[str, Any]:
    """SDXL base with random weights, in bf16, image to image, guided."""
    with tempfile.TemporaryDirectory(prefix="overpaint-bench-") as temporary:
        folder, _ = write_random_checkpoint(
            Path(temporary), shipped_configs("sdxl"), torch.bfloat16
        )
        painter = load(str(folder), device="cpu", dtype="bf16")
        first, second = painter.model.text_encoders
        pipeline = peer.pipeline(
            {
                **peer.load_parts(folder, torch.bfloat16, "unet", "vae"),
                "text_encoder": first.model,
                "text_encoder_2": second.model,
                "tokenizer": first.tokenizer,
                "tokenizer_2": second.tokenizer,
            }
        )
    jobs = [Job(512, 4, rounds=3), Job(512, 4, rounds=2, masked=0.25), Job(1024, 1, rounds=2)]
    return compare(painter, pipeline, [Job(512, 1, rounds=1)] if quick else jobs)


def compare(painter: Painter, pipeline: Any, jobs: list[Job]) -> dict[str, Any]:
    """Run every job by both; says and returns seconds and ratios."""
    meters = Meter(painter.model.unet), Meter(pipeline.unet)
    return {
        job.name: race(
            job.name, ours(painter, job), diffusers(pipeline, job), meters, rounds=job.rounds
        )
        for job in jobs
    }


def race(
    name: str,
    run: Callable[[], object],
    theirs: Callable[[], object],
    meters: tuple[Meter, Meter],
    *,
    rounds: int,
) -> dict[str, Any]:
    """Time our run and diffusers' in turn, which are to call their networks equally often."""
    mine, other = meters
    for meter in meters:
        meter.clear()
    whole = interleave({"ours": mine.metered(run), "diffusers": other.metered(theirs)}, rounds)
    if mine.calls != other.calls:
        raise RuntimeError(f"{name}: unlike network calls: {mine.calls}, {other.calls}")
    network = Timings({"ours": mine.seconds[1:], "diffusers": other.seconds[1:]})  # after warm-up
    result = {
        "ratio": round(whole.ratio("ours", "diffusers"), 3),
        "network_ratio": round(network.ratio("ours", "diffusers"), 3),
        "ours_seconds": round(whole.median("ours"), 3),
        "diffusers_seconds": round(whole.median("diffusers"), 3),
        "network_calls": mine.calls[0],
    }
    say(f"  {name}: " + ", ".join(f"{key} {value}" for key, value in result.items()))
    return result


def ours(painter: Painter, job: Job) -> Callable[[], object]:
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
    picture = codec.read_picture(sketch(job.side))
    if job.picture:
        fields |= {"image": picture, "strength": STRENGTH}
    if job.masked:
        fields |= {"mask": codec.read_picture(job.mask), "fill": "original"}
        fields["crop"] = "auto" if job.crop else "off"

    def run() -> object:
        painter.model.cache.clear()
        return painter.run(Request(**fields))

    return run


def diffusers(pipeline: Any, job: Job) -> Callable[[], object]:
    fields: dict[str, Any] = {"prompt": PROMPT, "guidance_scale": GUIDANCE}
    if job.picture:
        pipeline = peer.inpainting(pipeline) if job.masked else peer.image_to_image(pipeline)
        if job.masked:
            fields |= {"mask_image": job.mask, "width": job.side, "height": job.side}
        if job.padding:
            native = {"width": NATIVE, "height": NATIVE}
            fields |= {"padding_mask_crop": job.padding, **native}
        asked = peer.steps_to_ask(job.steps, STRENGTH)
        fields |= {"image": sketch(job.side), "strength": STRENGTH, "num_inference_steps": asked}
    else:
        fields |= {"width": job.side, "height": job.side, "num_inference_steps": job.steps}
    return lambda: pipeline(**fields, generator=torch.Generator().manual_seed(0))


def sketch(side: int) -> Image.Image:
    """Something with structure: a tilted gradient."""
    return Image.linear_gradient("L").rotate(20).resize((side, side)).convert("RGB")
