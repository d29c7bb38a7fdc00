"""Read masks from pictures: from their transparency, or from their brightness without any."""

from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from overpaint.imaging import codec, color_modes
from overpaint.picture import Picture

if TYPE_CHECKING:
    from collections.abc import Callable

Mask = NDArray[np.float32]

MIN_WHITE_LEVEL = 248
"""Level (of 255) from which a channel of a stroke counts as white."""
MIN_MASK_VALUE = 8 / 255
"""Smaller values count as 0, because lossy formats do not keep black exact."""


@dataclass(frozen=True)
class MaskUse:
    """The use of a mask, in the words of messages.

    Attributes:
        name: the mask.
        effect: what happens with the white part; the part follows.
        remedy: how to use the other part, in brackets after a space.
    """

    name: str = "the mask"
    effect: str = "Overpaint repaints"
    remedy: str = " (mask_invert repaints the rest)"


REPAINTED = MaskUse()


def decode_mask(
    mask: Picture,
    size: tuple[int, int],
    notices: list[str] | None = None,
    use: MaskUse = REPAINTED,
) -> Mask:
    """Decode a mask from the transparency of a picture, or from its brightness without any.

    Transparent pixels and white pixels are 1. White strokes on a clear layer are 1 too, if they
    cover less than half of it.

    Args:
        mask: the encoded picture.
        size: the (width, height) that the mask must have.
        notices: the function appends messages about the reading.
        use: what the mask is for.

    Raises:
        PictureError: the mask cannot be decoded, or has another size.
    """
    codec.check_mask_size(mask, size)
    say: Callable[[str], None] = ([] if notices is None else notices).append
    with codec.open_upright(mask, use.name, notices) as image:
        if (alpha := codec.extract_alpha(image)) is None:
            return _read_brightness(image, say, use)
        return _read_alpha(image, alpha, say, use)


def encode_transparency(picture: Picture) -> Picture | None:
    """Return a gray mask that is white where a picture is transparent; None if it is opaque.

    Raises:
        PictureError: the picture cannot be decoded.
    """
    with codec.open_upright(picture, "the mask") as image:
        alpha = codec.extract_alpha(image)
    if alpha is None:
        return None
    buffer = BytesIO()
    ImageOps.invert(alpha).save(buffer, "PNG", compress_level=1)
    return Picture(data=buffer.getvalue())


def _read_alpha(
    image: Image.Image, alpha: Image.Image, say: "Callable[[str], None]", use: MaskUse
) -> Mask:
    opacity = np.asarray(alpha, np.float32) / np.float32(255)
    if 0 < opacity.max() <= 1 / 255:
        say(f"the transparency of {use.name} has the levels 0 and 1 of 255: 1 counts as opaque.")
        opacity *= 255
    colors = np.asarray(color_modes.convert_to_srgb(image).convert("RGB"))
    visible = opacity >= MIN_MASK_VALUE
    white = visible.any() and (colors[visible] >= MIN_WHITE_LEVEL).all()
    if white and opacity.mean() < 0.5:
        say(
            f"{use.name} has white strokes on a transparent layer: {use.effect} the strokes, "
            f"{opacity.mean():.0%} of the picture{use.remedy}."
        )
        return opacity
    say(
        f"{use.name} has transparency: {use.effect} its transparent part, "
        f"{1 - opacity.mean():.0%} of the picture{use.remedy}."
    )
    return 1 - opacity


def _read_brightness(image: Image.Image, say: "Callable[[str], None]", use: MaskUse) -> Mask:
    """Read white as 1 and black as 0; masks of 0 and 1, also in floating point, are stretched."""
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image, np.float32)
        if values.min() >= 0 and 0 < values.max() <= 1:
            say(f"the levels of {use.name} end at {values.max():g}: 1 counts as white.")
            return values
    elif image.mode in {"L", "RGB", "P"} and image.format != "JPEG":
        levels = np.asarray(image.convert("RGB"))
        if levels.max() == 1:
            say(f"{use.name} has the levels 0 and 1 of 255: 1 counts as white.")
            return levels.max(axis=2).astype(np.float32)
    colors = color_modes.convert_to_rgb(image)
    gray = np.asarray(colors.convert("L"), np.float32)
    if MIN_MASK_VALUE * 255 <= gray.max() < MIN_WHITE_LEVEL and not color_modes.is_gray(colors):
        say(
            f"{use.name} has colors, whose brightness counts: {use.effect} its brightest part at "
            f"{gray.max() / 255:.0%}. White counts as 100%."
        )
    if 0 < gray.max() < MIN_MASK_VALUE * 255:
        say(f"the brightest level of {use.name} is {gray.max():g} of 255; below 8 counts as black.")
    return gray / np.float32(255)
