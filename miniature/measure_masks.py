"""The report card of masks and stages: whether changes stay inside the mask and fit the prompt."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.Image import Resampling

from miniature.judge import Judge, truth
from miniature.measure import FIRST_SEED, Figure, as_picture, grid, paint
from miniature.rendering import render
from miniature.scenes import NATIVE, SHAPES, Item, Scene, allowed_colors, caption, draw_scene
from overpaint.diffusion.tiling.windows import list_window_starts
from overpaint.models.addons import Addons
from overpaint.models.checkpoint import load_model
from overpaint.models.model import Model
from overpaint.request import Request

MARGIN = 1.25  # of an object's radius: what a mask covers around it
UNLIKE = 15.0  # ΔE beyond which a pixel is not of the background
# The phase of a hidden wave is unknown, so colors may come from this many pixels away.
REACH = 8
SIDE = 32  # pixels that a picture is extended by
STEPS = 30
REFINED_STEPS = 20
LANGEVIN_STEPS = 5
STRENGTH = 0.5  # of the pictures that are refined
BAND = 3  # pixels to either side of a border

Pixels = NDArray[np.uint8]


def _scenes(count: int, first: int, *, two: bool) -> list[Scene]:
    return [
        draw_scene(np.random.default_rng(FIRST_SEED + first + i), held_out=True, two=two)
        for i in range(count)
    ]


def _caption(scene: Scene) -> str:
    return caption(scene, np.random.default_rng(scene.texture), full=True)


def _requests(
    scenes: Sequence[Scene], sources: Pixels, masks: Pixels | None = None, **fields: Any
) -> list[Request]:
    """One request a scene, to paint it over its source."""
    return [
        Request(
            prompt=_caption(scene),
            image=as_picture(source),
            mask=None if masks is None else as_picture(masks[i]),
            seed=i,
            **fields,
        )
        for i, (scene, source) in enumerate(zip(scenes, sources, strict=True))
    ]


def _around(item: Item) -> Pixels:
    """A white box around an object on black, (NATIVE, NATIVE)."""
    mask = np.zeros((NATIVE, NATIVE), np.uint8)
    reach = MARGIN * item.radius
    top, left = max(0, round(item.y - reach)), max(0, round(item.x - reach))
    mask[top : round(item.y + reach), left : round(item.x + reach)] = 255
    return mask


def _lab(pictures: Pixels) -> NDArray[np.float32]:
    """Pictures (n, h, w, 3) in CIELAB."""
    scaled = pictures.astype(np.float32) / 255
    return np.stack([np.asarray(cv2.cvtColor(p, cv2.COLOR_RGB2LAB), np.float32) for p in scaled])


def _difference(a: Pixels, b: Pixels) -> NDArray[np.float32]:
    """ΔE (CIE 1976) of pictures (n, h, w, 3), pixel by pixel."""
    return np.linalg.norm(_lab(a) - _lab(b), axis=-1)


def _strangeness(pictures: Pixels, backgrounds: Pixels) -> NDArray[np.float32]:
    """ΔE of every pixel to the most alike of the background's pixels within `REACH`."""
    found = _lab(pictures)
    around = ((0, 0), (REACH, REACH), (REACH, REACH), (0, 0))
    wanted = np.pad(_lab(backgrounds), around, mode="edge")
    height, width = pictures.shape[1:3]
    shifts = range(0, 2 * REACH + 1, 2)
    least = np.full(pictures.shape[:3], np.inf, np.float32)
    for y, x in itertools.product(shifts, shifts):
        shifted = wanted[:, y : y + height, x : x + width]
        least = np.minimum(least, np.linalg.norm(found - shifted, axis=-1))
    return least


def other_object(scene: Scene, which: int, rng: np.random.Generator) -> Scene:
    """The scene with another object in the place of one."""
    taken = {item.shape for item in scene.objects}
    shapes = [shape for shape in SHAPES if shape not in taken]
    old = scene.objects[which]
    colors = [c for c in allowed_colors(scene.style, scene.background) if c != old.color]
    new = dataclasses.replace(
        old,
        shape=shapes[int(rng.integers(len(shapes)))],
        color=colors[int(rng.integers(len(colors)))],
    )
    objects = tuple(new if i == which else item for i, item in enumerate(scene.objects))
    return dataclasses.replace(scene, objects=objects)


def _describe(model: Model, langevin_steps: int) -> str:
    channels = f"{model.family.in_channels} channels"
    return f"{channels}, {langevin_steps} Langevin steps" if langevin_steps else channels


def replaced(
    model: Model, judge: Judge, count: int, steps: int = STEPS, langevin_steps: int = 0
) -> tuple[list[Figure], Pixels]:
    """One of two objects becomes another; the rest stays to the bit."""
    rng = np.random.default_rng(FIRST_SEED + 3)
    scenes = _scenes(count, 200_000, two=True)
    sources = np.stack([render(s) for s in scenes])
    which = [i % 2 for i in range(count)]
    wanted = [other_object(s, w, rng) for s, w in zip(scenes, which, strict=True)]
    boxes = np.stack([_around(s.objects[w]) for s, w in zip(scenes, which, strict=True)])
    fields: dict[str, Any] = {"num_inference_steps": steps, "langevin_steps": langevin_steps}
    painted = paint(model, _requests(wanted, sources, boxes, **fields), "replace")
    same = [bool((p == s)[b == 0].all()) for p, s, b in zip(painted, sources, boxes, strict=True)]
    right = [
        truth(after).objects == verdict.objects
        for after, verdict in zip(wanted, judge.read(painted), strict=True)
    ]
    both = [a and b for a, b in zip(right, same, strict=True)]
    wished = 0.9 if model.family.sees_mask else 0.85
    how = _describe(model, langevin_steps)
    figures = [
        Figure(f"replaced as prompted, {how}", float(np.mean(both)), wished, count),
        Figure(f"the rest as it was, {how}", float(np.mean(same)), 1.0, count),
    ]
    return figures, np.concatenate([sources[:12], painted[:12]])


def removed(
    model: Model, count: int, steps: int = STEPS, langevin_steps: int = 0
) -> tuple[Figure, Pixels]:
    """Remove one object; its place must look like the background around it."""
    scenes = _scenes(count, 300_000, two=False)
    empty = [dataclasses.replace(s, objects=()) for s in scenes]
    sources, wanted = (np.stack([render(s) for s in group]) for group in (scenes, empty))
    boxes = np.stack([_around(s.objects[0]) for s in scenes])
    fields: dict[str, Any] = {
        "task": "remove",
        "num_inference_steps": steps,
        "langevin_steps": langevin_steps,
    }
    painted = paint(model, _requests(empty, sources, boxes, **fields), "remove")
    gone = [
        float((d[b > 0] < UNLIKE).mean()) > 0.95
        for d, b in zip(_strangeness(painted, wanted), boxes, strict=True)
    ]
    how = _describe(model, langevin_steps)
    figure = Figure(f"removed, {how}", float(np.mean(gone)), 0.8, count)
    return figure, np.concatenate([sources[:12], painted[:12]])


def _seam(pictures: Pixels, boxes: Pixels) -> float:
    """ΔE between the mean colors of the bands at both sides of the masks' borders."""
    band = np.ones((2 * BAND + 1, 2 * BAND + 1), np.uint8)
    inside = [(b > 0) & (cv2.erode(b, band) == 0) for b in boxes]
    outside = [(b == 0) & (cv2.dilate(b, band) > 0) for b in boxes]
    means = [
        np.stack([p[at].mean(0) for p, at in zip(pictures, bands, strict=True)])
        for bands in (inside, outside)
    ]
    a, b = (m[:, None, None].round().astype(np.uint8) for m in means)
    return float(_difference(a, b).mean())


def matched(model: Model, count: int) -> list[Figure]:
    """Repaint pictures with their own captions in a box; measure how visible its border is."""
    scenes = _scenes(count, 700_000, two=False)
    sources = np.stack([render(s) for s in scenes])
    boxes = np.zeros((count, NATIVE, NATIVE), np.uint8)
    boxes[:, 24:104, 24:104] = 255
    steps = {"before": _seam(sources, boxes)}
    for name, match in (("as painted", False), ("matched", True)):
        requests = _requests(scenes, sources, boxes, task="retouch", crop="off", match_colors=match)
        steps[name] = _seam(paint(model, requests, f"colors {name}"), boxes)
    wanted = {"before": None, "as painted": None, "matched": steps["as painted"]}
    return [
        Figure(f"ΔE over the mask's border, {name}", step, wanted[name], count, at_most=True)
        for name, step in steps.items()
    ]


def seams(model: Model, side: int, count: int) -> tuple[Figure, Pixels]:
    """Pictures enlarged to `side` × `side` by a tiled second stage; the gradient at windows' edges.

    The figure is the mean over that half a window further on: a picture's own edges prefer both
    places equally, because scenes are laid out on a grid of pixels and windows on one of cells.
    """
    small = (side // 4, side // 4)
    scenes = _scenes(count, 800_000, two=True)
    renders = [Image.fromarray(render(s)).resize(small, Resampling.LANCZOS) for s in scenes]
    requests = _requests(
        scenes,
        np.stack([np.asarray(r) for r in renders]),
        width=small[0],
        height=small[1],
        strength=0.2,
        num_inference_steps=4,
        upscale=4.0,
        refine_steps=4,
    )
    painted = paint(model, requests, f"tiled {side}²")
    cells, window = side // model.vae_factor, model.native_size // model.vae_factor
    firsts = list_window_starts(cells, window)
    edges = {at for first in firsts for at in (first, first + window)} - {0, cells}
    others = {at + window // 2 for at in edges} - edges - {cells}
    gray = painted.astype(np.float32).mean(3)
    steps = [np.abs(np.diff(gray, axis=axis)).mean((0, 3 - axis)) for axis in (1, 2)]
    here, there = (
        np.mean([step[model.vae_factor * at - 1] for step in steps for at in places])
        for places in (edges, others)
    )
    name = f"gradient at windows' edges over elsewhere, {side}²"
    return Figure(name, float(here / there), 1.1, count, at_most=True), painted


def extended(
    model: Model, count: int, steps: int = STEPS, langevin_steps: int = 0
) -> tuple[Figure, Pixels]:
    """Pictures with more room at the right; ΔE over the border."""
    scenes = _scenes(count, 400_000, two=False)
    sources = np.stack([render(s) for s in scenes])[:, :, : NATIVE - SIDE]
    fields: dict[str, Any] = {
        "extend": (0, 0, SIDE, 0),
        "num_inference_steps": steps,
        "langevin_steps": langevin_steps,
    }
    painted = paint(model, _requests(scenes, sources, **fields), "extend")
    name = f"ΔE over the border, extended, {_describe(model, langevin_steps)}"
    return Figure(name, _border(scenes, painted), 5.0, count, at_most=True), painted[:24]


def unextended(count: int) -> Figure:
    """Return the value of `extended` for true renders."""
    scenes = _scenes(count, 400_000, two=False)
    step = _border(scenes, np.stack([render(s) for s in scenes]))
    return Figure("ΔE over the border, true renders", step, None, count)


def _border(scenes: Sequence[Scene], pictures: Pixels) -> float:
    """ΔE between the bands to both sides of where pictures are extended, row by row.

    Rows where an object of the scene reaches the border say nothing about the background.
    """
    empty = np.stack([render(dataclasses.replace(s, objects=())) for s in scenes])
    edge = NATIVE - SIDE
    sides = (slice(edge - BAND, edge), slice(edge, edge + BAND))
    around = slice(edge - BAND, edge + BAND)
    true = np.stack([render(s) for s in scenes])
    rows = (true == empty)[:, :, around].all((2, 3))
    means = [pictures[:, :, s].mean(2, keepdims=True).round().astype(np.uint8) for s in sides]
    return float(_difference(means[0], means[1])[rows].mean())


def _edges(pictures: Pixels) -> NDArray[np.float32]:
    """Fine edges: what a Laplacian sees in the brightness, (n, h, w)."""
    gray = [cv2.cvtColor(p, cv2.COLOR_RGB2GRAY).astype(np.float32) for p in pictures]
    return np.stack([cv2.Laplacian(g, cv2.CV_32F) for g in gray])


def refined(
    model: Model, refiner: Model, count: int, steps: int = REFINED_STEPS
) -> tuple[list[Figure], Pixels]:
    """Repaint renders with their own captions, by the base alone and with the refiner.

    The figure is the correlation of fine edges with the render's, in the mean.
    """
    scenes = _scenes(count, 500_000, two=True)
    sources = np.stack([render(s) for s in scenes])
    fields = {"strength": STRENGTH, "num_inference_steps": steps}
    painted: list[Pixels] = []
    for second in (None, refiner):
        more: dict[str, Any] = {"refiner": second.name} if second else {}
        requests = _requests(scenes, sources, **fields, **more)
        painted.append(paint(model, requests, "refine" if second else "base alone", Addons(second)))
    true = _edges(sources)
    alone, together = (
        float(
            np.mean([np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(e, true, strict=True)])
        )
        for e in map(_edges, painted)
    )
    figures = [
        Figure("fine edges, base alone", alone, None, count),
        Figure("fine edges, with the refiner", together, alone, count),
    ]
    return figures, np.concatenate([sources[:12], painted[0][:12], painted[1][:12]])


def softened(model: Model, count: int, steps: int = STEPS) -> tuple[list[float], Pixels]:
    """A mask that rises from left to right: the mean change of eight columns, in levels."""
    rng = np.random.default_rng(FIRST_SEED + 4)
    scenes = _scenes(count, 600_000, two=False)
    sources = np.stack([render(s) for s in scenes])
    others = [draw_scene(rng, held_out=True, two=False) for _ in scenes]
    ramp = np.linspace(0, 255, NATIVE).round().astype(np.uint8)
    masks = np.broadcast_to(ramp, (count, NATIVE, NATIVE))
    fields: dict[str, Any] = {
        "strength": 1.0,
        "crop": "off",
        "match_colors": False,
        "num_inference_steps": steps,
    }
    painted = paint(model, _requests(others, sources, masks, **fields), "soft mask")
    change = np.abs(painted.astype(np.float32) - sources).mean((0, 1, 3))
    return change.reshape(8, -1).mean(1).tolist(), np.concatenate([sources[:12], painted[:12]])


def report(names: Sequence[str], judge: Judge, out: Path, *, count: int, tiled: int = 512) -> None:
    """Measure everything with base, inpainting UNet and refiner; pictures go into `out`.

    `tiled` is the side of the pictures whose second stage is tiled.
    """
    out.mkdir(parents=True, exist_ok=True)
    base, inpaint, refiner = (load_model(name) for name in names)
    figures: list[Figure] = []
    for model, langevin_steps in ((base, 0), (base, LANGEVIN_STEPS), (inpaint, 0)):
        name = f"{model.family.in_channels}-{langevin_steps}"
        found, pictures = replaced(model, judge, count, langevin_steps=langevin_steps)
        figures += found
        grid(pictures, 12).save(out / f"replaced-{name}.png")
        figure, pictures = removed(model, count, langevin_steps=langevin_steps)
        figures.append(figure)
        grid(pictures, 12).save(out / f"removed-{name}.png")
        figure, pictures = extended(model, count, langevin_steps=langevin_steps)
        figures.append(figure)
        grid(pictures, 12).save(out / f"extended-{name}.png")
    figures.append(unextended(count))
    found, pictures = refined(base, refiner, count)
    figures += found
    grid(pictures, 12).save(out / "refined.png")
    figures += matched(base, count)
    figure, pictures = seams(base, tiled, max(1, count // 16 * 512**2 // tiled**2))
    figures.append(figure)
    Image.fromarray(pictures[0]).save(out / f"tiled-{tiled}.png")
    change, pictures = softened(base, count)
    grid(pictures, 12).save(out / "softened.png")
    print(*figures, sep="\n")
    print("change per column", *(f"{c:.1f}" for c in change))
    print(json.dumps({**{f.name: round(f.value, 4) for f in figures}, "change": change}))
