"""Divide a large extension of a picture into windows that are painted one after the other.

The server counts them before it accepts a request, so this module does without OpenCV.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from overpaint.errors import RequestError
from overpaint.imaging import sizing
from overpaint.imaging.codec import upright_size
from overpaint.imaging.framing import Box, compute_canvas_size, frame_bounds

if TYPE_CHECKING:
    from overpaint.registry import Fill
    from overpaint.request import Request

STRIP_SHARE = 0.5
"""Width of the new strip that a window paints, as a share of its side; the rest is context."""
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
    count = _count_planned(inner, whole, side)
    if count > MAX_WINDOWS:
        raise RequestError(
            "extend",
            f"The extension to {whole[0]}x{whole[1]} pixels takes {count} steps of up to "
            f"{side}x{side} pixels, and may take {MAX_WINDOWS}. Extend by fewer pixels, enlarge "
            "the picture first, or set `crop` to off for a single coarse step.",
        )
    return plan_windows(inner, whole, side)


def count_windows(request: "Request", native: int) -> int:
    """Return the number of windows in which a request's picture is extended; 0 without any.

    The picture's header is enough. A mask counts as empty, because it can only enlarge the region
    that a single pass would paint.

    Args:
        request: not planned yet.
        native: side in pixels of the square that the model was trained on.

    Raises:
        RequestError: there are too many windows, or the model cannot draw the size.
        PictureError: the picture's header cannot be read.
    """
    if request.image is None or not any(request.extend) or request.crop != "auto":
        return 0
    width, height = upright_size(request.image)
    if request.sized:
        width, height = sizing.compute_result_size((width, height), native, request)
    left, top, right, bottom = request.extend
    whole = left + width + right, top + height + bottom
    inner = (left, top, left + width, top + height)
    box = frame_bounds(_find_room(inner, whole), whole, "auto", native)
    keeps_size = request.sized and box == (0, 0, *whole)
    canvas = whole if keeps_size else compute_canvas_size(box, native)
    if not needs_windows(inner, (box[2] - box[0], box[3] - box[1]), canvas, native):
        return 0
    return len(plan_extension(inner, whole, native))


def _find_room(inner: Box, whole: tuple[int, int]) -> Box:
    """Return the bounds of the room around a picture."""
    left, top, right, bottom = inner[0], inner[1], whole[0] - inner[2], whole[1] - inner[3]
    return (
        0 if left or top or bottom else inner[2],
        0 if top or left or right else inner[3],
        whole[0] if right or top or bottom else left,
        whole[1] if bottom or left or right else top,
    )


def _count_planned(inner: Box, whole: tuple[int, int], side: int) -> int:
    """Return how many windows `plan_windows` plans, without planning them."""
    left, top, right, bottom = inner[0], inner[1], whole[0] - inner[2], whole[1] - inner[3]
    beside = (_count_strips(left, side) + _count_strips(right, side)) * len(
        _split_span(inner[1], inner[3], side)
    )
    above = _count_strips(top, side) + _count_strips(bottom, side)
    return beside + above * len(_split_span(0, whole[0], side))


def _count_strips(room: int, side: int) -> int:
    return math.ceil(room / max(1, int(side * STRIP_SHARE)))


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
        strips = _count_strips(room, side)
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
