"""The report card of presets: what each of them gives up, and what it saves."""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import contextmanager
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
from overpaint.registry import PRESETS, Preset
from overpaint.request import Request

SHOWN = 12  # pictures of each row
WANTED = {"fast": 0.99, "turbo": 0.90}  # of what "quality" scores

Pixels = NDArray[np.uint8]


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


def report(model_name: str, judge: Judge, out: Path, *, count: int) -> None:
    """Measure all presets, print the table, and one JSON line at the end; a grid goes to `out`."""
    out.mkdir(parents=True, exist_ok=True)
    model = load_model(model_name)
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
    for preset in PRESETS:
        with counted_calls(model) as calls:
            painted = paint_preset(model, preset, prompted, f"{preset}: create")
        edited = paint_preset(model, preset, restyled, f"{preset}: edit")
        exact = painted if exact is None else exact
        rows += [painted[:SHOWN], edited[:SHOWN]]
        figures.append(Figure(f"{preset}: calls of a picture", sum(calls) / count, None, count))
        figures.append(
            Figure(f"{preset}: dB to quality", float(psnr(painted, exact).mean()), None, count)
        )
        read = [*read_prompted(judge, painted, scenes), *read_restyled(judge, edited, wanted)]
        for figure in read:
            score = scores.setdefault(figure.name, figure.value)
            least = WANTED[preset] * score if preset in WANTED else figure.wanted
            name = f"{preset}: {figure.name}"
            figures.append(Figure(name, figure.value, least, figure.count))
    grid(np.concatenate(rows), SHOWN).save(out / "presets.png")
    print(*figures, sep="\n")
    print(json.dumps({f.name: round(f.value, 4) for f in figures}))
