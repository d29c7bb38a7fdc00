"""Draw the sketches in this folder: `python -m examples.draw`.

They have shaky pencil outlines and loose colored hatching, 512 pixels a side, and a fixed seed.
"""

import math
import random
from itertools import pairwise
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

SIDE = 512
SCALE = 3
PENCIL = (70, 66, 64)

Point = tuple[float, float]
Color = tuple[int, int, int]


class Sheet:
    """A sheet of paper, drawn at three times its size and then reduced."""

    def __init__(self, seed: int, paper: Color):
        self.random = random.Random(seed)
        self.image = Image.new("RGB", (SIDE * SCALE, SIDE * SCALE), paper)
        self.draw = ImageDraw.Draw(self.image)

    def line(self, points: list[Point], color: Color = PENCIL, width: float = 7) -> None:
        """Draw a slightly shaky stroke through the points."""
        for (x0, y0), (x1, y1) in pairwise(points):
            parts = max(2, int(math.hypot(x1 - x0, y1 - y0) / 24))
            stroke = [
                (
                    (x0 + (x1 - x0) * i / parts + self.random.gauss(0, 1.2)) * SCALE,
                    (y0 + (y1 - y0) * i / parts + self.random.gauss(0, 1.2)) * SCALE,
                )
                for i in range(parts + 1)
            ]
            self.draw.line(stroke, color, round(width * SCALE), joint="curve")
            for x, y in (stroke[0], stroke[-1]):
                r = width * SCALE / 2
                self.draw.ellipse((x - r, y - r, x + r, y + r), color)

    def shape(self, points: list[Point], color: Color) -> None:
        """Draw an outline and fill it with diagonal hatching."""
        mask = Image.new("L", self.image.size)
        ImageDraw.Draw(mask).polygon([(x * SCALE, y * SCALE) for x, y in points], fill=255)
        hatched = Image.new("RGB", self.image.size, color)
        lines = ImageDraw.Draw(hatched)
        light = tuple((c + 2 * 255) // 3 for c in color)
        for offset in range(-SIDE, 2 * SIDE, 17):
            shift = self.random.gauss(0, 1.5)
            ends = (offset + shift, 0), (offset - SIDE + shift, SIDE)
            lines.line([(x * SCALE, y * SCALE) for x, y in ends], light, 6 * SCALE)
        self.image.paste(hatched, mask=mask)
        self.line([*points, points[0]])

    def save(self, path: Path) -> None:
        """Reduce the sheet to its size and write it."""
        soft = self.image.filter(ImageFilter.GaussianBlur(SCALE / 2))
        soft.resize((SIDE, SIDE), Image.Resampling.LANCZOS).save(path, optimize=True)


def circle(x: float, y: float, r: float, squeeze: float = 1.0) -> list[Point]:
    """Return points on the outline of an ellipse."""
    steps = [2 * math.pi * i / 28 for i in range(28)]
    return [(x + r * math.cos(a), y + r * squeeze * math.sin(a)) for a in steps]


def house() -> Sheet:
    """Draw a house beside a tree."""
    sheet = Sheet(1, (238, 238, 232))
    red, green = (206, 62, 60), (66, 150, 78)
    sheet.shape([(70, 240), (230, 240), (230, 390), (70, 390)], red)
    sheet.shape([(45, 245), (150, 130), (255, 245)], red)
    sheet.shape([(130, 310), (172, 310), (172, 390), (130, 390)], (235, 205, 195))
    sheet.shape([(372, 330), (398, 330), (398, 390), (372, 390)], (120, 90, 60))
    sheet.shape([(300, 335), (385, 225), (470, 335)], green)
    sheet.shape([(315, 255), (385, 140), (455, 255)], green)
    return sheet


def boat() -> Sheet:
    """Draw a boat under a moon."""
    sheet = Sheet(2, (214, 232, 250))
    orange, yellow = (244, 140, 50), (248, 214, 80)
    sheet.shape([(120, 350), (400, 350), (350, 430), (170, 430)], orange)
    sheet.shape([(250, 190), (250, 335), (140, 335)], orange)
    sheet.shape([(272, 220), (272, 335), (375, 335)], orange)
    sheet.line([(261, 180), (261, 350)])
    outer = [p for p in circle(256, 95, 62) if p[0] < 275]
    outer.sort(key=lambda p: math.atan2(p[1] - 95, 256 - p[0]))
    inner = [(275 - 0.55 * (275 - x), y) for x, y in reversed(outer)]
    sheet.shape([*outer, *inner], yellow)
    return sheet


def cup() -> Sheet:
    """Draw a cup beside a star."""
    sheet = Sheet(3, (250, 240, 214))
    blue, purple = (70, 104, 206), (138, 82, 178)
    sheet.line([*circle(240, 290, 42, 1.1)], width=16)
    sheet.line([*circle(240, 290, 42, 1.1)], blue, width=5)
    sheet.shape([(70, 190), (230, 190), (215, 390), (85, 390)], blue)
    points = [
        (
            380 + (95 if i % 2 == 0 else 40) * math.sin(math.pi * i / 5),
            290 - (95 if i % 2 == 0 else 40) * math.cos(math.pi * i / 5),
        )
        for i in range(10)
    ]
    sheet.shape(points, purple)
    return sheet


if __name__ == "__main__":
    for picture in (house, boat, cup):
        picture().save(Path(__file__).parent / f"{picture.__name__}.png")
