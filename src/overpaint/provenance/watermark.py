"""An invisible watermark: 48 bits in the blue of a picture, which decoders of others find.

The bits and the method are those of SDXL's own code, the `dwtDct` of the package
`invisible-watermark` (ShieldMnt, 2021; `imwatermark/maxDct.py`): of the chroma U, the low band of
one level of Haar wavelets is cut into blocks of 4 x 4, and each block holds a bit in the remainder
of its largest coefficient by 36. A low coefficient is the sum of 2 x 2 pixels, halved: they are
changed here without any transform. Otherwise than there, each block is changed as little as may be
so that the coefficient stays the largest.

It says that a picture was made by a model, not by whom. It outlives JPEG, not scaling or cropping.
"""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

BITS = np.array([int(bit) for bit in f"{0b101100111110110010010000011110111011000110011110:048b}"])
"""SDXL's: generative-models, `scripts/demo/streamlit_helpers.py`."""

SCALE = 36
BLOCK = 8
"""Pixels of a block's side."""

SMALLEST = 256 * 256
"""Pixels of a picture that can hold it, as in the package."""

AGREEING = 42
"""Bits of 48 that must agree: by chance they do in 4 of 100 million pictures."""


def fits(size: tuple[int, int]) -> bool:
    """Whether a picture of (width, height) is large enough."""
    return size[0] * size[1] >= SMALLEST


def marked(image: Image.Image) -> tuple[Image.Image, str | None]:
    """An RGB picture with the watermark, or as it is, and why it holds none.

    What is too small holds none, nor does what is white almost everywhere.
    """
    if not fits(image.size):
        size = f"{image.width}x{image.height}"
        return (
            image,
            f"{size} pixels are too few for a watermark, which takes 256x256: it has none.",
        )
    made = _mark(image)
    return (made, None) if found(made) else (image, "it is too plain for a watermark: it has none.")


def found(image: Image.Image) -> bool:
    """Whether an RGB picture has the watermark."""
    if not fits(image.size):
        return False
    largest = _blocks(_yuv(image))[..., 1:].max(axis=-1).ravel()
    ones = largest % SCALE > SCALE / 2
    which = np.arange(ones.size) % BITS.size
    share = np.bincount(which, ones, BITS.size) / np.bincount(which, minlength=BITS.size)
    return int(((share > 0.5) == BITS).sum()) >= AGREEING


def _mark(image: Image.Image) -> Image.Image:
    yuv = _yuv(image)
    low = _blocks(yuv)
    wanted = _nearest(low, np.resize(BITS, low.shape[:2]))
    change = np.zeros_like(low)
    change[..., 1:] = wanted - low[..., 1:]
    rows, columns = _sides(yuv)
    grid = change.reshape(rows, columns, 4, 4).transpose(0, 2, 1, 3).reshape(rows * 4, columns * 4)
    pixels = (grid / 2).repeat(2, axis=0).repeat(2, axis=1)
    chroma = yuv[: rows * BLOCK, : columns * BLOCK, 1].astype(np.float64) + pixels
    yuv[: rows * BLOCK, : columns * BLOCK, 1] = np.clip(chroma.round(), 0, 255)
    return Image.fromarray(cv2.cvtColor(yuv, cv2.COLOR_YUV2RGB))


def _yuv(image: Image.Image) -> NDArray[Any]:
    """[h, w, 3], uint8."""
    return np.asarray(cv2.cvtColor(np.asarray(image.convert("RGB")), cv2.COLOR_RGB2YUV))


def _sides(yuv: NDArray[Any]) -> tuple[int, int]:
    """How many blocks are below and beside each other; what is left over holds nothing."""
    return yuv.shape[0] // BLOCK, yuv.shape[1] // BLOCK


def _blocks(yuv: NDArray[Any]) -> NDArray[np.float64]:
    """U's low coefficients [rows, columns, 16], 0 to 510."""
    rows, columns = _sides(yuv)
    chroma = yuv[: rows * BLOCK, : columns * BLOCK, 1].astype(np.float64)
    sums = chroma.reshape(rows, 4, 2, columns, 4, 2).sum(axis=(2, 5)) / 2
    return sums.transpose(0, 2, 1, 3).reshape(rows, columns, 16)


def _nearest(low: NDArray[np.float64], bits: NDArray[Any]) -> NDArray[np.float64]:
    """Coefficients [rows, columns, 15], the first left out, that hold the bits.

    Either the largest becomes larger, or all that are above a smaller value become that.
    """
    others = low[..., 1:]
    largest = others.max(axis=-1, keepdims=True)
    rest = (0.25 + 0.5 * bits[..., None]) * SCALE
    below = np.floor((largest - rest) / SCALE) * SCALE + rest
    lowered = np.minimum(others, below)
    raised = np.where(np.arange(15) == others.argmax(axis=-1)[..., None], below + SCALE, others)
    costs = (((made - others) ** 2).sum(axis=-1, keepdims=True) for made in (lowered, raised))
    return np.where(np.less(*costs), lowered, raised)
