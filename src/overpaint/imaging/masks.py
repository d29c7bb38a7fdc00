"""Masks: which pixels are repainted, and with how much of the strength.

A mask is an array [height, width] of float32: 1 is repainted, 0 kept, and what lies between gets
its share of the strength.
"""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw, ImageOps

from overpaint.errors import RequestError
from overpaint.imaging import codec

if TYPE_CHECKING:
    from overpaint.picture import Picture
    from overpaint.request import Request

Mask = NDArray[np.float32]
Size = tuple[int, int]

MIN_MASK_VALUE = 8 / 255
"""Values below count as 0: what a lossy format leaves of black."""

COLOR_TOLERANCE_LEVELS = 16
"""Levels by which a channel may differ from a colour that is looked for."""


def build_mask(request: "Request", picture: Image.Image) -> Mask | None:
    """The mask that a request asks for on its upright picture, or None.

    Inverted, grown and blurred as the request says, in this order.

    Raises:
        PictureError: the mask cannot be decoded, or has another size than the picture.
        RequestError: `mask_from` cannot be understood, or draws outside the picture.
    """
    if request.mask:
        mask = decode_mask(request.mask, picture.size)
    elif request.mask_from:
        mask = draw_mask(request.mask_from, picture)
    else:
        return None
    if request.mask_invert:
        mask = 1 - mask
    mask = blur_mask(grow_mask(mask, request.mask_grow), request.mask_blur)
    mask[mask < MIN_MASK_VALUE] = 0
    return mask


def decode_mask(mask: "Picture", size: Size) -> Mask:
    """A mask from a picture: its transparency where it has any, else its brightness.

    Transparent is repainted, as white is.

    Args:
        mask: encoded.
        size: (width, height) that it must have.

    Raises:
        PictureError: it cannot be decoded, or has another size.
    """
    codec.check_mask_size(mask, size)
    with codec.open_image(mask.data, "the mask") as image:
        image.load()
        upright = ImageOps.exif_transpose(image)
        opaque = codec.extract_alpha(upright)
    if opaque:
        return 1 - np.asarray(opaque, np.float32) / np.float32(255)
    return np.asarray(codec.decode(mask).convert("L"), np.float32) / np.float32(255)


# Masks in words: the name of a shape, a colon, and numbers in pixels from the top left.


def draw_mask(words: str, picture: Image.Image) -> Mask:
    """A mask from words.

    Args:
        words: "box:LEFT,TOP,RIGHT,BOTTOM", "ellipse:" likewise, "polygon:X,Y,X,Y,X,Y…", or
            "color:#rrggbb" (or a CSS name): the pixels of that colour, within 16 levels.
        picture: upright.

    Raises:
        RequestError: not such words, or a shape that does not touch the picture.
    """
    kind, _, rest = words.partition(":")
    if (drawer := MASK_SHAPES.get(kind.strip().lower())) is None:
        raise RequestError(
            "mask_from", f"{words!r} starts with none of: {', '.join(f'{k}:' for k in MASK_SHAPES)}"
        )
    mask = drawer(rest, picture)
    if not mask.any():
        raise RequestError(
            "mask_from",
            f"{words!r} is nowhere in the picture of {picture.width}x{picture.height} pixels.",
        )
    return mask


def _draw_box(words: str, picture: Image.Image) -> Mask:
    left, top, right, bottom = _parse_numbers("box", words, 4)
    mask = np.zeros((picture.height, picture.width), np.float32)
    mask[max(0, round(top)) : max(0, round(bottom)), max(0, round(left)) : max(0, round(right))] = 1
    return mask


def _draw_ellipse(words: str, picture: Image.Image) -> Mask:
    left, top, right, bottom = _parse_numbers("ellipse", words, 4)
    y, x = np.ogrid[0.5 : picture.height, 0.5 : picture.width]
    wide, high = max(right - left, 1e-3) / 2, max(bottom - top, 1e-3) / 2
    inside = ((x - left - wide) / wide) ** 2 + ((y - top - high) / high) ** 2 <= 1
    return inside.astype(np.float32)


def _draw_polygon(words: str, picture: Image.Image) -> Mask:
    values = _parse_numbers("polygon", words, None)
    drawn = Image.new("L", picture.size)
    ImageDraw.Draw(drawn).polygon(list(zip(values[::2], values[1::2], strict=True)), fill=255)
    return np.asarray(drawn, np.float32) / np.float32(255)


def _select_color(words: str, picture: Image.Image) -> Mask:
    try:
        wanted = ImageColor.getrgb(words.strip())[:3]
    except ValueError:
        raise RequestError("mask_from", f"{words!r} is no colour; give #rrggbb or a name") from None
    difference = np.abs(np.asarray(picture.convert("RGB"), np.int16) - np.array(wanted, np.int16))
    return (difference.max(axis=2) <= COLOR_TOLERANCE_LEVELS).astype(np.float32)


def _parse_numbers(shape: str, words: str, count: int | None) -> list[float]:
    parts = [part.strip() for part in words.split(",")]
    enough = len(parts) == count if count else len(parts) >= 6 and len(parts) % 2 == 0
    if not enough or not all(re.fullmatch(r"-?\d{1,6}(\.\d*)?", part) for part in parts):
        wanted = f"{count} numbers" if count else "x,y of at least three corners"
        raise RequestError("mask_from", f"'{shape}:{words}': give {wanted}, separated by commas.")
    return [float(part) for part in parts]


MASK_SHAPES: dict[str, Callable[[str, Image.Image], Mask]] = {
    "box": _draw_box,
    "ellipse": _draw_ellipse,
    "polygon": _draw_polygon,
    "color": _select_color,
    "colour": _select_color,
}


# Shapes


def grow_mask(mask: Mask, pixels: int) -> Mask:
    """The mask with its edge moved outwards by so many pixels, or inwards if negative."""
    if pixels == 0:
        return mask
    side = 2 * abs(pixels) + 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    change = cv2.dilate if pixels > 0 else cv2.erode
    return np.asarray(change(mask, disc), np.float32)


def blur_mask(mask: Mask, pixels: int) -> Mask:
    """The mask with its edge softened over so many pixels to either side."""
    if pixels == 0:
        return mask
    return np.asarray(cv2.GaussianBlur(mask, (0, 0), pixels / 2), np.float32)


def feather_mask(mask: Mask, pixels: float) -> Mask:
    """How much of a painted picture shows: 0 where the mask is, rising inwards to 1.

    Outside the mask nothing shows, so that what is kept stays as it was to the bit.

    Args:
        mask: what counts is where it is not 0.
        pixels: from the edge to where it is 1.
    """
    inside = (mask > 0).astype(np.uint8)
    if inside.all():
        return np.ones_like(mask)
    distance = cv2.distanceTransform(inside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.clip(np.asarray(distance, np.float32) / np.float32(pixels + 1), 0, 1)


def find_bounds(mask: Mask) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of what is not 0; the last two are exclusive."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def resize_mask(mask: Mask, size: Size) -> Mask:
    """The mask at (width, height): averaged where it shrinks, linear between where it grows."""
    height, width = mask.shape
    if size == (width, height):
        return mask
    smaller = size[0] * size[1] < width * height
    how = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(mask, size, interpolation=how), np.float32)


def to_latent_cells(mask: Mask, factor: int) -> Mask:
    """The mask of latent cells, each as strong as its strongest pixel: [h, w]."""
    height, width = mask.shape
    return mask.reshape(height // factor, factor, width // factor, factor).max(axis=(1, 3))
