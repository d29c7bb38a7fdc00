"""The report cards of presets and of dtypes: what each of them gives up, and what it saves."""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from miniature.judge import Judge
from miniature.measure import (
    FIRST_SEED,
    STRENGTH,
    Figure,
    as_picture,
    draw_sketches,
    full_caption,
    grid,
    held_out_scenes,
    paint,
    psnr,
    read_prompted,
    read_restyled,
)
from overpaint.models.addons import AddonLoader
from overpaint.models.checkpoint import load_model
from overpaint.models.library.library import Library
from overpaint.models.model import Model
from overpaint.models.presets import settle_request
from overpaint.nn.eight_bits import FORMATS, list_transformers, round_layers
from overpaint.registry import PRESETS, Preset
from overpaint.request import Request

SHOWN = 12  # pictures of each row
SHARES = {"quality": 1.0, "fast": 0.99, "turbo": 0.90}  # of what "quality" scores
POINT = 0.01

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Variant:
    """A way to paint, which is compared with the first one.

    Attributes:
        name: Its name in the report.
        model: The model.
        preset: The preset of all requests.
        share: The share of the first one's scores that it needs.
        loss: What may be missing from that.
    """

    name: str
    model: Model
    preset: Preset = "quality"
    share: float = 1.0
    loss: float = 0.0


def make_presets(model_name: str) -> list[Variant]:
    """Return all presets."""
    model = load_model(model_name)
    return [Variant(preset, model, preset, SHARES[preset]) for preset in PRESETS]


def make_dtypes(model_name: str) -> list[Variant]:
    """Return fp32, weights of 8 bits, and int8 with inputs of 8 bits, as on a GPU."""
    exact = load_model(model_name, device="cpu", dtype="fp32")
    variants = [Variant("fp32", exact)]
    for dtype in FORMATS:
        variants.append(
            Variant(dtype, load_model(model_name, device="cpu", dtype=dtype), loss=POINT)
        )
    rounding = load_model(model_name, device="cpu", dtype="fp32")
    for _, transformer in list_transformers(rounding.unet):
        round_layers(transformer, FORMATS["int8"], multiplies=True)
    variants.append(Variant("int8 with inputs", rounding, loss=POINT))
    return variants


@contextmanager
def counted_calls(model: Model) -> Generator[list[int]]:
    """Collect the number of rows of each run of the model's UNet."""
    rows: list[int] = []

    def count(_: Any, inputs: tuple[Any, ...]) -> None:
        rows.append(len(inputs[0]))

    handle = model.unet.register_forward_pre_hook(count)
    try:
        yield rows
    finally:
        handle.remove()


def paint_preset(model: Model, preset: Preset, requests: list[Request], name: str) -> Pixels:
    """Paint with a preset; (n, height, width, 3)."""
    loader = AddonLoader(model, Library())
    requests = [request.fill_unset({"preset": preset}) for request in requests]
    settled = [settle_request(request, model, loader) for request in requests]
    return paint(model, [request for request, _, _ in settled], name, settled[0][1])


def report(variants: Sequence[Variant], judge: Judge, out: Path, *, count: int) -> None:
    """Measure variants, print the table, and one JSON line at the end.

    Args:
        variants: The first one is the one to compare with.
        judge: Reads the pictures.
        out: The folder for a grid of pictures.
        count: Prompts, and sketches.
    """
    out.mkdir(parents=True, exist_ok=True)
    scenes = held_out_scenes(count, FIRST_SEED)
    sources, wanted = draw_sketches(count)
    prompted = [Request(prompt=full_caption(s), seed=i) for i, s in enumerate(scenes)]
    restyled = [
        Request(prompt=full_caption(w), image=as_picture(p), strength=STRENGTH, seed=i)
        for i, (w, p) in enumerate(zip(wanted, sources, strict=True))
    ]
    exact: Pixels | None = None
    scores: dict[str, float] = {}
    figures: list[Figure] = []
    rows: list[Pixels] = []
    for own in variants:
        with counted_calls(own.model) as calls:
            painted = paint_preset(own.model, own.preset, prompted, f"{own.name}: create")
        edited = paint_preset(own.model, own.preset, restyled, f"{own.name}: edit")
        exact = painted if exact is None else exact
        rows += [painted[:SHOWN], edited[:SHOWN]]
        decibels = float(psnr(painted, exact).mean())
        figures.append(Figure(f"{own.name}: calls of a picture", sum(calls) / count, None, count))
        figures.append(Figure(f"{own.name}: dB to {variants[0].name}", decibels, None, count))
        read = [*read_prompted(judge, painted, scenes), *read_restyled(judge, edited, wanted)]
        for figure in read:
            if own is variants[0]:
                scores[figure.name], least = figure.value, figure.wanted
            else:
                least = own.share * scores[figure.name] - own.loss
            name = f"{own.name}: {figure.name}"
            figures.append(Figure(name, figure.value, least, figure.count))
    grid(np.concatenate(rows), SHOWN).save(out / "variants.png")
    print(*figures, sep="\n")
    print(json.dumps({f.name: round(f.value, 4) for f in figures}))
