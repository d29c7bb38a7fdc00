"""The region of a picture that is repainted, and how it is put back."""

from dataclasses import dataclass

import numpy as np
from PIL import Image
from PIL.Image import Resampling

from overpaint.imaging import masks
from overpaint.imaging.color_match import match_colors
from overpaint.imaging.fills import to_image, to_pixels
from overpaint.imaging.framing import Box
from overpaint.imaging.masks import Mask, Size

MAX_SILENT_ENLARGEMENT = 1.5
"""Factor up to which a painted picture is enlarged without a notice."""
COLOR_TRUST_PX = 16
"""Distance from the mask in canvas pixels at which a kept pixel fully counts for the match of
colors: the VAE's decoder mixes nearer pixels with the repainted content."""


@dataclass(frozen=True, eq=False)
class Region:
    """The region of a picture that is repainted.

    Attributes:
        base: the whole picture, RGB, at the result's size.
        layer: the whole picture with its transparency, RGBA; None if it is opaque.
        box: (left, top, right, bottom) of the region in `base`.
        original: the region before painting, at the canvas's size.
        mask: float32 [height, width] at the canvas's size.
        opacity: float32 [height, width] at the region's own size: the share of the painted pixels.
        match_colors: shift the painted pixels to the colors of the kept pixels around them.
    """

    base: Image.Image
    layer: Image.Image | None
    box: Box
    original: Image.Image
    mask: Mask
    opacity: Mask
    match_colors: bool

    def describe_scale(self, size: Size) -> str | None:
        """Return a notice if only a part is painted, or if the part is enlarged, else None.

        Args:
            size: (width, height) at which the region is painted.
        """
        width, height = self.box[2] - self.box[0], self.box[3] - self.box[1]
        if (width, height) != self.base.size:
            share = size[0] * size[1] / (self.base.width * self.base.height)
            return (
                f"{width}x{height} pixels around the mask are painted, at {size[0]}x{size[1]}: "
                f"{share:.0%} of the whole picture's work (crop 'off' paints all of it)."
            )
        if (factor := max(width / size[0], height / size[1])) <= MAX_SILENT_ENLARGEMENT:
            return None
        return (
            f"{width}x{height} pixels are painted at {size[0]}x{size[1]} and enlarged "
            f"{factor:.1f} times."
        )

    def compose(self, painted: Image.Image) -> Image.Image:
        """Blend the painted region into the picture; pixels of opacity 0 do not change by a bit.

        Returns:
            RGBA if the picture is transparent anywhere, else RGB. Painted pixels become opaque.
        """
        left, top, right, bottom = self.box
        pixels = to_pixels(painted)
        if self.match_colors:
            kept = self.original.resize(painted.size, Resampling.LANCZOS)
            same = (masks.resize_mask(self.mask, painted.size) == 0).astype(np.float32)
            trust = masks.feather_mask(same, COLOR_TRUST_PX) ** 3
            pixels = match_colors(pixels, to_pixels(kept), trust)
        if painted.size != (right - left, bottom - top):
            resized = to_image(pixels).resize((right - left, bottom - top), Resampling.LANCZOS)
            pixels = to_pixels(resized)
        opacity = self.opacity[..., None]
        whole = np.array(self.layer or self.base)
        region = whole[top:bottom, left:right]
        if self.layer is None:
            blended = region + (pixels - region) * opacity
        else:  # "over" of Porter and Duff (1984)
            below = region[..., 3:] / np.float32(255) * (1 - opacity)
            alpha = opacity + below
            colors = (pixels * opacity + region[..., :3] * below) / alpha.clip(1e-6)
            blended = np.concatenate([colors, alpha * 255], axis=2)
        touched = self.opacity > 0
        region[touched] = np.rint(blended.clip(0, 255))[touched]
        return Image.fromarray(whole)
