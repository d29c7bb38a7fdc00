"""Hints that are drawn from data: poses, segmentation, depth, normals."""

import colorsys
import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from overpaint.imaging.hints.pose import JOINT_COUNT, read_pose
from overpaint.system.abandon import check_abandoned

POSE_LIMBS = (
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11),
    (11, 12), (12, 13), (1, 0), (0, 14), (14, 16), (0, 15), (15, 17),
)  # fmt: skip
"""Pairs of OpenPose's 18 body keypoints (arXiv 1812.08008): nose, neck, right arm, left arm …"""

MIN_KEYPOINT_CONFIDENCE = 0.05
"""Keypoints of a lower confidence are not drawn."""

ADE20K_CLASS_COUNT = 150
"""Classes of ADE20K (arXiv 1608.05442), from wall and building to clock and flag."""

ADE20K_PALETTE = np.frombuffer(
    bytes.fromhex(
        """
        787878 b47878 06e6e6 503232 04c803 787850 8c8c8c cc05ff e6e6e6 04fa07 e005ff ebff07 96053d
    787846 08ff33 ff0652 8fff8c ccff04 ff3307 cc4603 0066c8 3de6fa ff0633 0b66ff ff0747 ff09e0
    0907e6 dcdcdc ff095c 7009ff 08ffd6 07ffe0 ffb806 0aff47 ff290a 07ffff e0ff08 6608ff ff3d06
    ffc207 ff7a08 00ff14 ff0829 ff0599 0633ff eb0cff a09614 00a3ff 8c8c8c fa0a0f 14ff00 1fff00
    ff1f00 ffe000 99ff00 0000ff ff4700 00ebff 00adff 1f00ff 0bc8c8 ff5200 00fff5 003dff 00ff70
    00ff85 ff0000 ffa300 ff6600 c2ff00 008fff 33ff00 0052ff 00ff29 00ffad 0a00ff adff00 00ff99
    ff5c00 ff00ff ff00f5 ff0066 ffad00 ff0014 ffb8b8 001fff 00ff3d 0047ff ff00cc 00ffc2 00ff52
    000aff 0070ff 3300ff 00c2ff 007aff 00ffa3 ff9900 00ff0a ff7000 8fff00 5200ff a3ff00 ffeb00
    08b8aa 8500ff 00ff5c b800ff ff001f 00b8ff 00d6ff ff0070 5cff00 00e0ff 70e0ff 46b8a0 a300ff
    9900ff 47ff00 ff00a3 ffcc00 ff008f 00ffeb 85ff00 ff00eb f500ff ff007a fff500 0abed4 d6ff00
    00ccff 1400ff ffff00 0099ff 0029ff 00ffcc 2900ff 29ff00 ad00ff 00f5ff 4700ff 7a00ff 00ffb8
    005cff b8ff00 0085ff ffd600 19c2c2 66ff00 5c00ff
        """
    ),
    np.uint8,
).reshape(ADE20K_CLASS_COUNT, 3)
"""The color of each class, uint8 [150, 3], that ADE20K's authors and segmentation nets use.

The classes road and skyscraper have the same color.
"""


def draw_pose(
    data: bytes,
    size: tuple[int, int] | None = None,
    fallback: tuple[int, int] | None = None,
) -> Image.Image:
    """Draw people's joints and limbs from OpenPose's JSON, in OpenPose's colors.

    Args:
        data: see `pose.read_pose`.
        size: (width, height) to draw at; by default the canvas's.
        fallback: the canvas of a file that states none.

    Raises:
        PictureError: the JSON is malformed.
    """
    (width, height), people = read_pose(data).place(size, fallback)
    thick = max(1.0, min(width, height) / 128)
    picture = np.zeros((height, width, 3), np.uint8)
    limbs = np.zeros_like(picture)
    for person in people:
        check_abandoned()
        places, seen = person[:, :2], person[:, 2] > MIN_KEYPOINT_CONFIDENCE
        for number, (a, b) in enumerate(POSE_LIMBS):
            if seen[a] and seen[b]:
                _draw_limb(limbs, places[a], places[b], thick, _pick_hue(number, len(POSE_LIMBS)))
        box = _find_drawn_box(places[seen], thick)
        np.maximum(picture[box], (limbs[box] * 0.6).astype(np.uint8), out=picture[box])
        limbs[box] = 0
        for number in np.flatnonzero(seen):
            center = (round(float(places[number, 0])), round(float(places[number, 1])))
            cv2.circle(picture, center, round(thick), _pick_hue(int(number), JOINT_COUNT), -1)
    return Image.fromarray(picture)


def _find_drawn_box(places: NDArray[np.float64], thick: float) -> tuple[slice, slice]:
    """Return the rows and columns that the limbs between joints [n, 2] cover, and their margin."""
    if not len(places):
        return slice(0, 0), slice(0, 0)
    margin = math.ceil(thick) + 3
    low = (places.min(axis=0) - margin).clip(0).astype(int)
    high = (places.max(axis=0) + margin).clip(0).astype(int)
    return slice(int(low[1]), int(high[1])), slice(int(low[0]), int(high[0]))


def _draw_limb(
    canvas: NDArray[np.uint8],
    start: NDArray[np.float64],
    end: NDArray[np.float64],
    thick: float,
    color: tuple[int, int, int],
) -> None:
    across, down = end - start
    middle = (start + end) / 2
    angle = float(np.degrees(np.arctan2(down, across)))
    axes = (round(float(np.hypot(across, down)) / 2), max(1, round(thick)))
    center = (round(float(middle[0])), round(float(middle[1])))
    points = cv2.ellipse2Poly(center, axes, round(angle), 0, 360, 1)
    cv2.fillConvexPoly(canvas, np.asarray(points), color)


def _pick_hue(number: int, count: int) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(number / count, 1, 1)
    return round(255 * red), round(255 * green), round(255 * blue)


def make_miniature_palette() -> NDArray[np.uint8]:
    """Make the colors of 150 classes that the miniature's net is trained on, uint8 [150, 3].

    No two colors are the same, unlike those of `ADE20K_PALETTE`.
    """
    spread = (
        np.arange(ADE20K_CLASS_COUNT)[:, None] * np.array([97, 151, 211]) + [60, 130, 200]
    ) % 251
    return spread.astype(np.uint8)


def draw_label_map(
    labels: NDArray[np.integer[Any]], palette: Sequence[Any] | NDArray[np.uint8] | None = None
) -> Image.Image:
    """Draw a label map in colors; pixels without a label are black.

    Args:
        labels: [h, w], the class of each pixel; negative for no label.
        palette: [classes, 3] in 0..255; by default that of `make_miniature_palette`.
    """
    colors = np.asarray(make_miniature_palette() if palette is None else palette, np.uint8)
    table = np.concatenate([np.zeros((1, 3), np.uint8), colors])
    return Image.fromarray(table[np.maximum(labels, -1) + 1])


def draw_segmentation(labels: NDArray[np.integer[Any]]) -> Image.Image:
    """Draw a map of ADE20K classes [h, w] in ADE20K's colors."""
    return draw_label_map(labels, ADE20K_PALETTE)


def draw_depth(near: NDArray[np.floating[Any]]) -> Image.Image:
    """Draw nearness in gray: the nearest pixel is white, the farthest black.

    Args:
        near: [h, w], larger is nearer, in any unit.
    """
    gray = np.rint(255 * _normalize(near)).astype(np.uint8)
    return Image.fromarray(gray).convert("RGB")


def draw_normals_from_depth(depth: Image.Image, *, strength: float = 4) -> Image.Image:
    """Draw surface normals from a picture of depth: right is red, up green, to the viewer blue.

    Args:
        depth: a picture in which bright is near.
        strength: factor of the relief's height.
    """
    return _compute_normals(np.asarray(depth.convert("L"), np.float32) / np.float32(255), strength)


def draw_normals(near: NDArray[np.floating[Any]], *, strength: float = 4) -> Image.Image:
    """Draw surface normals from nearness, which is finer than a picture of 256 grays.

    Args:
        near: [h, w], larger is nearer, in any unit.
        strength: factor of the relief's height.
    """
    return _compute_normals(_normalize(near), strength)


def _normalize(near: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Scale values to 0..1; equal values become 0."""
    low, range_ = float(near.min()), float(np.ptp(near))
    return ((near - low) / (range_ or 1)).astype(np.float32)


def _compute_normals(near: NDArray[np.float32], strength: float) -> Image.Image:
    """Compute normals as colors from nearness in 0..1."""
    near = np.asarray(cv2.GaussianBlur(near, (0, 0), 1.0), np.float32)
    scale = strength * min(near.shape) / 8
    across, down = (
        np.asarray(cv2.Sobel(near, cv2.CV_32F, *axis), np.float32) for axis in ((1, 0), (0, 1))
    )
    facing = np.stack([-across * scale, down * scale, np.ones_like(near)], axis=2)
    facing /= np.linalg.norm(facing, axis=2, keepdims=True)
    return Image.fromarray(np.rint((facing * 0.5 + 0.5) * 255).astype(np.uint8))
