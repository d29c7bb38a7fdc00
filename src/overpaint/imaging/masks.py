"""Masks say which pixels are repainted, and with how much of the strength.

A mask is a float32 array [height, width]: 1 is repainted, 0 is kept, and a value between gets that
share of the strength. It stays float from the decoder to the latent cells.
"""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import cv2
import numpy as np
from PIL import Image, ImageColor, ImageDraw
from PIL.Image import Resampling

from overpaint.errors import RequestError
from overpaint.imaging import sizing
from overpaint.imaging.dilation import dilate
from overpaint.imaging.framing import Box
from overpaint.imaging.mask_files import MIN_MASK_VALUE, Mask, decode_mask
from overpaint.imaging.mask_files import MaskUse as MaskUse
from overpaint.imaging.mask_files import encode_transparency as encode_transparency
from overpaint.system.abandon import check_abandoned

if TYPE_CHECKING:
    from overpaint.request import Request
    from overpaint.request.fields import Fit

Size = tuple[int, int]

BLUR_SIGMA_PIXELS = 16
"""Standard deviation of a blur in pixels; for a wider one the mask is made smaller first."""

BLEND_SHARE = 1 / 4
"""Width of the fade of a window into the windows before, as a share of its shorter side."""

COLOR_TOLERANCE_LEVELS = 16
"""Levels (of 255) by which a channel may differ from the color that a mask selects."""


def build_mask(
    request: "Request", picture: Image.Image, notices: list[str] | None = None
) -> Mask | None:
    """Build the mask of a request for its upright picture; None if the request has no mask.

    The mask is inverted, grown and blurred as the request says, in this order. Messages about the
    reading of a mask file are appended to `notices`.

    Raises:
        PictureError: the mask cannot be decoded, or has another size than the picture.
        RequestError: `mask_from` is malformed, or selects no pixel of the picture.
    """
    if request.mask:
        mask = decode_mask(request.mask, picture.size, notices)
    elif request.mask_from:
        mask = draw_mask(request.mask_from, picture)
    else:
        return None
    if request.mask_invert:
        mask = 1 - mask
    mask = blur_mask(grow_mask(mask, request.mask_grow), request.mask_blur)
    mask[mask < MIN_MASK_VALUE] = 0
    return mask


# Masks in words: the name of a shape, a colon, and pixels counted from the top left corner.


def draw_mask(words: str, picture: Image.Image) -> Mask:
    """Draw a mask from its description in words.

    Args:
        words: "box:LEFT,TOP,RIGHT,BOTTOM", "ellipse:LEFT,TOP,RIGHT,BOTTOM",
            "polygon:X,Y,X,Y,X,Y…", or "color:#rrggbb" (or a CSS name), which selects the pixels of
            that color within 16 levels of each channel.
        picture: the upright picture.

    Raises:
        RequestError: the words are malformed, or the shape does not touch the picture.
    """
    kind, _, rest = words.partition(":")
    if (drawer := MASK_SHAPES.get(kind.strip().lower())) is None:
        raise RequestError(
            "mask_from",
            f"{words!r} names no shape; begin with one of "
            f"{', '.join(f'{k}:' for k in MASK_SHAPES if k != 'colour')}.",
        )
    mask = drawer(rest, picture)
    if not mask.any():
        raise RequestError(
            "mask_from",
            f"{words!r} selects no pixel of the picture ({picture.width}x{picture.height} pixels).",
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
        raise RequestError(
            "mask_from", f"{words!r} is not a color; give #rrggbb or a name."
        ) from None
    difference = np.abs(np.asarray(picture.convert("RGB"), np.int16) - np.array(wanted, np.int16))
    return (difference.max(axis=2) <= COLOR_TOLERANCE_LEVELS).astype(np.float32)


def _parse_numbers(shape: str, words: str, count: int | None) -> list[float]:
    parts = [part.strip() for part in words.split(",")]
    enough = len(parts) == count if count else len(parts) >= 6 and len(parts) % 2 == 0
    if not enough or not all(re.fullmatch(r"-?\d{1,6}(\.\d*)?", part) for part in parts):
        wanted = f"{count} numbers" if count else "the x,y of at least three corners"
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
    """Move a mask's edge outward by a number of pixels, or inward if the number is negative."""
    if pixels == 0:
        return mask
    levels = np.rint(mask * 255).astype(np.uint8)
    grown = dilate(levels, pixels) if pixels > 0 else 255 - dilate(255 - levels, -pixels)
    return grown.astype(np.float32) / np.float32(255)


def blur_mask(mask: Mask, pixels: int) -> Mask:
    """Soften a mask's edge over a number of pixels on each side.

    A wide blur works on a smaller mask, so that its time does not grow with its width. The
    difference is below two thousandths, half a level of 8 bits.
    """
    if pixels == 0:
        return mask
    sigma = pixels / 2
    factor = max(1, int(sigma // BLUR_SIGMA_PIXELS))
    if factor == 1:
        return np.asarray(cv2.GaussianBlur(mask, (0, 0), sigma), np.float32)
    check_abandoned()
    height, width = mask.shape
    smaller = resize_mask(mask, (-(-width // factor), -(-height // factor)))
    own = (sigma**2 - factor**2 / 12) ** 0.5 / factor  # the area averages blur too
    blurred = cv2.GaussianBlur(smaller, (0, 0), own, borderType=cv2.BORDER_REFLECT)
    return resize_mask(np.asarray(blurred, np.float32), (width, height))


def feather_mask(mask: Mask, pixels: float) -> Mask:
    """Compute the opacity of the painted picture: 0 outside the mask, rising inward to 1.

    Outside the mask the opacity is exactly 0, so that kept pixels do not change by a bit.

    Args:
        mask: only whether a pixel is 0 matters.
        pixels: the distance from the edge at which the opacity reaches 1.
    """
    inside = (mask > 0).astype(np.uint8)
    if inside.all():
        return np.ones_like(mask)
    distance = cv2.distanceTransform(inside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.clip(np.asarray(distance, np.float32) / np.float32(pixels + 1), 0, 1)


def find_bounds(mask: Mask) -> tuple[int, int, int, int]:
    """Return (left, top, right, bottom) of the pixels above 0; right and bottom are exclusive."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def blend_into_painted(target: Mask, box: Box, inner: Box) -> Mask:
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


def fit_mask(mask: Mask, size: Size, how: "Fit") -> Mask:
    """Fit a mask to (width, height) in the way in which `sizing.fit_image` fits its picture."""
    fitted = sizing.fit_image(Image.fromarray(mask), size, how, Resampling.BILINEAR)
    fitted = np.array(fitted, np.float32)
    fitted[fitted < MIN_MASK_VALUE] = 0
    return fitted


def resize_mask(mask: Mask, size: Size) -> Mask:
    """Resize a mask to (width, height): by area averages to shrink, linearly to grow."""
    height, width = mask.shape
    if size == (width, height):
        return mask
    smaller = size[0] * size[1] < width * height
    how = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(mask, size, interpolation=how), np.float32)


def to_latent_cells(mask: Mask, factor: int) -> Mask:
    """Reduce a mask to latent cells [h, w]; each cell takes its strongest pixel."""
    height, width = mask.shape
    return mask.reshape(height // factor, factor, width // factor, factor).max(axis=(1, 3))
