"""Grow a mask by a disc, in time that does not depend on the disc's area.

Both ways give exactly what `cv2.dilate` gives with the disc of `cv2.getStructuringElement`, whose
time grows with the square of the radius: 26 s for a radius of 512 pixels at 1024 x 1024.

    few levels, large disc   a distance transform for each level: linear in pixels
    otherwise                the disc's rows, with maxima of runs by doubling (Urbach and
                             Wilkinson 2008, "Efficient 2-D grayscale morphological
                             transformations with arbitrary flat structuring elements")
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from overpaint.system.abandon import check_abandoned

Levels = NDArray[np.uint8]

MAX_LEVELS_BY_DISTANCE = 4
"""A picture with more levels above its lowest one is grown row by row of the disc."""

MAX_RADIUS_BY_ROWS = 16
"""Up to this radius the disc has so few rows that they are faster than a distance transform."""

TILE_ROWS, TILE_COLUMNS = 256, 2048
"""Pixels that are grown at once: with a margin of the radius they stay in the CPU's cache."""


def dilate(levels: Levels, radius: int) -> Levels:
    """Return the largest level within a disc around each pixel.

    Args:
        levels: [height, width].
        radius: of the disc in pixels, at least 1.
    """
    counts = np.asarray(cv2.calcHist([levels], [0], None, [256], [0, 256])).ravel()
    lowest, *higher = np.flatnonzero(counts).tolist()
    if radius <= MAX_RADIUS_BY_ROWS or len(higher) > MAX_LEVELS_BY_DISTANCE:
        return _dilate_by_rows(levels, radius)
    grown = np.full_like(levels, lowest)
    for level in higher:
        check_abandoned()
        grown[_reach(levels >= level, radius)] = level
    return grown


def _half_widths(radius: int) -> list[int]:
    """Return the half width in pixels of each row of the disc, from top to bottom."""
    side = 2 * radius + 1
    disc = np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)))
    return [(width - 1) // 2 for width in disc.sum(axis=1).tolist()]


def _reach(inside: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """Return the pixels of which a disc contains a pixel that is inside.

    The rows of OpenCV's disc are rounded, so that it contains a few pixels beyond the radius, at
    the ends of its rows. They matter only for pixels that are half a pixel too far away.
    """
    outside = np.logical_not(inside).view(np.uint8)
    distance = cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    reached = distance <= radius
    rows, columns = np.nonzero((distance > radius) & (distance <= radius + 0.5))
    height, width = inside.shape
    hit = np.zeros(len(rows), np.bool_)
    for down, across in enumerate(_half_widths(radius), -radius):
        if down**2 + across**2 <= radius**2:
            continue
        for ahead in (-across, across):
            y, x = rows + down, columns + ahead
            there = (y >= 0) & (y < height) & (x >= 0) & (x < width)
            hit[there] |= inside[y[there], x[there]]
    reached[rows[hit], columns[hit]] = True
    return reached


def _dilate_by_rows(levels: Levels, radius: int) -> Levels:
    height, width = levels.shape
    grown = np.zeros_like(levels)
    for top in range(0, height, TILE_ROWS):
        for left in range(0, width, TILE_COLUMNS):
            check_abandoned()
            tile = grown[top : top + TILE_ROWS, left : left + TILE_COLUMNS]
            _dilate_tile(levels, radius, top, left, tile)
    return grown


def _dilate_tile(levels: Levels, radius: int, top: int, left: int, tile: Levels) -> None:
    """Write the grown levels of the tile at (top, left) into `tile`, which is zero."""
    height, width = tile.shape
    first_row, first_column = max(0, top - radius), max(0, left - radius)
    near = levels[first_row : top + height + radius, first_column : left + width + radius]
    if near.min() == near.max():
        tile[:] = near[0, 0]
        return
    padded = np.zeros((height + 2 * radius, width + 2 * radius), np.uint8)
    down, across = first_row - (top - radius), first_column - (left - radius)
    padded[down : down + near.shape[0], across : across + near.shape[1]] = near
    half_widths = _half_widths(radius)
    runs, length = padded, 1  # runs[:, x] is the largest of `length` pixels from x on
    for row in sorted(range(len(half_widths)), key=half_widths.__getitem__):
        half = half_widths[row]
        while 2 * length <= 2 * half + 1:
            runs = np.maximum(runs[:, :-length], runs[:, length:])
            length *= 2
        own = runs[row : row + height]
        for start in {radius - half, radius + half + 1 - length}:
            np.maximum(tile, own[:, start : start + width], out=tile)
