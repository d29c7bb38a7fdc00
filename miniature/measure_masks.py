"""The report card of masks and stages: what is painted where, and what stays as it was."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

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


def report(names: Sequence[str], judge: Judge, out: Path, *, count: int) -> None:
    """Measure everything with base, inpainting UNet and refiner; pictures go into `out`."""
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
    change, pictures = softened(base, count)
    grid(pictures, 12).save(out / "softened.png")
    for figure in figures:
        print(f"{figure.name:60} {figure.value:8.3f}  wanted {figure.wanted:g}")
    print("change per column", *(f"{c:.1f}" for c in change))
    print(json.dumps({**{f.name: round(f.value, 4) for f in figures}, "change": change}))
