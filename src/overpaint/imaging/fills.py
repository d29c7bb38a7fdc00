"""Fills: the pixels inside a mask that painting starts from."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:
    from overpaint.registry import Fill

Pixels = NDArray[np.floating[Any]]
Mask = NDArray[np.float32]


def _keep_original(kept: Image.Image, mask: Mask) -> Image.Image:
    del mask
    return kept


def _fill_from_surroundings(kept: Image.Image, mask: Mask) -> Image.Image:
    return to_image(blur_inward(to_pixels(kept), 1 - mask))


def _fill_with_mean(kept: Image.Image, mask: Mask) -> Image.Image:
    pixels = to_pixels(kept)
    around = mask == 0
    color = pixels[around].mean(axis=0) if around.any() else np.full(3, 127.5, np.float32)
    return to_image(pixels + (color - pixels) * mask[..., None])


FILLS: "dict[Fill, Callable[[Image.Image, Mask], Image.Image]]" = {
    "original": _keep_original,
    "surroundings": _fill_from_surroundings,
    "flat": _fill_with_mean,
    "noise": _keep_original,
}


def blur_inward(pixels: Pixels, known: Mask) -> Pixels:
    """Fill unknown pixels smoothly from the known pixels around them.

    Pull-push (Gortler et al. 1996, "The Lumigraph", section 3.4): halve the picture until all of it
    is known, then fill unknown pixels from the half size.

    Args:
        pixels: [height, width, 3].
        known: [height, width], 0 (unknown) to 1.
    """
    height, width = known.shape
    if known.min() == 1 or max(height, width) == 1:
        return pixels
    half = (width + 1) // 2, (height + 1) // 2
    weight = np.asarray(cv2.resize(known, half, interpolation=cv2.INTER_AREA), np.float32)
    total = cv2.resize(pixels * known[..., None], half, interpolation=cv2.INTER_AREA)
    mean = np.asarray(total, np.float32).reshape(*weight.shape, 3) / weight.clip(1e-6)[..., None]
    smaller = blur_inward(mean, np.minimum(weight * 4, 1))
    larger = cv2.resize(smaller, (width, height), interpolation=cv2.INTER_LINEAR)
    filled = np.asarray(larger, np.float32).reshape(height, width, 3)
    return filled + (pixels - filled) * known[..., None]


def to_pixels(image: Image.Image) -> Pixels:
    """Return an RGB picture as float32 [height, width, 3] in 0..255."""
    return np.asarray(image, np.float32)


def to_image(pixels: Pixels) -> Image.Image:
    """Return an RGB picture from an array [height, width, 3]; values outside 0..255 are clipped."""
    return Image.fromarray(np.rint(pixels.clip(0, 255)).astype(np.uint8))
