"""Render scenes in each style, with labels and depth at each pixel."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from miniature.scenes import COLORS, HOLE, NATIVE, OUTLINES, Item, Point, Scene

Array: TypeAlias = NDArray[np.floating[Any]]

SUPERSAMPLE = 3
PIXEL = 4  # side of one "pixel" of pixel art, in pixels

# Colors are float arrays in 0..1, masks are coverage in 0..1.


def _rgb(color: str) -> Array:
    return np.asarray(COLORS[color], np.float32) / 255


def _mix(a: Array, b: Array | float, share: Array | float) -> Array:
    return (a + (b - a) * share).astype(np.float32)


def _tone(color: Array, tone: float) -> Array:
    """Darker for a negative tone, lighter for a positive one; near white or black, away from it."""
    if tone > 0 and float(color.min()) > 0.9:
        tone = -0.25
    if tone < 0 and float(color.max()) < 0.15:
        tone = 0.3
    return _mix(color, 1.0, tone) if tone > 0 else _mix(color, 0.0, -tone)


def _field(rng: np.random.Generator, height: int, width: int, cell: float) -> Array:
    """Smooth noise of about unit range, with one random value every `cell` pixels."""
    grid = rng.uniform(-1, 1, (math.ceil(height / cell) + 1, math.ceil(width / cell) + 1))
    image = Image.fromarray(grid.astype(np.float32)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    return np.asarray(image, np.float32)


def _over(canvas: Array, color: Array, mask: Array) -> Array:
    return _mix(canvas, color, mask[..., None])


def _shrink(drawn: Image.Image, width: int, height: int) -> Array:
    return np.asarray(drawn.resize((width, height), Image.Resampling.BOX), np.float32) / 255


def _points(item: Item, polygon: list[Point], scale: float) -> list[Point]:
    return [
        ((item.x + x * item.radius) * scale, (item.y + y * item.radius) * scale) for x, y in polygon
    ]


def _fill_mask(scene: Scene, item: Item, polygon: list[Point]) -> Array:
    size = (scene.width * SUPERSAMPLE, scene.height * SUPERSAMPLE)
    drawn = Image.new("L", size)
    ImageDraw.Draw(drawn).polygon(_points(item, polygon, SUPERSAMPLE), fill=255)
    return _shrink(drawn, scene.width, scene.height)


def _line_mask(scene: Scene, item: Item, polygon: list[Point], width: float) -> Array:
    size = (scene.width * SUPERSAMPLE, scene.height * SUPERSAMPLE)
    drawn = Image.new("L", size)
    points = _points(item, polygon, SUPERSAMPLE)
    ImageDraw.Draw(drawn).line(
        [*points, points[0], points[1]],
        fill=255,
        width=max(1, round(width * SUPERSAMPLE)),
        joint="curve",
    )
    return _shrink(drawn, scene.width, scene.height)


def _silhouette(scene: Scene, item: Item) -> Array:
    mask = np.zeros((scene.height, scene.width), np.float32)
    for polygon, tone in OUTLINES[item.shape]:
        part = _fill_mask(scene, item, polygon)
        mask = mask * (1 - part) if tone == HOLE else np.maximum(mask, part)
    return mask


def _background(scene: Scene, rng: np.random.Generator) -> Array:
    """The background in full color, (height, width, 3)."""
    height, width = scene.height, scene.width
    unit = min(height, width) / NATIVE
    rows = np.arange(height, dtype=np.float32)[:, None]
    columns = np.arange(width, dtype=np.float32)[None]
    canvas = np.empty((height, width, 3), np.float32)
    if scene.background == "grass":
        canvas[:] = (0.72, 0.88, 0.98)
        phase = rng.uniform(0, 6.28)
        horizon = height * rng.uniform(0.42, 0.55) + 5 * unit * np.sin(
            columns / (22 * unit) + phase
        )
        return _over(canvas, np.asarray((0.47, 0.75, 0.28), np.float32), _step(rows - horizon))
    if scene.background == "sky":
        canvas[:] = (0.55, 0.79, 0.98)
        clouds = np.zeros((height, width), np.float32)
        for _ in range(3):
            x, y = rng.uniform(0, width), rng.uniform(0.05, 0.95) * height
            for dx, r in ((-11, 8), (0, 11), (12, 8)):
                distance = np.hypot(columns - x - dx * unit, (rows - y) * 1.5)
                clouds = np.maximum(clouds, _step(r * unit - distance))
        return _over(canvas, np.ones(3, np.float32), clouds)
    if scene.background == "night":
        canvas[:] = (0.07, 0.09, 0.27)
        stars = np.zeros((height, width), np.float32)
        for _ in range(14):
            x, y = rng.uniform(3, width - 3), rng.uniform(3, height - 3)
            stars = np.maximum(stars, _step(2.0 * unit - np.hypot(columns - x, rows - y)))
        return _over(canvas, np.asarray((1.0, 0.96, 0.7), np.float32), stars)
    if scene.background == "sea":
        canvas[:] = (0.10, 0.42, 0.72)
        waves = np.sin((rows + 3 * np.sin(columns * (2 * math.pi / 32))) * (2 * math.pi / 16))
        light = np.asarray((0.35, 0.66, 0.88), np.float32)
        return _over(canvas, light, np.clip(waves * 2 - 0.4, 0, 1))
    canvas[:] = _rgb(scene.background)
    return canvas


def labels(scene: Scene) -> NDArray[np.int64]:
    """Which of `OUTLINES` is at each pixel, (height, width); −1 where none is."""
    found = np.full((scene.height, scene.width), -1, np.int64)
    for item in scene.objects:
        found[_silhouette(scene, item) > 0.5] = list(OUTLINES).index(item.shape)
    return found


FAR = 40
"""The depth of backgrounds, of 255."""


def depth(scene: Scene) -> NDArray[np.uint8]:
    """How near everything is, (height, width): far is dark. The larger an object, the nearer.

    Objects are domed: the further a place is from their edge, the nearer.
    """
    near = np.full((scene.height, scene.width), FAR, np.float32)
    for item in scene.objects:
        solid = np.rint(255 * _silhouette(scene, item)).astype(np.uint8)
        inside = np.asarray(cv2.distanceTransform((solid > 127).astype(np.uint8), cv2.DIST_L2, 3))
        share = item.radius / (min(scene.width, scene.height) / 2)
        dome = 110 + 90 * share + 40 * np.sqrt(np.clip(inside / item.radius, 0, 1))
        near = _mix(near, dome, solid.astype(np.float32) / 255)
    return np.rint(near.clip(0, 255)).astype(np.uint8)


def _step(distance: Array) -> Array:
    """An antialiased edge: 0 below −0.5, 1 above 0.5 pixels."""
    return np.clip(distance + 0.5, 0, 1).astype(np.float32)


def _flat(scene: Scene, rng: np.random.Generator) -> Array:
    canvas = _background(scene, rng)
    for item in scene.objects:
        below = canvas
        for polygon, tone in OUTLINES[item.shape]:
            mask = _fill_mask(scene, item, polygon)
            color = below if tone == HOLE else _tone(_rgb(item.color), tone)
            canvas = _over(canvas, color, mask)
    return canvas


def _pencil(scene: Scene, rng: np.random.Generator) -> Array:
    canvas = _mix(_background(scene, rng), 1.0, 0.55)
    rows, columns = np.indices((scene.height, scene.width), dtype=np.float32)
    hatch = 0.5 + 0.5 * np.sin((rows + columns) * (2 * math.pi / 8))
    for item in scene.objects:
        color = _rgb(item.color)
        canvas = _over(canvas, color, _silhouette(scene, item) * (0.45 + 0.4 * hatch))
        dark = _mix(color, 0.12, 0.62)
        width = 2.6 * item.radius**0.25 / 30**0.25
        for polygon, _ in OUTLINES[item.shape]:
            canvas = _over(canvas, dark, 0.9 * _line_mask(scene, item, polygon, width))
    return canvas


def _watercolor(scene: Scene, rng: np.random.Generator) -> Array:
    height, width = scene.height, scene.width
    wash = _field(rng, height, width, 28)
    canvas = _mix(_background(scene, rng), 1.0, (0.34 + 0.16 * wash)[..., None])
    rows, columns = np.indices((height, width), dtype=np.float32)
    shift_x, shift_y = _field(rng, height, width, 13) * 1.8, _field(rng, height, width, 13) * 1.8
    at_x = np.clip(np.rint(columns + shift_x), 0, width - 1).astype(np.intp)
    at_y = np.clip(np.rint(rows + shift_y), 0, height - 1).astype(np.intp)
    for item in scene.objects:
        pigment = _field(rng, height, width, 18)
        color = _rgb(item.color)
        mask = _silhouette(scene, item)[at_y, at_x]
        canvas = _over(canvas, color, mask * (0.78 + 0.16 * pigment))
        soft = Image.fromarray((mask * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(2.2))
        rim = mask * (1 - np.asarray(soft, np.float32) / 255) * 1.5
        canvas = _over(canvas, _tone(color, -0.45), np.clip(rim, 0, 1) * 0.85)
        for polygon, tone in OUTLINES[item.shape]:
            if tone not in (0.0, HOLE):
                part = _fill_mask(scene, item, polygon)[at_y, at_x]
                canvas = _over(canvas, _tone(color, tone), part * 0.8)
    edge = np.minimum(np.minimum(rows, height - 1 - rows), np.minimum(columns, width - 1 - columns))
    margin = 6.5 * min(width, height) / NATIVE + 1.6 * _field(rng, height, width, 16)
    return _over(canvas, np.full(3, 0.985, np.float32), 1 - np.clip((edge - margin) / 2, 0, 1))


def _is_detail(polygon: list[Point]) -> bool:
    """Return whether a part is too small for a separate neon tube, such as eyes and spots."""
    return max(np.ptp([x for x, _ in polygon]), np.ptp([y for _, y in polygon])) < 0.5


def _neon(scene: Scene, rng: np.random.Generator) -> Array:
    canvas = _mix(_background(scene, rng), 0.02, 0.72)
    for item in scene.objects:
        color = _rgb(item.color)
        width = 3.4 * item.radius**0.3 / 30**0.3
        tubes = np.zeros(canvas.shape[:2], np.float32)
        for polygon, _ in OUTLINES[item.shape]:
            if not _is_detail(polygon):
                tubes = np.maximum(tubes, _line_mask(scene, item, polygon, width))
        image = Image.fromarray((tubes * 255).astype(np.uint8))
        glow = np.asarray(image.filter(ImageFilter.GaussianBlur(5.5)), np.float32) / 255
        canvas = _over(canvas, color, np.clip(glow * 1.1, 0, 0.75))
        canvas = _over(canvas, _mix(color, 1.0, 0.22), tubes)
    return canvas


def _pixel(scene: Scene, rng: np.random.Generator) -> Array:
    height, width = scene.height // PIXEL, scene.width // PIXEL

    def reduce(values: Array) -> Array:
        tail = values.shape[2:]
        cells = values[: height * PIXEL, : width * PIXEL]
        return cells.reshape(height, PIXEL, width, PIXEL, *tail).mean((1, 3))

    canvas = reduce(_background(scene, rng))
    for item in scene.objects:
        below = canvas
        solid = reduce(_silhouette(scene, item)) > 0.5
        padded = np.pad(solid, 1)
        around = padded[2:, 1:-1] | padded[:-2, 1:-1] | padded[1:-1, 2:] | padded[1:-1, :-2]
        outline = (around & ~solid).astype(np.float32)
        dark = _mix(_rgb(item.color), 0.03, 0.68)
        canvas = _over(canvas, dark, outline)
        for polygon, tone in OUTLINES[item.shape]:
            mask = (reduce(_fill_mask(scene, item, polygon)) > 0.5).astype(np.float32)
            color = below if tone == HOLE else _tone(_rgb(item.color), tone)
            canvas = _over(canvas, color, mask * (solid | (tone == HOLE)))
        holes = (~solid).astype(np.float32) * (1 - outline)
        canvas = _mix(canvas, below, holes[..., None])
    large = canvas.repeat(PIXEL, 0).repeat(PIXEL, 1)
    missing = ((0, scene.height - large.shape[0]), (0, scene.width - large.shape[1]), (0, 0))
    return np.pad(large, missing, mode="edge")


def _comic(scene: Scene, rng: np.random.Generator) -> Array:
    canvas = _background(scene, rng)
    unit = min(scene.height, scene.width) / NATIVE
    rows, columns = np.indices((scene.height, scene.width), dtype=np.float32)
    angle = np.arctan2(rows - scene.height / 2, columns - scene.width / 2) + rng.uniform(0, 1)
    distance = np.hypot(rows - scene.height / 2, columns - scene.width / 2)
    rays = _step(np.sin(6 * angle) * distance / 6)  # an edge of a pixel, however far out
    canvas = _mix(canvas, _mix(canvas, 1.0, 0.55), rays[..., None])
    ink = np.asarray((0.03, 0.03, 0.05), np.float32)
    for item in scene.objects:
        below = canvas
        for polygon, tone in OUTLINES[item.shape]:
            color = below if tone == HOLE else _tone(_rgb(item.color), tone)
            canvas = _over(canvas, color, _fill_mask(scene, item, polygon))
            if not _is_detail(polygon):
                canvas = _over(canvas, ink, _line_mask(scene, item, polygon, 3.4 * unit))
    return canvas


def _sticker(scene: Scene, rng: np.random.Generator) -> Array:
    canvas = _background(scene, rng)
    unit = min(scene.height, scene.width) / NATIVE
    for item in scene.objects:
        solid = np.rint(255 * _silhouette(scene, item)).astype(np.uint8)
        outside = (solid < 128).astype(np.uint8)
        border = _step(6 * unit - np.asarray(cv2.distanceTransform(outside, cv2.DIST_L2, 5)))
        shift = np.asarray([[1, 0, 3 * unit], [0, 1, 4 * unit]], np.float32)
        shadow = cv2.warpAffine(border, shift, (scene.width, scene.height))
        shadow = cv2.GaussianBlur(shadow, (0, 0), 2.5 * unit)
        canvas = _over(canvas, np.zeros(3, np.float32), 0.6 * np.asarray(shadow, np.float32))
        canvas = _over(canvas, np.ones(3, np.float32), border)
        for polygon, tone in OUTLINES[item.shape]:
            color = np.ones(3, np.float32) if tone == HOLE else _tone(_rgb(item.color), tone)
            canvas = _over(canvas, color, _fill_mask(scene, item, polygon))
    return canvas


PAINTERS: dict[str, Callable[[Scene, np.random.Generator], Array]] = {
    "flat illustration": _flat,
    "pencil sketch": _pencil,
    "watercolor": _watercolor,
    "neon sign": _neon,
    "pixel art": _pixel,
    "comic": _comic,
    "sticker": _sticker,
}


def render(scene: Scene) -> NDArray[np.uint8]:
    """Paint a scene: (height, width, 3) in 0..255."""
    canvas = PAINTERS[scene.style](scene, np.random.default_rng(scene.texture))
    return np.rint(np.clip(canvas, 0, 1) * 255).astype(np.uint8)
