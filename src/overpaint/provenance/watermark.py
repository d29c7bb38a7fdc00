"""An invisible watermark: 48 bits in the blue channel, which common decoders find.

The bits and the method are those of SDXL's reference code: `dwtDct` of the package
`invisible-watermark` (ShieldMnt, 2021; `imwatermark/maxDct.py`). The low band of one level of Haar
wavelets of the chroma U is cut into blocks of 4 x 4. Each block stores one bit in the remainder of
its largest coefficient divided by 36. A low coefficient is half the sum of 2 x 2 pixels, so that
this module changes pixels without a transform. Unlike the package, it changes each block as little
as possible while the coefficient stays the largest.

The watermark says that a model made the picture; it does not identify anybody. It survives JPEG
compression, but not scaling or cropping.
"""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from overpaint.imaging.color_modes import flatten

BITS = np.array([int(bit) for bit in f"{0b101100111110110010010000011110111011000110011110:048b}"])
"""The 48 bits of SDXL's watermark: generative-models, `scripts/demo/streamlit_helpers.py`."""

QUANTIZATION_STEP = 36
BLOCK_PIXELS = 8
"""Side of a block in pixels."""

MIN_PIXELS = 256 * 256
"""Pixels of a picture that can hold the watermark, at least, as in the package."""

MIN_MATCHING_BITS = 42
"""Bits of 48 that must match. By chance they match in 4 of 100 million pictures."""


def can_hold_watermark(size: tuple[int, int]) -> bool:
    """Return whether a picture of (width, height) is large enough for the watermark."""
    return size[0] * size[1] >= MIN_PIXELS


def add_watermark(image: Image.Image) -> tuple[Image.Image, str | None]:
    """Add the watermark to an RGB or RGBA picture.

    Returns:
        The marked picture and None; or the unchanged picture and a notice that gives the reason. A
        picture that is too small, or white almost everywhere, cannot hold the watermark.
    """
    if not can_hold_watermark(image.size):
        size = f"{image.width}x{image.height}"
        return (
            image,
            f"{size} pixels are too few for a watermark, which takes 256x256: it has none.",
        )
    made = _embed_bits(image)
    if image.mode == "RGBA":
        made.putalpha(image.getchannel("A"))
    return (
        (made, None)
        if has_watermark(made)
        else (image, "it is too plain for a watermark: it has none.")
    )


def has_watermark(image: Image.Image) -> bool:
    """Return whether an RGB or RGBA picture has the watermark where it is seen over white."""
    if not can_hold_watermark(image.size):
        return False
    largest = _low_coefficients(_convert_to_yuv(flatten(image)))[..., 1:].max(axis=-1).ravel()
    ones = largest % QUANTIZATION_STEP > QUANTIZATION_STEP / 2
    which = np.arange(ones.size) % BITS.size
    share = np.bincount(which, ones, BITS.size) / np.bincount(which, minlength=BITS.size)
    return int(((share > 0.5) == BITS).sum()) >= MIN_MATCHING_BITS


def _embed_bits(image: Image.Image) -> Image.Image:
    yuv = _convert_to_yuv(image)
    low = _low_coefficients(yuv)
    wanted = _quantize_blocks(low, np.resize(BITS, low.shape[:2]))
    change = np.zeros_like(low)
    change[..., 1:] = wanted - low[..., 1:]
    rows, columns = _count_blocks(yuv)
    grid = change.reshape(rows, columns, 4, 4).transpose(0, 2, 1, 3).reshape(rows * 4, columns * 4)
    pixels = (grid / 2).repeat(2, axis=0).repeat(2, axis=1)
    chroma = yuv[: rows * BLOCK_PIXELS, : columns * BLOCK_PIXELS, 1].astype(np.float64) + pixels
    yuv[: rows * BLOCK_PIXELS, : columns * BLOCK_PIXELS, 1] = np.clip(chroma.round(), 0, 255)
    return Image.fromarray(cv2.cvtColor(yuv, cv2.COLOR_YUV2RGB))


def _convert_to_yuv(image: Image.Image) -> NDArray[Any]:
    """Convert a picture to YUV, uint8 [h, w, 3]."""
    return np.asarray(cv2.cvtColor(np.asarray(image.convert("RGB")), cv2.COLOR_RGB2YUV))


def _count_blocks(yuv: NDArray[Any]) -> tuple[int, int]:
    """Return the (rows, columns) of whole blocks; the remaining pixels hold no bits."""
    return yuv.shape[0] // BLOCK_PIXELS, yuv.shape[1] // BLOCK_PIXELS


def _low_coefficients(yuv: NDArray[Any]) -> NDArray[np.float64]:
    """Return the low coefficients of U, [rows, columns, 16], 0 to 510."""
    rows, columns = _count_blocks(yuv)
    chroma = yuv[: rows * BLOCK_PIXELS, : columns * BLOCK_PIXELS, 1].astype(np.float64)
    sums = chroma.reshape(rows, 4, 2, columns, 4, 2).sum(axis=(2, 5)) / 2
    return sums.transpose(0, 2, 1, 3).reshape(rows, columns, 16)


def _quantize_blocks(low: NDArray[np.float64], bits: NDArray[Any]) -> NDArray[np.float64]:
    """Return the nearest values [rows, columns, 15] that hold the bits; the first is left out.

    Either the largest coefficient rises, or all coefficients above a smaller value fall to it.
    """
    others = low[..., 1:]
    largest = others.max(axis=-1, keepdims=True)
    rest = (0.25 + 0.5 * bits[..., None]) * QUANTIZATION_STEP
    below = np.floor((largest - rest) / QUANTIZATION_STEP) * QUANTIZATION_STEP + rest
    lowered = np.minimum(others, below)
    raised = np.where(
        np.arange(15) == others.argmax(axis=-1)[..., None], below + QUANTIZATION_STEP, others
    )
    costs = (((made - others) ** 2).sum(axis=-1, keepdims=True) for made in (lowered, raised))
    return np.where(np.less(*costs), lowered, raised)
