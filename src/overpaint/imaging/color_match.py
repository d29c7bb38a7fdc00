"""Shift the colors of painted pixels to those of the kept pixels around them, without a seam."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.floating[Any]]

LENGTH_SHARE = 1 / 16
"""Length λ of the kernel exp(-distance / λ), as a share of the picture's shorter side."""
NO_SHIFT_WEIGHT = 1e-4
"""Weight of the shift 0 in the mean; the weights of a picture that is kept everywhere sum to 1.

At an edge the kept pixels weigh up to 0.5. Some 9 λ away from them, 0 weighs as much as they do.
"""
WORK_SIDE = 128
"""Pixels of the shorter side, at most, at which the shift is computed: it has no details."""

LOWEST_LEVEL = -128
"""The lowest level of a color channel of CIELAB; the highest is 127."""
BINS_PER_LEVEL = 64
"""Bins of the histograms: 1/64 of a level is far below one of 256 levels of red, green or blue."""
BINS = 256 * BINS_PER_LEVEL


def match_colors(painted: Pixels, wanted: Pixels, same: NDArray[Any]) -> Pixels:
    """Shift painted pixels smoothly so that they agree with `wanted` where both show the same.

    The shift is the mean of the differences, weighted by k(r) = exp(-r / λ) of their distance r,
    and of the shift 0 with a small constant weight. So it fades to 0 far from all differences.
    It has no step at any distance: each weight changes by 1/λ of itself per pixel, so the
    shift changes by at most 2 × (the largest difference) / λ per pixel.

    Args:
        painted: [height, width, 3] in 0..255.
        wanted: [height, width, 3] in 0..255.
        same: [height, width]; how much each pixel counts, 0 to 1; 0 where both differ.
    """
    if not same.any():
        return painted
    height, width = same.shape
    scale = max(1.0, min(same.shape) / WORK_SIDE)
    size = max(1, round(width / scale)), max(1, round(height / scale))
    weight = same.astype(np.float32)[..., None]
    terms = np.concatenate([(wanted - painted) * weight, weight], axis=2)
    small = np.asarray(cv2.resize(terms, size, interpolation=cv2.INTER_AREA))
    blurred = _convolve(small, max(1.0, LENGTH_SHARE * min(small.shape[:2])))
    shift = blurred[..., :3] / (blurred[..., 3:] + NO_SHIFT_WEIGHT)
    large = cv2.resize(shift, (width, height), interpolation=cv2.INTER_LINEAR)
    return painted + np.asarray(large, painted.dtype)


def _convolve(values: NDArray[Any], length: float) -> NDArray[np.float64]:
    """Convolve [height, width, channels] with exp(-distance / length); beyond the border is 0."""
    height, width = values.shape[:2]
    down = np.minimum(np.arange(2 * height), np.arange(2 * height, 0, -1))
    across = np.minimum(np.arange(2 * width), np.arange(2 * width, 0, -1))
    kernel = np.exp(-np.hypot(down[:, None], across) / length)
    kernel /= kernel.sum()
    shape = kernel.shape
    product = np.fft.rfft2(values, shape, axes=(0, 1)) * np.fft.rfft2(kernel)[..., None]
    return np.fft.irfft2(product, shape, axes=(0, 1))[:height, :width]


def match_image_colors(painted: Image.Image, wanted: Image.Image) -> Image.Image:
    """Return a picture with the distribution of another one's colors, and its own brightness.

    The two color channels of CIELAB are mapped so that their histograms agree. AUTOMATIC1111's
    color correction does so too, and then restores the brightness.

    Args:
        painted: an RGB picture.
        wanted: an RGB picture of any size.
    """
    lab = cv2.cvtColor(np.asarray(painted, np.float32) / np.float32(255), cv2.COLOR_RGB2LAB)
    target = cv2.cvtColor(np.asarray(wanted, np.float32) / np.float32(255), cv2.COLOR_RGB2LAB)
    for channel in (1, 2):
        lab[..., channel] = _match_histogram(lab[..., channel], target[..., channel])
    rgb = cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)
    return Image.fromarray(np.rint(rgb.clip(0, 1) * 255).astype(np.uint8))


def _match_histogram(values: NDArray[Any], wanted: NDArray[Any]) -> NDArray[np.float32]:
    """Map values of a color channel to those of the same rank in another array.

    Ranks are those of narrow bins, so that the time is linear in the pixels: nothing is sorted.
    """
    bins = _find_bins(values)
    counts = np.bincount(bins.ravel(), minlength=BINS)
    wanted_counts = np.bincount(_find_bins(wanted).ravel(), minlength=BINS)
    there = np.flatnonzero(wanted_counts)
    ranks = (np.cumsum(counts) - counts / 2) / values.size
    wanted_ranks = (np.cumsum(wanted_counts) - wanted_counts / 2)[there] / wanted.size
    table = np.interp(ranks, wanted_ranks, there / BINS_PER_LEVEL + LOWEST_LEVEL)
    return table.astype(np.float32)[bins]


def _find_bins(values: NDArray[Any]) -> NDArray[np.intp]:
    bins = np.rint((values - LOWEST_LEVEL) * BINS_PER_LEVEL).astype(np.intp)
    return bins.clip(0, BINS - 1)
