"""Hints that keep a picture's colors: tile, blur, shuffle, palette."""

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.Image import Resampling


def tile(picture: Image.Image, *, factor: float = 4) -> Image.Image:
    """Shrink a picture and enlarge it again, so that a net adds details.

    Args:
        picture: an RGB picture.
        factor: how many times smaller the sides become.
    """
    small = tuple(max(1, round(side / factor)) for side in picture.size)
    return picture.resize((small[0], small[1]), Resampling.BOX).resize(
        picture.size, Resampling.BICUBIC
    )


def blur(picture: Image.Image, *, radius: float = 6) -> Image.Image:
    """Blur a picture.

    Args:
        picture: an RGB picture.
        radius: standard deviation of the Gaussian in pixels.
    """
    return Image.fromarray(np.asarray(cv2.GaussianBlur(np.asarray(picture), (0, 0), radius)))


def shuffle(picture: Image.Image, *, seed: float = 0, waves: float = 3) -> Image.Image:
    """Move every place of a picture elsewhere; its colors and textures stay.

    Args:
        picture: an RGB picture.
        seed: seed of the random displacement.
        waves: number of bends that the displacement has across the picture.
    """
    width, height = picture.size
    rng = np.random.default_rng(int(seed))
    count = max(2, round(waves) + 1)

    def places(side: int) -> NDArray[np.float32]:
        coarse = rng.uniform(0, 1, (count, count)).astype(np.float32)
        field = np.asarray(cv2.resize(coarse, picture.size, interpolation=cv2.INTER_CUBIC))
        spread = (field - field.min()) / max(float(np.ptp(field)), 1e-6)
        return (spread * (side - 1)).astype(np.float32)

    across, down = places(width), places(height)
    moved = cv2.remap(np.asarray(picture), across, down, cv2.INTER_LINEAR)
    return Image.fromarray(np.asarray(moved))


def palette(picture: Image.Image, *, squares: float = 8) -> Image.Image:
    """Reduce a picture to squares of one color each.

    Args:
        picture: an RGB picture.
        squares: number of squares along the shorter side.
    """
    scale = max(1.0, min(picture.size) / max(1.0, squares))
    small = tuple(max(1, round(side / scale)) for side in picture.size)
    return picture.resize((small[0], small[1]), Resampling.BOX).resize(
        picture.size, Resampling.NEAREST
    )
