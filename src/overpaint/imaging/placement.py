"""Where a picture lies in the result, and which part of a canvas is the result."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from PIL import Image
from PIL.Image import Resampling

from overpaint.imaging import sizing
from overpaint.imaging.framing import Box
from overpaint.imaging.masks import Size

if TYPE_CHECKING:
    from overpaint.request.fields import Fit

ASPECT_TOLERANCE = 0.05
"""Relative difference of aspects that a control image may have: sides are rounded to 8."""


@dataclass(frozen=True)
class Placement:
    """Where the request's image lies in the result, so that control images can follow it.

    Attributes:
        source: (width, height) of the image; None for text to image.
        fitted: (width, height) that the image was resized to.
        fit: how the image was resized.
        sides: pixels added at the (left, top, right, bottom).
    """

    source: Size | None
    fitted: Size
    fit: "Fit" = "cover"
    sides: Box = (0, 0, 0, 0)

    def place(self, picture: Image.Image, resampling: Resampling) -> Image.Image:
        """Resize a picture that has the image's size or the result's aspect to the result's size.

        Raises:
            ValueError: the picture has neither; the message gives both sizes.
        """
        left, top, right, bottom = self.sides
        whole = left + self.fitted[0] + right, top + self.fitted[1] + bottom
        if picture.size == self.source:
            placed = Image.new(picture.mode, whole)
            placed.paste(sizing.fit_image(picture, self.fitted, self.fit, resampling), (left, top))
            return placed
        across, down = (a / b for a, b in zip(whole, picture.size, strict=True))
        if abs(across / down - 1) > ASPECT_TOLERANCE:
            sizes = [f"{w}x{h}" for w, h in (picture.size, self.source or whole)]
            raise ValueError(
                f"{sizes[0]} has another aspect than the {'image' if self.source else 'result'}, "
                f"{sizes[1]}"
            )
        return picture.resize(whole, resampling)


@dataclass(frozen=True)
class Trim:
    """The part of a canvas, at its top left corner, that is the result.

    Attributes:
        share: of the canvas's width and height.
        size: (width, height) of the result.
    """

    share: tuple[float, float]
    size: Size

    def scale(self, factor: float) -> "Trim":
        """Return the part of a larger canvas."""
        return replace(self, size=(round(factor * self.size[0]), round(factor * self.size[1])))

    def cut(self, painted: Image.Image) -> Image.Image:
        """Return the result: cropped, and resized only if its size differs from the part's."""
        box = (0.0, 0.0, painted.width * self.share[0], painted.height * self.share[1])
        if (round(box[2], 6), round(box[3], 6)) == self.size:
            return painted.crop((0, 0, *self.size))
        return painted.resize(self.size, Resampling.LANCZOS, box=box)
