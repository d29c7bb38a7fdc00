"""Measure the presets on the miniature: whole pictures, against diffusers' 30 guided steps.

A preset runs fewer calls of the network than diffusers and paints another picture; `python -m
miniature measure-presets` measures the pictures.
"""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks import peer
from benchmarks.harness import interleave, print_line
from benchmarks.painting import NATIVE, PROMPT, Job, make_diffusers_run
from overpaint.models.library import catalog
from overpaint.painter import Painter, load
from overpaint.request import Request
from overpaint.request.options import RequestArguments, RequestOptions

CASES: dict[str, RequestOptions] = {
    "quality": {},
    "fast": {"preset": "fast"},
    "fast, tiny decoder": {"preset": "fast", "decoder": "tiny"},
    "turbo": {"preset": "turbo"},
    "turbo, tiny decoder": {"preset": "turbo", "decoder": "tiny"},
}


def measure(*, quick: bool) -> dict[str, Any]:
    """Measure text to image with each preset, in fp32."""
    painter = load(catalog.MINIATURE, device="cpu", dtype="fp32")
    pipeline = peer.load_pipeline(catalog.resolve_model(catalog.MINIATURE), torch.float32)
    job = Job(NATIVE, 30, 3 if quick else 9, picture=False)
    runs: dict[str, Callable[[], object]] = {"diffusers": make_diffusers_run(pipeline, job)}
    runs |= {name: make_run(painter, options) for name, options in CASES.items()}
    timings = interleave(runs, job.rounds)
    result: dict[str, Any] = {
        name: {
            "ratio": round(timings.ratio(name, "diffusers"), 3),
            "seconds": round(timings.median(name), 3),
        }
        for name in runs
    }
    for name, own in result.items():
        print_line(f"  {name}: " + ", ".join(f"{key} {value}" for key, value in own.items()))
    return result


def make_run(painter: Painter, options: RequestOptions) -> Callable[[], object]:
    fields: RequestArguments = {"prompt": PROMPT, "seed": 0, **options}
    request = Request(**fields)

    def run() -> object:
        painter.model.cache.clear()
        return painter.run(request)

    return run
