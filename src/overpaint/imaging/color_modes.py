"""Convert open pictures of any mode and color profile to 8-bit sRGB, with or without alpha."""

from contextlib import suppress
from io import BytesIO

import numpy as np
from PIL import Image, ImageChops, ImageCms

from overpaint.errors import PictureError

MODE_BY_COLOR_SPACE = {b"GRAY": "L", b"RGB ": "RGB", b"CMYK": "CMYK", b"Lab ": "LAB"}
"""Pillow's mode of the color spaces that a profile's header names (ICC.1, 7.2.6)."""
COLOR_SPACE_OFFSET = 16
"""Offset of the color space in a profile."""


def convert_to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to 8-bit sRGB, with transparency over white."""
    return flatten(convert_to_srgb(image))


def convert_to_srgb(image: Image.Image) -> Image.Image:
    """Convert any mode to 8-bit sRGB: RGBA if a pixel is transparent, else RGB.

    Raises:
        PictureError: the picture has samples of more than 16 bits.
    """
    alpha = extract_alpha(image)
    profile = image.info.get("icc_profile")
    colors = _convert_profile(_drop_alpha(image), profile).convert("RGB")
    return colors if alpha is None else Image.merge("RGBA", (*colors.split(), alpha))


def flatten(image: Image.Image) -> Image.Image:
    """Return an RGB or RGBA picture as RGB, with transparency over white."""
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def extract_alpha(image: Image.Image) -> Image.Image | None:
    """Return the alpha channel (mode L) of an open picture; None if it is fully opaque."""
    if not image.has_transparency_data:
        return None
    if image.mode.startswith("I"):
        opaque = np.asarray(image) != image.info["transparency"]
        found = Image.fromarray(np.where(opaque, 255, 0).astype(np.uint8))
    else:
        bands = image.getbands()
        found = (image if "A" in bands and "P" not in bands else image.convert("RGBA")).getchannel(
            "A"
        )
    return None if found.getextrema() == (255, 255) else found


def _drop_alpha(image: Image.Image) -> Image.Image:
    """Return the colors of a picture without alpha: L, RGB or a mode without transparency."""
    if image.mode.startswith(("I", "F")):
        return _scale_to_8_bits(image)
    if image.mode in {"La", "RGBa"}:
        image = image.convert("RGBA")
    if image.mode == "LA":
        return image.getchannel("L")
    if image.mode in {"P", "PA", "RGBA"}:
        return Image.merge("RGB", image.convert("RGBA").split()[:3])
    colors = image.convert("L") if image.mode == "1" else image.copy()
    colors.info.pop("transparency", None)
    return colors


def _scale_to_8_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit gray (modes I;16 and I) to 8 bits."""
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise PictureError(
            f"The picture has 32-bit samples (mode {image.mode}), whose white level is not known; "
            "save it with 8 or 16 bits."
        )
    return Image.fromarray(np.rint(values / 257.0).astype(np.uint8))


def _convert_profile(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert a picture from its color profile to sRGB; an unreadable profile counts as sRGB.

    A gray profile applies to gray samples only, also where they are stored as RGB.
    """
    if not profile:
        return image
    mode = MODE_BY_COLOR_SPACE.get(profile[COLOR_SPACE_OFFSET : COLOR_SPACE_OFFSET + 4])
    if mode == "L" and image.mode == "RGB" and is_gray(image):
        image = image.getchannel(0)
    elif mode == "RGB" and image.mode == "L":
        image = image.convert("RGB")
    with suppress(ImageCms.PyCMSError, OSError):
        converted = ImageCms.profileToProfile(
            image,
            ImageCms.ImageCmsProfile(BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            outputMode="RGB",
        )
        if converted:
            # Pillow keeps the profile of sRGB, with the time when it was made.
            converted.info.pop("icc_profile", None)
            return converted
    return image


def is_gray(image: Image.Image) -> bool:
    """Return whether all pixels of an RGB picture are gray."""
    red, green, blue = image.split()
    return not (
        ImageChops.difference(red, green).getbbox() or ImageChops.difference(red, blue).getbbox()
    )
