"""Hints that are drawn from data: poses from keypoints, segmentation from labels, normals."""

import colorsys
import json
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from overpaint.errors import PictureError

LIMBS = (
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11),
    (11, 12), (12, 13), (1, 0), (0, 14), (14, 16), (0, 15), (15, 17),
)  # fmt: skip
"""Pairs of OpenPose's 18 body keypoints (arXiv 1812.08008): nose, neck, right arm, left arm …"""

JOINTS = 18
SEEN = 0.05
"""The confidence below which a keypoint is not drawn."""

CLASSES = 150
"""Colours of the segmentation palette."""


def pose(data: bytes, size: tuple[int, int] | None = None) -> Image.Image:
    """People's joints and limbs, as OpenPose draws them, from its JSON.

    Args:
        data: JSON with `people[].pose_keypoints_2d` (x, y, confidence of 18 joints) and
            `canvas_width`, `canvas_height`; or a list of such.
        size: (width, height) to draw at; by default the canvas's.

    Raises:
        PictureError: it is not that.
    """
    canvas, people = _keypoints(data)
    width, height = size or canvas
    scale = np.array([width / canvas[0], height / canvas[1]])
    thick = max(1.0, min(width, height) / 128)
    picture = np.zeros((height, width, 3), np.uint8)
    for person in people:
        places, seen = person[:, :2] * scale, person[:, 2] > SEEN
        limbs = np.zeros_like(picture)
        for number, (a, b) in enumerate(LIMBS):
            if seen[a] and seen[b]:
                _limb(limbs, places[a], places[b], thick, _hue(number, len(LIMBS)))
        picture = np.maximum(picture, (limbs * 0.6).astype(np.uint8))
        for number in np.flatnonzero(seen):
            centre = (round(float(places[number, 0])), round(float(places[number, 1])))
            cv2.circle(picture, centre, round(thick), _hue(int(number), JOINTS), -1)
    return Image.fromarray(picture)


def _limb(
    canvas: NDArray[np.uint8],
    start: NDArray[np.float64],
    end: NDArray[np.float64],
    thick: float,
    colour: tuple[int, int, int],
) -> None:
    across, down = end - start
    middle = (start + end) / 2
    angle = float(np.degrees(np.arctan2(down, across)))
    axes = (round(float(np.hypot(across, down)) / 2), max(1, round(thick)))
    centre = (round(float(middle[0])), round(float(middle[1])))
    points = cv2.ellipse2Poly(centre, axes, round(angle), 0, 360, 1)
    cv2.fillConvexPoly(canvas, np.asarray(points), colour)


def _hue(number: int, count: int) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(number / count, 1, 1)
    return round(255 * red), round(255 * green), round(255 * blue)


def _keypoints(data: bytes) -> tuple[tuple[int, int], list[NDArray[np.float64]]]:
    """The canvas's (width, height), and each person's keypoints [18, 3]."""
    try:
        read: Any = json.loads(data)
        read = read[0] if isinstance(read, list) else read
        canvas = int(read["canvas_width"]), int(read["canvas_height"])
        people = [
            np.array(person["pose_keypoints_2d"], np.float64).reshape(JOINTS, 3)
            for person in read["people"]
        ]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise PictureError(
            f"keypoints: {error!r}; expected OpenPose's JSON with canvas_width, canvas_height and "
            "people[].pose_keypoints_2d of 18 joints (x, y, confidence)."
        ) from error
    if min(canvas) < 1 or not all(np.isfinite(person).all() for person in people):
        raise PictureError(f"keypoints: a canvas of {canvas[0]}x{canvas[1]}, or a joint nowhere.")
    return canvas, people


def segmentation_palette() -> NDArray[np.uint8]:
    """A colour for each class of ADE20K, [150, 3], no two alike.

    Nets that were trained on another palette take a finished hint in theirs.
    """
    spread = (np.arange(CLASSES)[:, None] * np.array([97, 151, 211]) + [60, 130, 200]) % 251
    return spread.astype(np.uint8)


def segmentation(
    labels: NDArray[np.integer[Any]], palette: Sequence[Any] | None = None
) -> Image.Image:
    """A label map as colours; what has no label is black.

    Args:
        labels: [h, w], the class of each pixel; negative for none.
        palette: [classes, 3] in 0..255; by default `segmentation_palette`.
    """
    colours = np.asarray(segmentation_palette() if palette is None else palette, np.uint8)
    table = np.concatenate([np.zeros((1, 3), np.uint8), colours])
    return Image.fromarray(table[np.maximum(labels, -1) + 1])


def normal(depth: Image.Image, *, strength: float = 4) -> Image.Image:
    """Which way surfaces face, from how near they are: right is red, up green, towards us blue.

    Args:
        depth: bright is near.
        strength: by how much the relief is raised.
    """
    grey = np.asarray(depth.convert("L"), np.float32) / 255
    grey = np.asarray(cv2.GaussianBlur(grey, (0, 0), 1.0), np.float32)
    scale = strength * min(grey.shape) / 8
    across, down = (
        np.asarray(cv2.Sobel(grey, cv2.CV_32F, *axis), np.float32) for axis in ((1, 0), (0, 1))
    )
    facing = np.stack([-across * scale, down * scale, np.ones_like(grey)], axis=2)
    facing /= np.linalg.norm(facing, axis=2, keepdims=True)
    return Image.fromarray(np.rint((facing * 0.5 + 0.5) * 255).astype(np.uint8))
