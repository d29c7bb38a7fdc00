"""The report card of masks and stages: what is painted where, and what stays as it was."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from overpaint.diffusion.windows import starts
from overpaint.models.checkpoint import load_model
from overpaint.models.model import Model
from overpaint.request import Request

from .judge import Judge, truth
from .measure import FIRST_SEED, Figure, as_picture, grid, paint
from .scenes import NATIVE, SHAPES, Item, Scene, allowed_colours, caption, draw_scene, render

MARGIN = 1.25  # of an object's radius: what a mask covers around it
UNLIKE = 15.0  # ΔE beyond which a pixel is not of the background
SIDE = 32  # pixels that a picture is extended by
STEPS = 20
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


def _around(item: Item) -> Pixels:
    """A white box around an object on black, (NATIVE, NATIVE)."""
    mask = np.zeros((NATIVE, NATIVE), np.uint8)
    reach = MARGIN * item.radius
    top, left = max(0, round(item.y - reach)), max(0, round(item.x - reach))
    mask[top : round(item.y + reach), left : round(item.x + reach)] = 255
    return mask


def _difference(a: Pixels, b: Pixels) -> NDArray[np.float32]:
    """ΔE (CIE 1976) of pictures (n, h, w, 3)."""
    labs = [
        np.stack([cv2.cvtColor(p.astype(np.float32) / 255, cv2.COLOR_RGB2LAB) for p in pictures])
        for pictures in (a, b)
    ]
    return np.linalg.norm(labs[0] - labs[1], axis=-1).astype(np.float32)


def other_object(scene: Scene, which: int, rng: np.random.Generator) -> Scene:
    """The scene with another object in the place of one."""
    taken = {item.shape for item in scene.objects}
    shapes = [shape for shape in SHAPES if shape not in taken]
    old = scene.objects[which]
    colours = [c for c in allowed_colours(scene.style, scene.background) if c != old.colour]
    new = dataclasses.replace(
        old,
        shape=shapes[int(rng.integers(len(shapes)))],
        colour=colours[int(rng.integers(len(colours)))],
    )
    objects = tuple(new if i == which else item for i, item in enumerate(scene.objects))
    return dataclasses.replace(scene, objects=objects)


def replaced(model: Model, judge: Judge, count: int) -> tuple[list[Figure], Pixels]:
    """One of two objects becomes another; the rest stays to the bit."""
    rng = np.random.default_rng(FIRST_SEED + 3)
    scenes = _scenes(count, 200_000, two=True)
    sources = np.stack([render(s) for s in scenes])
    which = [i % 2 for i in range(count)]
    wanted = [other_object(s, w, rng) for s, w in zip(scenes, which, strict=True)]
    boxes = np.stack([_around(s.objects[w]) for s, w in zip(scenes, which, strict=True)])
    requests = [
        Request(prompt=_caption(after), image=as_picture(source), mask=as_picture(box), seed=i)
        for i, (after, source, box) in enumerate(zip(wanted, sources, boxes, strict=True))
    ]
    painted = paint(model, requests, "replace")
    same = [bool((p == s)[b == 0].all()) for p, s, b in zip(painted, sources, boxes, strict=True)]
    right = [
        truth(after).objects == verdict.objects
        for after, verdict in zip(wanted, judge.read(painted), strict=True)
    ]
    both = [a and b for a, b in zip(right, same, strict=True)]
    wished = 0.9 if model.family.sees_mask else 0.85
    channels = model.family.in_channels
    figures = [
        Figure(f"replaced as prompted, {channels} channels", float(np.mean(both)), wished, count),
        Figure(f"the rest as it was, {channels} channels", float(np.mean(same)), 1.0, count),
    ]
    return figures, np.concatenate([sources[:12], painted[:12]])


def removed(model: Model, count: int) -> tuple[Figure, Pixels]:
    """One object goes; what is there then is as the background around it."""
    scenes = _scenes(count, 300_000, two=False)
    empty = [dataclasses.replace(s, objects=()) for s in scenes]
    sources, wanted = (np.stack([render(s) for s in group]) for group in (scenes, empty))
    boxes = np.stack([_around(s.objects[0]) for s in scenes])
    requests = [
        Request(
            prompt=_caption(after),
            image=as_picture(source),
            mask=as_picture(box),
            task="remove",
            seed=i,
        )
        for i, (after, source, box) in enumerate(zip(empty, sources, boxes, strict=True))
    ]
    painted = paint(model, requests, "remove")
    gone = [
        float((d[b > 0] < UNLIKE).mean()) > 0.95
        for d, b in zip(_difference(painted, wanted), boxes, strict=True)
    ]
    figure = Figure("removed: the background around it", float(np.mean(gone)), 0.8, count)
    return figure, np.concatenate([sources[:12], painted[:12]])


def _seam(pictures: Pixels, boxes: Pixels) -> float:
    """ΔE between the mean colours of the bands at both sides of the masks' borders."""
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
    """Pictures repainted as what they are within a box; how visible its border is."""
    scenes = _scenes(count, 700_000, two=False)
    sources = np.stack([render(s) for s in scenes])
    boxes = np.zeros((count, NATIVE, NATIVE), np.uint8)
    boxes[:, 24:104, 24:104] = 255
    figures = [Figure("ΔE over the mask's border, before", _seam(sources, boxes), 0.0, count)]
    for match in (False, True):
        requests = [
            Request(
                prompt=_caption(scene),
                image=as_picture(source),
                mask=as_picture(box),
                task="retouch",
                crop="off",
                match_colours=match,
                seed=i,
            )
            for i, (scene, source, box) in enumerate(zip(scenes, sources, boxes, strict=True))
        ]
        name = "colours matched" if match else "colours as painted"
        step = _seam(paint(model, requests, name), boxes)
        figures.append(Figure(f"ΔE over the mask's border, {name}", step, 0.0, count))
    return figures


def seams(model: Model, side: int, count: int) -> tuple[Figure, Pixels]:
    """Pictures of `side` × `side` by a tiled second stage; the gradient across windows' edges.

    The figure is its mean over the mean elsewhere.
    """
    requests = [
        Request(
            prompt=_caption(scene),
            width=side // 4,
            height=side // 4,
            upscale=4.0,
            refine_strength=0.4,
            refine_steps=4,
            seed=i,
        )
        for i, scene in enumerate(_scenes(count, 800_000, two=True))
    ]
    painted = paint(model, requests, f"tiled {side}²")
    cells, window = side // model.vae_factor, model.native_size // model.vae_factor
    firsts = starts(cells, window)
    edges = {model.vae_factor * at for at in (*firsts, *(s + window for s in firsts))} - {0, side}
    at = np.isin(np.arange(1, side), sorted(edges))
    grey = painted.astype(np.float32).mean(3)
    both = [np.abs(np.diff(grey, axis=axis)).mean((0, 3 - axis)) for axis in (1, 2)]
    ratio = float(np.mean([steps[at].mean() / steps[~at].mean() for steps in both]))
    return Figure(f"gradient at windows' edges over elsewhere, {side}²", ratio, 1.0, count), painted


def extended(model: Model, count: int) -> tuple[Figure, Pixels]:
    """Pictures with more room at the right; ΔE over the border, wanted at most 5."""
    scenes = _scenes(count, 400_000, two=False)
    sources = np.stack([render(s) for s in scenes])[:, :, : NATIVE - SIDE]
    requests = [
        Request(prompt=_caption(scene), image=as_picture(source), extend=(0, 0, SIDE, 0), seed=i)
        for i, (scene, source) in enumerate(zip(scenes, sources, strict=True))
    ]
    painted = paint(model, requests, "extend")
    edge = NATIVE - SIDE
    inside, outside = (painted[:, :, edge - 3 : edge], painted[:, :, edge : edge + 3])
    means = [p.mean(2, keepdims=True).round().astype(np.uint8) for p in (inside, outside)]
    step = float(_difference(means[0], means[1]).mean())
    return Figure("extended: ΔE over the border (at most)", step, 5.0, count), painted[:24]


def _edges(pictures: Pixels) -> NDArray[np.float32]:
    """Fine edges: what a Laplacian sees in the brightness, (n, h, w)."""
    grey = [cv2.cvtColor(p, cv2.COLOR_RGB2GRAY).astype(np.float32) for p in pictures]
    return np.stack([cv2.Laplacian(g, cv2.CV_32F) for g in grey])


def refined(model: Model, refiner: Model, count: int) -> tuple[list[Figure], Pixels]:
    """Renders repainted as what they are, by the base alone and with the refiner behind it.

    The figure is the correlation of fine edges with the render's, in the mean.
    """
    scenes = _scenes(count, 500_000, two=True)
    sources = np.stack([render(s) for s in scenes])
    painted: list[Pixels] = []
    for second in (None, refiner):
        requests = [
            Request(
                prompt=_caption(scene),
                image=as_picture(source),
                strength=STRENGTH,
                num_inference_steps=STEPS,
                seed=i,
                refiner=second and second.name,
            )
            for i, (scene, source) in enumerate(zip(scenes, sources, strict=True))
        ]
        painted.append(paint(model, requests, "refine" if second else "base alone", second))
    true = _edges(sources)
    alone, together = (
        float(
            np.mean([np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(e, true, strict=True)])
        )
        for e in map(_edges, painted)
    )
    figures = [
        Figure("fine edges, base alone", alone, 0.0, count),
        Figure("fine edges, with the refiner", together, alone, count),
    ]
    return figures, np.concatenate([sources[:12], painted[0][:12], painted[1][:12]])


def softened(model: Model, count: int) -> tuple[list[float], Pixels]:
    """A mask that rises from left to right: the mean change of eight columns, in levels."""
    rng = np.random.default_rng(FIRST_SEED + 4)
    scenes = _scenes(count, 600_000, two=False)
    sources = np.stack([render(s) for s in scenes])
    others = [draw_scene(rng, held_out=True, two=False) for _ in scenes]
    mask = np.broadcast_to(np.linspace(0, 255, NATIVE).round().astype(np.uint8), (NATIVE, NATIVE))
    requests = [
        Request(
            prompt=_caption(other),
            image=as_picture(source),
            mask=as_picture(mask),
            strength=1.0,
            crop="off",
            match_colours=False,
            seed=i,
        )
        for i, (other, source) in enumerate(zip(others, sources, strict=True))
    ]
    painted = paint(model, requests, "soft mask")
    change = np.abs(painted.astype(np.float32) - sources).mean((0, 1, 3))
    return change.reshape(8, -1).mean(1).tolist(), np.concatenate([sources[:12], painted[:12]])


def report(names: Sequence[str], judge: Judge, out: Path, *, count: int, tiled: int = 512) -> None:
    """Measure everything with base, inpainting UNet and refiner; pictures go into `out`.

    `tiled` is the side of the pictures whose second stage is tiled.
    """
    out.mkdir(parents=True, exist_ok=True)
    base, inpaint, refiner = (load_model(name) for name in names)
    figures: list[Figure] = []
    for model in (base, inpaint):
        found, pictures = replaced(model, judge, count)
        figures += found
        grid(pictures, 12).save(out / f"replaced-{model.family.in_channels}.png")
        figure, pictures = removed(model, count)
        figures.append(dataclasses.replace(figure, name=f"{figure.name}, {model.name}"))
        grid(pictures, 12).save(out / f"removed-{model.family.in_channels}.png")
        figure, pictures = extended(model, count)
        figures.append(dataclasses.replace(figure, name=f"{figure.name}, {model.name}"))
        grid(pictures, 12).save(out / f"extended-{model.family.in_channels}.png")
    found, pictures = refined(base, refiner, count)
    figures += found
    grid(pictures, 12).save(out / "refined.png")
    figures += matched(base, count)
    figure, pictures = seams(base, tiled, max(1, count // 50))
    figures.append(figure)
    Image.fromarray(pictures[0]).save(out / f"tiled-{tiled}.png")
    change, pictures = softened(base, count)
    grid(pictures, 12).save(out / "softened.png")
    for figure in figures:
        print(f"{figure.name:60} {figure.value:8.3f}  wanted {figure.wanted:g}")
    print("change per column", *(f"{c:.1f}" for c in change))
    print(json.dumps({**{f.name: round(f.value, 4) for f in figures}, "change": change}))
