"""Procedural captioned scenes: what the miniature learns to paint.

A `Scene` is the ground truth (style, background, objects, relation); `draw_scene` samples one from
a generator, `rendering.render` paints it and `caption` describes it. All three are pure functions
of their arguments, so a seed names one picture and one sentence.

Rules that keep every attribute readable in every style:

* an object never has the color of its background, nor one that vanishes on a scenic background
  (`SCENIC_CLASHES`);
* pencil sketches and watercolors show the background as a pale tint, so plain black is left out;
* neon signs glow on a dark tint of the background's color: plain backgrounds only, neither white
  nor gray, and no black, gray or brown tubes;
* comics have black outlines, stickers a white border: neither shows nor lies on that color.

`NOVEL_STYLES` and `NOVEL_SHAPES` are kept from the base model, for LoRAs to teach.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, replace
from typing import TypeAlias, TypeVar

import numpy as np

T = TypeVar("T")

NATIVE = 128

Point: TypeAlias = tuple[float, float]
Parts: TypeAlias = list[tuple[list[Point], float]]

COLORS: dict[str, tuple[int, int, int]] = {
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
NOVEL_STYLES = ("comic", "sticker")
RELATIONS = ("above", "below", "left of", "right of")
OPPOSITE = {"above": "below", "below": "above", "left of": "right of", "right of": "left of"}
NEON_BACKGROUNDS = tuple(b for b in PLAIN_BACKGROUNDS if b not in ("white", "gray"))
NEON_COLORS = tuple(c for c in COLORS if c not in ("black", "gray", "brown"))


# Shapes: polygons in a unit box (x right, y down, -1..1), each with a tone: 0 the object's color,
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


def _flower() -> Parts:
    petals = [
        _ellipse(0.6 * math.sin(a), -0.6 * math.cos(a), 0.36, 0.36)
        for a in np.arange(5) * math.pi / 2.5
    ]
    return [(p, 0.0) for p in petals] + [(_ellipse(0, 0, 0.34, 0.34), 0.6)]


SHAPES: dict[str, Parts] = {
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
NOVEL_SHAPES: dict[str, Parts] = {
    "bird": [
        ([(0.4, 0.1), (1, -0.5), (0.94, 0.26)], -0.25),
        (_box(-0.16, 0.4, -0.04, 0.98), -0.45),
        (_box(0.14, 0.4, 0.26, 0.98), -0.45),
        (_ellipse(0.02, 0.14, 0.62, 0.44), 0),
        ([(-0.72, -0.62), (-1, -0.4), (-0.72, -0.3)], 0.6),
        (_ellipse(-0.46, -0.42, 0.36, 0.36), 0),
        (_ellipse(-0.56, -0.5, 0.11, 0.11), 0.75),
        (_ellipse(0.16, 0.1, 0.34, 0.2), -0.35),
    ],
}
OUTLINES = SHAPES | NOVEL_SHAPES
HOLE = 2.0  # the tone of a part through which the background shows


@dataclass(frozen=True)
class Item:
    """One object: its center and radius are in pixels of the frame."""

    shape: str
    color: str
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
        """The content of a full caption, without placement and texture."""
        objects = [f"{o.color} {o.shape}" for o in self.objects]
        return "|".join([self.style, self.background, *objects, self.relation or ""])

    @property
    def held_out(self) -> bool:
        """True if training excludes this combination: one in eight, by a checksum of `key`."""
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
    if style in ("pencil sketch", "watercolor", "comic"):
        return tuple(b for b in BACKGROUNDS if b != "black")
    if style == "sticker":
        return tuple(b for b in BACKGROUNDS if b != "white")
    return BACKGROUNDS


def allowed_colors(style: str, background: str) -> tuple[str, ...]:
    """Return the object colors that differ from the background in a style."""
    colors = NEON_COLORS if style == "neon sign" else tuple(COLORS)
    clashes = SCENIC_CLASHES.get(background, (background,))
    clashes += {"comic": ("black",), "sticker": ("white",)}.get(style, ())
    return tuple(c for c in colors if c not in clashes)


def _choice(rng: np.random.Generator, values: tuple[T, ...]) -> T:
    return values[int(rng.integers(len(values)))]


def draw_scene(
    rng: np.random.Generator,
    width: int = NATIVE,
    height: int = NATIVE,
    *,
    held_out: bool | None = False,
    two: bool | None = None,
    styles: tuple[str, ...] = STYLES,
) -> Scene:
    """Sample a scene for a frame of `width` × `height` pixels.

    `held_out` False gives training combinations, True the others, None either. `two` asks for two
    objects or for one; by default three scenes in five have two.
    """
    while True:
        scene = _draw(rng, width, height, rng.random() < 0.6 if two is None else two, styles)
        if held_out is None or scene.held_out == held_out:
            return scene


def _draw(
    rng: np.random.Generator, width: int, height: int, two: bool, styles: tuple[str, ...]
) -> Scene:
    style = _choice(rng, styles)
    background = _choice(rng, allowed_backgrounds(style))
    colors = allowed_colors(style, background)
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
        Item(name, _choice(rng, colors), x, y, radius, size)
        for name, (x, y), radius in zip(names, places, radii, strict=True)
    )
    return Scene(style, background, items, relation, width, height, int(rng.integers(2**31)))


def with_shape(scene: Scene, shape: str, rng: np.random.Generator) -> Scene:
    """The scene with one of its objects of another shape."""
    objects = list(scene.objects)
    at = int(rng.integers(len(objects)))
    objects[at] = replace(objects[at], shape=shape)
    return replace(scene, objects=tuple(objects))


def draw_anywhere(
    rng: np.random.Generator, *, held_out: bool | None = False, styles: tuple[str, ...] = STYLES
) -> Scene:
    """Sample a native scene whose objects are of any size and anywhere, in no relation."""
    while True:
        scene = _scattered(rng, draw_scene(rng, held_out=None, styles=styles))
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


def recolored(rng: np.random.Generator, scene: Scene, *, held_out: bool = False) -> Scene:
    """Return the scene with another style, other colors and another background."""
    while True:
        style = _choice(rng, tuple(style for style in STYLES if style != scene.style))
        grounds = allowed_backgrounds(style)
        background = _choice(rng, tuple(b for b in grounds if b != scene.background))
        colors = allowed_colors(style, background)
        objects = tuple(
            replace(item, color=_choice(rng, tuple(c for c in colors if c != item.color)))
            for item in scene.objects
        )
        found = replace(scene, style=style, background=background, objects=objects)
        if found.held_out == held_out:
            return found


def _jitter(rng: np.random.Generator, width: int, height: int, radius: float) -> Point:
    free_x, free_y = width / 2 - radius - 5, height / 2 - radius - 5
    x = width / 2 + 0.5 * free_x * rng.uniform(-1, 1)
    y = height / 2 + 0.5 * free_y * rng.uniform(-1, 1)
    return x, y


def _pair(
    rng: np.random.Generator, width: int, height: int, relation: str, radii: list[float]
) -> list[Point]:
    """Return centers of two objects that stand in `relation` and do not touch."""
    vertical = relation in ("above", "below")
    length, across = (height, width) if vertical else (width, height)
    points: list[Point] = []
    for i, radius in enumerate(radii):
        first = (i == 0) == (relation in ("above", "left of"))
        near = length * (0.255 if first else 0.745) + length * 0.015 * rng.uniform(-1, 1)
        side = across / 2 + (across / 2 - radius - 6) * 0.35 * rng.uniform(-1, 1)
        points.append((side, near) if vertical else (near, side))
    return points


# Captions


STYLE_PREFIXES = {
    "flat illustration": ("a flat illustration of", "flat illustration of"),
    "pencil sketch": ("a pencil sketch of", "pencil sketch of", "a pencil drawing of"),
    "watercolor": ("a watercolor painting of", "watercolor of", "a watercolor of"),
    "neon sign": ("a neon sign of", "neon sign of", "a glowing neon sign of"),
    "pixel art": ("pixel art of", "a pixel art picture of"),
    "comic": ("a comic of", "comic art of"),
    "sticker": ("a sticker of", "sticker of"),
}
STYLE_SUFFIXES = {
    "flat illustration": ("flat illustration",),
    "pencil sketch": ("pencil sketch", "pencil drawing"),
    "watercolor": ("watercolor", "watercolor painting"),
    "neon sign": ("neon sign", "glowing neon"),
    "pixel art": ("pixel art",),
    "comic": ("comic", "comic art"),
    "sticker": ("sticker",),
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
    return _article(f"{size}{item.color} {item.shape}")


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
    if rng.random() < 0.3:  # describe the picture from the other object
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
    phrases = [GENERIC_WORDS, *COLORS, *SHAPES, *PLAIN_PREFIXES]
    for table in (STYLE_PREFIXES, STYLE_SUFFIXES, SCENIC_PHRASES, RELATION_PHRASES):
        phrases += [phrase for group in table.values() for phrase in group]
    return tuple(sorted({word for phrase in phrases for word in phrase.split()}))
