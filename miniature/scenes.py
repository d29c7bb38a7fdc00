"""Procedural captioned scenes: what the miniature learns to paint.

A `Scene` is the ground truth (style, background, objects, relation); `draw_scene` samples one from
a generator, `render` paints it and `caption` describes it. All three are pure functions of their
arguments, so a seed names one picture and one sentence.

Rules that keep every attribute readable in every style:

* an object never has the colour of its background, nor one that vanishes on a scenic background
  (`SCENIC_CLASHES`);
* pencil sketches and watercolors show the background as a pale tint, so plain black is left out;
* neon signs glow on a dark tint of the background's colour: plain backgrounds only, neither white
  nor gray, and no black, gray or brown tubes.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

T = TypeVar("T")

NATIVE = 128
SUPERSAMPLE = 3
PIXEL = 4  # side of one "pixel" of pixel art, in pixels

Point: TypeAlias = tuple[float, float]
Array: TypeAlias = NDArray[np.floating[Any]]

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 38, 42),
    "orange": (247, 134, 28),
    "yellow": (252, 218, 52),
    "green": (46, 156, 66),
    "cyan": (54, 200, 206),
    "blue": (38, 78, 206),
    "purple": (128, 54, 176),
    "pink": (250, 140, 190),
    "brown": (122, 76, 40),
    "white": (248, 248, 248),
    "gray": (136, 136, 140),
    "black": (24, 24, 30),
}
PLAIN_BACKGROUNDS = (
    "white", "gray", "black", "yellow", "orange", "green", "cyan", "blue", "purple", "pink",
)  # fmt: skip
SCENIC_BACKGROUNDS = ("grass", "sky", "night", "sea")
BACKGROUNDS = PLAIN_BACKGROUNDS + SCENIC_BACKGROUNDS
SCENIC_CLASHES = {
    "grass": ("green", "cyan"),
    "sky": ("white", "cyan"),
    "night": ("black", "blue"),
    "sea": ("blue", "cyan"),
}
STYLES = ("flat illustration", "pencil sketch", "watercolor", "neon sign", "pixel art")
RELATIONS = ("above", "below", "left of", "right of")
OPPOSITE = {"above": "below", "below": "above", "left of": "right of", "right of": "left of"}
NEON_BACKGROUNDS = tuple(b for b in PLAIN_BACKGROUNDS if b not in ("white", "gray"))
NEON_COLOURS = tuple(c for c in COLOURS if c not in ("black", "gray", "brown"))


# Shapes: polygons in a unit box (x right, y down, -1..1), each with a tone: 0 the object's colour,
# negative darker, positive lighter.


def _ellipse(cx: float, cy: float, rx: float, ry: float, start: float = 0, stop: float = 360):
    angles = np.radians(np.linspace(start, stop, 33))
    return [(cx + rx * math.cos(a), cy + ry * math.sin(a)) for a in angles]


def _box(x0: float, y0: float, x1: float, y1: float) -> list[Point]:
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def _star() -> list[Point]:
    radii = (1.0, 0.42)
    return [
        (
            radii[i % 2] * math.sin(i * math.pi / 5),
            0.06 - radii[i % 2] * math.cos(i * math.pi / 5),
        )
        for i in range(10)
    ]


def _heart() -> list[Point]:
    ts = np.linspace(0, 2 * math.pi, 41)
    return [
        (
            math.sin(t) ** 3,
            -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16,
        )
        for t in ts
    ]


def _moon() -> list[Point]:
    outer = _ellipse(-0.1, 0, 0.95, 0.95, 50, 310)
    inner = _ellipse(0.28, 0, 0.72, 0.74, 295, 65)
    return outer + inner


def _flower() -> list[tuple[list[Point], float]]:
    petals = [
        _ellipse(0.6 * math.sin(a), -0.6 * math.cos(a), 0.36, 0.36)
        for a in np.arange(5) * math.pi / 2.5
    ]
    return [(p, 0.0) for p in petals] + [(_ellipse(0, 0, 0.34, 0.34), 0.6)]


SHAPES: dict[str, list[tuple[list[Point], float]]] = {
    "circle": [(_ellipse(0, 0, 0.92, 0.92), 0)],
    "square": [(_box(-0.82, -0.82, 0.82, 0.82), 0)],
    "triangle": [([(0, -0.92), (0.98, 0.8), (-0.98, 0.8)], 0)],
    "star": [(_star(), 0)],
    "heart": [(_heart(), 0)],
    "moon": [(_moon(), 0)],
    "flower": _flower(),
    "house": [
        (_box(-0.72, -0.1, 0.72, 0.92), 0),
        ([(0, -0.98), (1, -0.06), (-1, -0.06)], -0.35),
        (_box(-0.2, 0.34, 0.2, 0.92), 0.6),
    ],
    "tree": [
        (_box(-0.2, 0.45, 0.2, 1), -0.4),
        ([(0, -0.3), (0.88, 0.58), (-0.88, 0.58)], 0),
        ([(0, -1), (0.66, 0.06), (-0.66, 0.06)], 0),
    ],
    "fish": [
        ([(0.3, 0), (1, -0.62), (1, 0.62)], -0.25),
        (_ellipse(-0.2, 0, 0.78, 0.52), 0),
        (_ellipse(-0.6, -0.12, 0.13, 0.13), 0.75),
    ],
    "cat": [
        ([(-0.82, -0.98), (-0.1, -0.5), (-0.8, 0.1)], 0),
        ([(0.82, -0.98), (0.1, -0.5), (0.8, 0.1)], 0),
        (_ellipse(0, 0.16, 0.86, 0.76), 0),
        (_ellipse(-0.34, 0.02, 0.15, 0.2), 0.75),
        (_ellipse(0.34, 0.02, 0.15, 0.2), 0.75),
        ([(-0.17, 0.38), (0.17, 0.38), (0, 0.58)], -0.5),
    ],
    "car": [
        ([(-0.55, -0.1), (-0.32, -0.6), (0.36, -0.6), (0.62, -0.1)], 0),
        (_box(-1, -0.14, 1, 0.4), 0),
        ([(-0.34, -0.12), (-0.2, -0.44), (0.26, -0.44), (0.4, -0.12)], 0.7),
        (_ellipse(-0.52, 0.42, 0.27, 0.27), -0.6),
        (_ellipse(0.52, 0.42, 0.27, 0.27), -0.6),
    ],
    "boat": [
        ([(-1, 0.3), (1, 0.3), (0.62, 0.88), (-0.62, 0.88)], -0.3),
        ([(-0.05, -0.98), (-0.05, 0.2), (-0.8, 0.2)], 0),
        ([(0.1, -0.74), (0.1, 0.2), (0.74, 0.2)], 0.45),
    ],
    "cup": [
        (_ellipse(0.6, 0.02, 0.42, 0.42), -0.25),
        (_ellipse(0.6, 0.02, 0.2, 0.2), 2.0),
        ([(-0.86, -0.7), (0.6, -0.7), (0.44, 0.84), (-0.7, 0.84)], 0),
        (_ellipse(-0.13, -0.7, 0.73, 0.17), -0.4),
    ],
    "mushroom": [
        ([(-0.3, 0.0), (0.3, 0.0), (0.4, 0.94), (-0.4, 0.94)], 0.65),
        (_ellipse(0, 0.12, 0.98, 0.98, 180, 360), 0),
        (_ellipse(-0.4, -0.28, 0.17, 0.17), 0.65),
        (_ellipse(0.3, -0.42, 0.19, 0.19), 0.65),
    ],
    "key": [
        (_ellipse(-0.52, 0, 0.46, 0.46), 0),
        (_ellipse(-0.52, 0, 0.19, 0.19), 2.0),
        (_box(-0.1, -0.15, 1, 0.15), 0),
        (_box(0.42, 0.1, 0.6, 0.5), 0),
        (_box(0.78, 0.1, 0.98, 0.5), 0),
    ],
}
HOLE = 2.0  # the tone of a part through which the background shows


@dataclass(frozen=True)
class Item:
    """One object: its centre and radius are in pixels of the frame."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float
    size: str = ""  # "small", "large" or "" for in between


@dataclass(frozen=True)
class Scene:
    """A scene's ground truth; `relation` is that of the first object to the second."""

    style: str
    background: str
    objects: tuple[Item, ...]
    relation: str | None
    width: int
    height: int
    texture: int

    @property
    def key(self) -> str:
        """What a full caption says, placement and texture apart."""
        objects = [f"{o.colour} {o.shape}" for o in self.objects]
        return "|".join([self.style, self.background, *objects, self.relation or ""])

    @property
    def held_out(self) -> bool:
        """Whether this combination is kept from training: one in eight, by a checksum of `key`."""
        return zlib.crc32(self.key.encode()) % 8 == 0

    @property
    def ordered(self) -> tuple[Item, ...]:
        """The objects from left to right, or from top to bottom where the relation is vertical."""
        if self.relation in ("below", "right of"):
            return self.objects[::-1]
        return self.objects


def allowed_backgrounds(style: str) -> tuple[str, ...]:
    """The backgrounds that a style can show."""
    if style == "neon sign":
        return NEON_BACKGROUNDS
    if style in ("pencil sketch", "watercolor"):
        return tuple(b for b in BACKGROUNDS if b != "black")
    return BACKGROUNDS


def allowed_colours(style: str, background: str) -> tuple[str, ...]:
    """The object colours that can be told from the background in a style."""
    colours = NEON_COLOURS if style == "neon sign" else tuple(COLOURS)
    clashes = SCENIC_CLASHES.get(background, (background,))
    return tuple(c for c in colours if c not in clashes)


def _choice(rng: np.random.Generator, values: tuple[T, ...]) -> T:
    return values[int(rng.integers(len(values)))]


def draw_scene(
    rng: np.random.Generator,
    width: int = NATIVE,
    height: int = NATIVE,
    *,
    held_out: bool | None = False,
    two: bool | None = None,
) -> Scene:
    """Sample a scene for a frame of `width` × `height` pixels.

    `held_out` False gives training combinations, True the others, None either. `two` asks for two
    objects or for one; by default three scenes in five have two.
    """
    while True:
        scene = _draw(rng, width, height, rng.random() < 0.6 if two is None else two)
        if held_out is None or scene.held_out == held_out:
            return scene


def _draw(rng: np.random.Generator, width: int, height: int, two: bool) -> Scene:
    style = _choice(rng, STYLES)
    background = _choice(rng, allowed_backgrounds(style))
    colours = allowed_colours(style, background)
    names = [str(n) for n in rng.permutation(list(SHAPES))[: 2 if two else 1]]
    side = min(width, height)
    relation = _choice(rng, RELATIONS) if two else None
    if relation is None:
        size = str(rng.choice(["small", "", "", "large"]))
        low, high = {"small": (0.17, 0.21), "": (0.25, 0.35), "large": (0.38, 0.43)}[size]
        radius = side * rng.uniform(low, high)
        places = [_jitter(rng, width, height, radius)]
        radii = [radius]
    else:
        size = ""
        radii = [side * rng.uniform(0.195, 0.228) for _ in range(2)]
        places = _pair(rng, width, height, relation, radii)
    items = tuple(
        Item(name, _choice(rng, colours), x, y, radius, size)
        for name, (x, y), radius in zip(names, places, radii, strict=True)
    )
    return Scene(style, background, items, relation, width, height, int(rng.integers(2**31)))


def draw_anywhere(rng: np.random.Generator, *, held_out: bool | None = False) -> Scene:
    """Sample a native scene whose objects are of any size and anywhere, in no relation."""
    while True:
        scene = _scattered(rng, draw_scene(rng, held_out=None))
        if held_out is None or scene.held_out == held_out:
            return scene


def _scattered(rng: np.random.Generator, scene: Scene) -> Scene:
    """The scene with its objects somewhere else, and of another size."""
    most = 0.43 if len(scene.objects) == 1 else 0.25
    while True:
        radii = [NATIVE * rng.uniform(0.16, most) for _ in scene.objects]
        places = [rng.uniform(r + 3, NATIVE - r - 3, 2) for r in radii]
        if len(radii) == 1 or np.hypot(*(places[0] - places[1])) > 1.15 * sum(radii):
            break
    items = [
        replace(item, x=float(x), y=float(y), radius=radius, size="")
        for item, (x, y), radius in zip(scene.objects, places, radii, strict=True)
    ]
    return replace(scene, objects=tuple(items), relation=None)


def _jitter(rng: np.random.Generator, width: int, height: int, radius: float) -> Point:
    free_x, free_y = width / 2 - radius - 5, height / 2 - radius - 5
    x = width / 2 + 0.5 * free_x * rng.uniform(-1, 1)
    y = height / 2 + 0.5 * free_y * rng.uniform(-1, 1)
    return x, y


def _pair(
    rng: np.random.Generator, width: int, height: int, relation: str, radii: list[float]
) -> list[Point]:
    """Centres of two objects that stand in `relation` and do not touch."""
    vertical = relation in ("above", "below")
    length, across = (height, width) if vertical else (width, height)
    points: list[Point] = []
    for i, radius in enumerate(radii):
        first = (i == 0) == (relation in ("above", "left of"))
        near = length * (0.255 if first else 0.745) + length * 0.015 * rng.uniform(-1, 1)
        side = across / 2 + (across / 2 - radius - 6) * 0.35 * rng.uniform(-1, 1)
        points.append((side, near) if vertical else (near, side))
    return points


# Rendering: colours are float arrays in 0..1, masks are coverage in 0..1.


def _rgb(colour: str) -> Array:
    return np.asarray(COLOURS[colour], np.float32) / 255


def _mix(a: Array, b: Array | float, share: Array | float) -> Array:
    return (a + (b - a) * share).astype(np.float32)


def _tone(colour: Array, tone: float) -> Array:
    """Darker for a negative tone, lighter for a positive one; near white or black, away from it."""
    if tone > 0 and float(colour.min()) > 0.9:
        tone = -0.25
    if tone < 0 and float(colour.max()) < 0.15:
        tone = 0.3
    return _mix(colour, 1.0, tone) if tone > 0 else _mix(colour, 0.0, -tone)


def _field(rng: np.random.Generator, height: int, width: int, cell: float) -> Array:
    """Smooth noise of about unit range, with one random value every `cell` pixels."""
    grid = rng.uniform(-1, 1, (math.ceil(height / cell) + 1, math.ceil(width / cell) + 1))
    image = Image.fromarray(grid.astype(np.float32)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    return np.asarray(image, np.float32)


def _over(canvas: Array, colour: Array, mask: Array) -> Array:
    return _mix(canvas, colour, mask[..., None])


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
    for polygon, tone in SHAPES[item.shape]:
        part = _fill_mask(scene, item, polygon)
        mask = mask * (1 - part) if tone == HOLE else np.maximum(mask, part)
    return mask


def _background(scene: Scene, rng: np.random.Generator) -> Array:
    """The background in full colour, (height, width, 3)."""
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
    """Which of `SHAPES` is at each pixel, (height, width); −1 where none is."""
    found = np.full((scene.height, scene.width), -1, np.int64)
    for item in scene.objects:
        found[_silhouette(scene, item) > 0.5] = list(SHAPES).index(item.shape)
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
        for polygon, tone in SHAPES[item.shape]:
            mask = _fill_mask(scene, item, polygon)
            colour = below if tone == HOLE else _tone(_rgb(item.colour), tone)
            canvas = _over(canvas, colour, mask)
    return canvas


def _pencil(scene: Scene, rng: np.random.Generator) -> Array:
    canvas = _mix(_background(scene, rng), 1.0, 0.55)
    rows, columns = np.indices((scene.height, scene.width), dtype=np.float32)
    hatch = 0.5 + 0.5 * np.sin((rows + columns) * (2 * math.pi / 8))
    for item in scene.objects:
        colour = _rgb(item.colour)
        canvas = _over(canvas, colour, _silhouette(scene, item) * (0.45 + 0.4 * hatch))
        dark = _mix(colour, 0.12, 0.62)
        width = 2.6 * item.radius**0.25 / 30**0.25
        for polygon, _ in SHAPES[item.shape]:
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
        colour = _rgb(item.colour)
        mask = _silhouette(scene, item)[at_y, at_x]
        canvas = _over(canvas, colour, mask * (0.78 + 0.16 * pigment))
        soft = Image.fromarray((mask * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(2.2))
        rim = mask * (1 - np.asarray(soft, np.float32) / 255) * 1.5
        canvas = _over(canvas, _tone(colour, -0.45), np.clip(rim, 0, 1) * 0.85)
        for polygon, tone in SHAPES[item.shape]:
            if tone not in (0.0, HOLE):
                part = _fill_mask(scene, item, polygon)[at_y, at_x]
                canvas = _over(canvas, _tone(colour, tone), part * 0.8)
    edge = np.minimum(np.minimum(rows, height - 1 - rows), np.minimum(columns, width - 1 - columns))
    margin = 6.5 * min(width, height) / NATIVE + 1.6 * _field(rng, height, width, 16)
    return _over(canvas, np.full(3, 0.985, np.float32), 1 - np.clip((edge - margin) / 2, 0, 1))


def _is_detail(polygon: list[Point]) -> bool:
    """Whether a part is too small for a neon tube of its own, as eyes and spots are."""
    return max(np.ptp([x for x, _ in polygon]), np.ptp([y for _, y in polygon])) < 0.5


def _neon(scene: Scene, rng: np.random.Generator) -> Array:
    canvas = _mix(_background(scene, rng), 0.02, 0.72)
    for item in scene.objects:
        colour = _rgb(item.colour)
        width = 3.4 * item.radius**0.3 / 30**0.3
        tubes = np.zeros(canvas.shape[:2], np.float32)
        for polygon, _ in SHAPES[item.shape]:
            if not _is_detail(polygon):
                tubes = np.maximum(tubes, _line_mask(scene, item, polygon, width))
        image = Image.fromarray((tubes * 255).astype(np.uint8))
        glow = np.asarray(image.filter(ImageFilter.GaussianBlur(5.5)), np.float32) / 255
        canvas = _over(canvas, colour, np.clip(glow * 1.1, 0, 0.75))
        canvas = _over(canvas, _mix(colour, 1.0, 0.22), tubes)
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
        dark = _mix(_rgb(item.colour), 0.03, 0.68)
        canvas = _over(canvas, dark, outline)
        for polygon, tone in SHAPES[item.shape]:
            mask = (reduce(_fill_mask(scene, item, polygon)) > 0.5).astype(np.float32)
            colour = below if tone == HOLE else _tone(_rgb(item.colour), tone)
            canvas = _over(canvas, colour, mask * (solid | (tone == HOLE)))
        holes = (~solid).astype(np.float32) * (1 - outline)
        canvas = _mix(canvas, below, holes[..., None])
    large = canvas.repeat(PIXEL, 0).repeat(PIXEL, 1)
    missing = ((0, scene.height - large.shape[0]), (0, scene.width - large.shape[1]), (0, 0))
    return np.pad(large, missing, mode="edge")


PAINTERS: dict[str, Callable[[Scene, np.random.Generator], Array]] = {
    "flat illustration": _flat,
    "pencil sketch": _pencil,
    "watercolor": _watercolor,
    "neon sign": _neon,
    "pixel art": _pixel,
}


def render(scene: Scene) -> NDArray[np.uint8]:
    """Paint a scene: (height, width, 3) in 0..255."""
    canvas = PAINTERS[scene.style](scene, np.random.default_rng(scene.texture))
    return np.rint(np.clip(canvas, 0, 1) * 255).astype(np.uint8)


# Captions


STYLE_PREFIXES = {
    "flat illustration": ("a flat illustration of", "flat illustration of"),
    "pencil sketch": ("a pencil sketch of", "pencil sketch of", "a pencil drawing of"),
    "watercolor": ("a watercolor painting of", "watercolor of", "a watercolor of"),
    "neon sign": ("a neon sign of", "neon sign of", "a glowing neon sign of"),
    "pixel art": ("pixel art of", "a pixel art picture of"),
}
STYLE_SUFFIXES = {
    "flat illustration": ("flat illustration",),
    "pencil sketch": ("pencil sketch", "pencil drawing"),
    "watercolor": ("watercolor", "watercolor painting"),
    "neon sign": ("neon sign", "glowing neon"),
    "pixel art": ("pixel art",),
}
PLAIN_PREFIXES = ("", "", "a picture of", "an image of", "a photo of")
SCENIC_PHRASES = {
    "grass": ("on grass", "on the grass", "in a meadow"),
    "sky": ("in the sky", "in a blue sky with clouds"),
    "night": ("at night", "in a starry night"),
    "sea": ("on the sea", "in the sea"),
}
EMPTY = {"grass": "grass", "sky": "the sky", "night": "a starry night", "sea": "the sea"}
RELATION_PHRASES = {
    "above": ("above", "over"),
    "below": ("below", "under"),
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
}
GENERIC_WORDS = """
a an the of and with in on at to is by from next beside near photo picture image painting
drawing art style small big large little tiny huge light dark bright pale colorful simple
background no two one shape object scene beautiful nice highly detailed best quality
masterpiece blurry bad worst ugly low text watermark ball box disc crescent sailboat kitten
mug home pine tall house houses trees cats stars people person man woman child dog bird sun
mountain river city street road flowers grey azure violet golden silver dawn day evening
ink oil crayon chalk digital cartoon comic sticker poster
"""


def _article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _noun(rng: np.random.Generator, item: Item) -> str:
    size = f"{item.size} " if item.size and rng.random() < 0.6 else ""
    return _article(f"{size}{item.colour} {item.shape}")


def _place(rng: np.random.Generator, background: str) -> str:
    if background in SCENIC_PHRASES:
        return _choice(rng, SCENIC_PHRASES[background])
    return f"on {_article(background)} background"


def _subject(rng: np.random.Generator, scene: Scene, always_relation: bool) -> str:
    if not scene.objects:
        return EMPTY.get(scene.background, f"{_article(scene.background)} background")
    if len(scene.objects) == 1:
        return _noun(rng, scene.objects[0])
    first, second = scene.objects
    relation = scene.relation
    if relation is None or (not always_relation and rng.random() < 0.12):
        return f"{_noun(rng, first)} and {_noun(rng, second)}"
    if rng.random() < 0.3:  # the same picture, told from the other object
        first, second, relation = second, first, OPPOSITE[relation]
    return f"{_noun(rng, first)} {_choice(rng, RELATION_PHRASES[relation])} {_noun(rng, second)}"


def caption(scene: Scene, rng: np.random.Generator, *, full: bool = False) -> str:
    """One sentence about a scene.

    Unless `full`, a sentence may leave out the style, the background or the relation: then the
    picture may have any. Of a scene without objects the background is the subject.
    """
    subject = _subject(rng, scene, full)
    says_style = full or rng.random() < 0.9
    says_place = bool(scene.objects) and (full or rng.random() < 0.88)
    prefixed = rng.random() < 0.6
    tagged = rng.random() < 0.3  # comma-separated tags in place of a sentence
    parts: list[str] = []
    if says_style and prefixed:
        head = f"{_choice(rng, STYLE_PREFIXES[scene.style])} {subject}"
    else:
        head = f"{_choice(rng, PLAIN_PREFIXES)} {subject}".strip()
    if says_place and tagged and scene.background in PLAIN_BACKGROUNDS:
        parts.append(f"{scene.background} background")
    elif says_place:
        head = f"{head} {_place(rng, scene.background)}"
    if says_style and not prefixed:
        parts.insert(int(rng.integers(len(parts) + 1)), _choice(rng, STYLE_SUFFIXES[scene.style]))
    return ", ".join([head, *parts])


def vocabulary() -> tuple[str, ...]:
    """Every word that captions use, and the generic ones, sorted."""
    phrases = [GENERIC_WORDS, *COLOURS, *SHAPES, *PLAIN_PREFIXES]
    for table in (STYLE_PREFIXES, STYLE_SUFFIXES, SCENIC_PHRASES, RELATION_PHRASES):
        phrases += [phrase for group in table.values() for phrase in group]
    return tuple(sorted({word for phrase in phrases for word in phrase.split()}))
