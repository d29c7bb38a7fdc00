"""Divide a large extension of a picture into windows that are painted one after the other."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from overpaint.errors import RequestError

if TYPE_CHECKING:
    from overpaint.registry import Fill

Box = tuple[int, int, int, int]
"""(left, top, right, bottom) in pixels."""

STRIP_SHARE = 0.5
"""Width of the new strip that a window paints, as a share of its side; the rest is context."""
BLEND_SHARE = 1 / 4
"""Width of the fade into the windows before, as a share of a window's shorter side."""
MAX_SPAN = 1.25
"""A strip up to this many sides long is painted by one window."""
MIN_SCALE_SHARE = 0.7
"""Scale of a single pass, relative to that of the windows, from which no windows are needed."""
MAX_ASPECT = 2.2
"""Ratio of the longer to the shorter side up to which a single pass is enough."""
MAX_WINDOWS = 64
"""Windows of an extension, at most; each takes as long as a picture."""


@dataclass(frozen=True)
class Window:
    """A window of an extension.

    Attributes:
        box: the pixels that the network sees.
        target: the pixels that it paints; the rest of the box is painted already.
    """

    box: Box
    target: Box


@dataclass(frozen=True)
class Extension:
    """The windows of an extension that are still to be painted, and how.

    Attributes:
        windows: in their order.
        native: the model's native side in pixels.
        fill: see `Request`.
        match_colors: see `Request`.
    """

    windows: tuple[Window, ...]
    native: int
    fill: "Fill"
    match_colors: bool


def needs_windows(inner: Box, whole: tuple[int, int], canvas: tuple[int, int], native: int) -> bool:
    """Return whether one pass over an extended picture would be too coarse or too long.

    Args:
        inner: the place of the picture in the extended picture.
        whole: (width, height) of the extended picture.
        canvas: (width, height) at which one pass would paint it.
        native: the model's native side in pixels.
    """
    window_scale = min(1.0, native / get_window_side(inner, native))
    scale = min(canvas[0] / whole[0], canvas[1] / whole[1])
    aspect = max(whole) / min(whole)
    own_aspect = max((inner[2] - inner[0], inner[3] - inner[1])) / get_window_side(inner, native)
    too_long = aspect > MAX_ASPECT and aspect > own_aspect
    return too_long or scale < MIN_SCALE_SHARE * window_scale


def get_window_side(inner: Box, native: int) -> int:
    """Return the side of the windows in pixels: that of the picture's shorter side."""
    return max(min(inner[2] - inner[0], inner[3] - inner[1]), native // 4)


def plan_extension(inner: Box, whole: tuple[int, int], native: int) -> tuple[Window, ...]:
    """Return the windows that paint the room around a picture.

    Args:
        inner: the place of the picture in the extended picture.
        whole: (width, height) of the extended picture.
        native: the model's native side in pixels.

    Raises:
        RequestError: there are too many.
    """
    side = get_window_side(inner, native)
    windows = plan_windows(inner, whole, side)
    if len(windows) > MAX_WINDOWS:
        raise RequestError(
            "extend",
            f"The extension to {whole[0]}x{whole[1]} pixels takes {len(windows)} steps of up to "
            f"{side}x{side} pixels, and may take {MAX_WINDOWS}. Extend by fewer pixels, enlarge "
            "the picture first, or set `crop` to off for a single coarse step.",
        )
    return windows


def plan_windows(inner: Box, whole: tuple[int, int], side: int) -> tuple[Window, ...]:
    """Cover the room around a picture with windows: left and right first, then top and bottom.

    Args:
        inner: the place of the picture in the extended picture.
        whole: (width, height) of the extended picture.
        side: of a window, in pixels.
    """
    windows: list[Window] = []
    known = list(inner)
    for edge, end in ((0, 0), (2, whole[0]), (1, 0), (3, whole[1])):
        axis = edge % 2
        room = abs(end - known[edge])
        strips = math.ceil(room / max(1, int(side * STRIP_SHARE)))
        first = known[edge]
        for strip in range(1, strips + 1):
            outer = first + round((end - first) * strip / strips)
            inward = side if edge < 2 else -side
            far = min(max(outer + inward, known[axis]), known[axis + 2])
            seen = min(outer, far), max(outer, far)
            new = min(outer, known[edge]), max(outer, known[edge])
            across = known[1 - axis], known[3 - axis]
            for span, part in _split_span(*across, side):
                windows.append(Window(_make_box(axis, seen, span), _make_box(axis, new, part)))
            known[edge] = outer
    return tuple(windows)


def blend_into_painted(target: NDArray[np.float32], box: Box, inner: Box) -> NDArray[np.float32]:
    """Return the mask of a window, which fades from its target into the windows before.

    The fade repaints a share of what the windows before have painted, so that no line remains. The
    picture itself stays out of it.

    Args:
        target: [height, width] of the box; 1 is new.
        box: of the window.
        inner: the place of the picture in the extended picture.
    """
    length = max(1.0, BLEND_SHARE * min(target.shape))
    distance = np.asarray(cv2.distanceTransform((target == 0).astype(np.uint8), cv2.DIST_L2, 5))
    fade = np.maximum(target, (1 - distance / np.float32(length)).clip(0, 1)).astype(np.float32)
    left, top = max(0, inner[0] - box[0]), max(0, inner[1] - box[1])
    right, bottom = max(0, inner[2] - box[0]), max(0, inner[3] - box[1])
    fade[top:bottom, left:right] = target[top:bottom, left:right]
    return fade


def _split_span(start: int, end: int, side: int) -> "list[tuple[tuple[int, int], tuple[int, int]]]":
    """Split a strip along its length into the spans that each window sees and paints."""
    length = end - start
    if length <= MAX_SPAN * side:
        return [((start, end), (start, end))]
    count = math.ceil((length - side) / (side * STRIP_SHARE)) + 1
    parts: list[tuple[tuple[int, int], tuple[int, int]]] = []
    painted = start
    for index in range(count):
        first = start + round((length - side) * index / (count - 1))
        parts.append(((first, first + side), (painted, first + side)))
        painted = first + side
    return parts


def _make_box(axis: int, along: tuple[int, int], across: tuple[int, int]) -> Box:
    """Return a box from its spans along an axis (0 is horizontal) and across it."""
    wide, high = (along, across) if axis == 0 else (across, along)
    return wide[0], high[0], wide[1], high[1]
