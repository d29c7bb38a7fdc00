"""Hints that show edges: canny, lineart, scribble, softedge."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

EDGE_SIGMA_PIXELS = 1.0
"""Standard deviation in pixels of the blur before edges are found."""


def canny(picture: Image.Image, *, low: float = 100, high: float = 200) -> Image.Image:
    """Draw white edges on black, one pixel wide (Canny 1986, "A computational approach").

    Args:
        picture: an RGB picture.
        low: gradient above which an edge continues, 0 to 255.
        high: gradient above which an edge begins, 0 to 255.
    """
    return _to_gray_image(cv2.Canny(np.asarray(picture), low, high))


def softedge(picture: Image.Image) -> Image.Image:
    """Draw the strength of the edge at each pixel, of the strongest color channel.

    The gradient (Scharr 2000) of the slightly blurred picture; its strongest hundredth is white.
    """
    blurred = cv2.GaussianBlur(_to_floats(picture), (0, 0), EDGE_SIGMA_PIXELS)
    across, down = (
        np.asarray(cv2.Scharr(blurred, cv2.CV_32F, *axis), np.float32) for axis in ((1, 0), (0, 1))
    )
    strength = np.hypot(across, down).max(axis=2)
    return _to_gray_image(
        255 * (strength / max(float(np.percentile(strength, 99)), 1e-3)).clip(0, 1)
    )


def lineart(picture: Image.Image, *, width: float = 1.5) -> Image.Image:
    """Draw white lines on black where the picture is darker than its surroundings or has an edge.

    A difference of Gaussians (Winnemöller et al. 2012, "XDoG", equation 3).

    Args:
        picture: an RGB picture.
        width: width of the lines in pixels.
    """
    gray = _to_floats(picture).mean(axis=2) / 255
    fine, coarse = (
        np.asarray(cv2.GaussianBlur(gray, (0, 0), width * by), np.float32) for by in (0.6, 1.6)
    )
    return _to_gray_image(255 * np.tanh(12 * np.abs(fine - coarse)).clip(0, 1))


def scribble(picture: Image.Image, *, width: float = 3) -> Image.Image:
    """Draw the strongest edges with a thick pen.

    Args:
        picture: an RGB picture.
        width: width of the lines in pixels.
    """
    edges = np.asarray(softedge(picture), np.float32)[..., 0]
    strong = _find_ridges(edges) & (edges > 80)
    pen = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (max(1, round(width)),) * 2)
    return _to_gray_image(255.0 * np.asarray(cv2.dilate(strong.astype(np.uint8), pen)))


def _find_ridges(edges: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Mark the pixels where an edge is strongest across any of four directions."""
    lines = [np.zeros((5, 5), np.uint8) for _ in range(4)]
    for i in range(5):
        lines[0][2, i] = lines[1][i, 2] = lines[2][i, i] = lines[3][4 - i, i] = 1
    smooth = np.asarray(cv2.GaussianBlur(edges, (0, 0), EDGE_SIGMA_PIXELS), np.float32)
    return np.any([np.asarray(cv2.dilate(smooth, line)) == smooth for line in lines], axis=0)


def _to_floats(picture: Image.Image) -> NDArray[np.float32]:
    return np.asarray(picture.convert("RGB"), np.float32)


def _to_gray_image(values: NDArray[Any]) -> Image.Image:
    """Convert values [h, w] in 0..255 to an RGB picture of equal channels."""
    return Image.fromarray(np.rint(values).astype(np.uint8)).convert("RGB")
