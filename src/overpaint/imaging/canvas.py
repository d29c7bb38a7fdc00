"""What is painted on, in pixels: the whole picture or a region of it, and the way back."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.Image import Resampling

from overpaint.imaging import codec, hints, masks, sizing
from overpaint.imaging.masks import Mask, Size

if TYPE_CHECKING:
    from overpaint.registry import Fill
    from overpaint.request import Request
    from overpaint.request_fields import Fit

Box = tuple[int, int, int, int]
Pixels = NDArray[np.floating[Any]]

MAX_CROP_SHARE = 0.5
"""The share of the picture below which a region is cropped out by itself."""
CONTEXT_SHARE = 0.25
"""What is seen around a mask, as a share of its longer side, where the request does not say."""
MIN_REGION_ASPECT = 0.5
"""A region's shorter side over its longer one, where the picture allows."""
FEATHER_SHARE = 1 / 128
"""Of the native side: how far inside a mask's edge the old picture still shines through."""
ASPECT_TOLERANCE = 0.05
"""By how much a hint's aspect may differ from the result's: sides are rounded to multiples of 8."""
COLOR_MATCH_SHARE = 1 / 8
"""Of a region's shorter side: how far around a place its colours are compared."""


@dataclass(frozen=True, eq=False)
class Region:
    """The part of a picture that is repainted.

    Attributes:
        base: the picture, at the result's size.
        box: (left, top, right, bottom) of the region in it.
        kept: the region at the canvas's size, as it is.
        mask: the strength of its pixels, at that size.
        shown: how much of what is painted shows, at the region's own size.
        match_colors: bring the painted region to the colours of what is kept around it.
    """

    base: Image.Image
    box: Box
    original: Image.Image
    mask: Mask
    opacity: Mask
    match_colors: bool

    def describe_crop(self, size: Size) -> str | None:
        """What the user should be told where less than the whole picture is painted.

        Args:
            size: (width, height) at which it is.
        """
        width, height = self.box[2] - self.box[0], self.box[3] - self.box[1]
        if (width, height) == self.base.size:
            return None
        share = size[0] * size[1] / (self.base.width * self.base.height)
        return (
            f"{width}x{height} pixels around the mask are painted, at {size[0]}x{size[1]}: "
            f"{share:.0%} of the whole picture's work (crop 'off' paints all of it)."
        )

    def compose(self, painted: Image.Image) -> Image.Image:
        """The picture with the painted region in it; to the bit as it was where nothing shows."""
        left, top, right, bottom = self.box
        pixels = _to_pixels(painted)
        if self.match_colors:
            kept = self.original.resize(painted.size, Resampling.LANCZOS)
            same = masks.resize_mask(self.mask, painted.size) == 0
            pixels = match_colors(pixels, _to_pixels(kept), same)
        if painted.size != (right - left, bottom - top):
            resized = _to_image(pixels).resize((right - left, bottom - top), Resampling.LANCZOS)
            pixels = _to_pixels(resized)
        whole = np.array(self.base)
        region = whole[top:bottom, left:right]
        blended = region + (pixels - region) * self.opacity[..., None]
        whole[top:bottom, left:right] = np.rint(blended.clip(0, 255))
        return Image.fromarray(whole)


@dataclass(frozen=True)
class Placement:
    """How the request's image came to its place in the result, for what belongs to it.

    Attributes:
        source: (width, height) of the image; None for text to image.
        fitted: that it was brought to.
        fit: how.
        sides: of the new room around it.
    """

    source: Size | None
    fitted: Size
    fit: "Fit" = "cover"
    sides: Box = (0, 0, 0, 0)

    def place(self, picture: Image.Image, resampling: Resampling) -> Image.Image:
        """A picture of the image's size, or of the result's aspect, at the result's size.

        Raises:
            ValueError: it is neither; says what they are.
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
                f"{sizes[0]} is of another aspect than the {'image' if self.source else 'result'}, "
                f"{sizes[1]}"
            )
        return picture.resize(whole, resampling)


@dataclass(frozen=True, eq=False)
class Canvas:
    """What the network works on.

    Attributes:
        size: (width, height) of it, multiples of 8.
        frame: where the request's image is in the result.
        start: the picture to start from, of the first stage's size; None for text to image.
        part: when only a part of a picture is repainted.
        blank: there is nothing to paint, since the mask is black.
    """

    size: Size
    placement: Placement
    start: Image.Image | None = None
    region: Region | None = None
    blank: bool = False

    @property
    def source_picture(self) -> Image.Image | None:
        """The picture at the result's size, before any painting."""
        return self.region.base if self.region else self.start

    def scale(self, factor: float) -> "Canvas":
        """The same canvas with longer sides, for a further stage; itself for a factor of 1.

        What is painted whole grows with it; a part comes back at the size of its picture.
        """
        if factor == 1:
            return self
        width, height = (sizing.round_to_multiple_of_8(factor * side) for side in self.size)
        part = self.region and replace(
            self.region,
            kept=self.region.original.resize((width, height), Resampling.LANCZOS),
            mask=masks.resize_mask(self.region.mask, (width, height)),
        )
        return Canvas((width, height), self.placement, self.start, part)

    def place(
        self, picture: Image.Image, resampling: Resampling = Resampling.LANCZOS
    ) -> Image.Image:
        """A picture that belongs to the request's image, as it lies on the canvas.

        Raises:
            ValueError: it is neither of the image's size nor of the result's aspect.
        """
        placed = self.placement.place(picture, resampling)
        if self.region and self.region.box != (0, 0, *placed.size):
            placed = placed.crop(self.region.box)
        return placed.resize(self.size, resampling)

    def compose(self, painted: Image.Image) -> Image.Image:
        """The result, of what was painted on the canvas."""
        return self.region.compose(painted) if self.region else painted


def check_pictures(request: "Request") -> None:
    """Find what is wrong with a request's pictures, before a model is loaded.

    Raises:
        PictureError: one cannot be decoded, or a mask's size differs.
        RequestError: a mask in words that means nothing, or a hint that cannot be made.
    """
    for index, control in enumerate(request.controls):
        if given := control.hint or control.image:
            hints.decode_control_image(control.kind, given)
        if not control.hint and (control.kind != "pose" or not control.image):
            hints.check_hint(control.kind, control.options, f"controls.{index}.options")
    if request.image is not None:
        masks.build_mask(request, codec.decode(request.image))


def lay_out(request: "Request", native: int) -> Canvas:
    """The canvas of a request, for a model of a native side.

    Raises:
        PictureError: the picture or the mask cannot be decoded, or their sizes differ.
        RequestError: a size that the model cannot draw, or a mask in words that means nothing.
    """
    if request.image is None:
        given = [(c.kind, c.hint or c.image) for c in request.controls]
        first = next(
            (hints.decode_control_image(kind, shown) for kind, shown in given if shown), None
        )
        size = sizing.compute_result_size(first and first.size, native, request)
        return Canvas(size, Placement(None, size))
    picture = codec.decode(request.image)
    if request.masked:
        return _lay_out_masked(request, picture, native)
    size = sizing.compute_result_size(picture.size, native, request)
    fit = request.fit or "cover"
    return Canvas(size, Placement(picture.size, size, fit), sizing.fit_image(picture, size, fit))


def _lay_out_masked(request: "Request", picture: Image.Image, native: int) -> Canvas:
    source = picture.size
    mask = masks.build_mask(request, picture)
    if mask is None:
        mask = np.zeros((picture.height, picture.width), np.float32)
    if request.sized:
        size = sizing.compute_result_size(picture.size, native, request)
        fit = request.fit or "cover"
        picture = sizing.fit_image(picture, size, fit)
        fitted = sizing.fit_image(Image.fromarray(np.rint(mask * 255).astype(np.uint8)), size, fit)
        mask = np.asarray(fitted.convert("L"), np.float32) / np.float32(255)
    frame = Placement(source, picture.size, request.fit or "cover", request.extend)
    picture, mask = extend_picture(picture, mask, request.extend)
    if not mask.any():
        return Canvas(picture.size, frame, picture, blank=True)
    whole = (0, 0, *picture.size)
    box = whole if request.crop == "off" else find_region(mask, request.crop, native)
    size = picture.size if request.sized and box == whole else _compute_canvas_size(box, native)
    kept = picture.crop(box).resize(size, Resampling.LANCZOS)
    left, top, right, bottom = box
    inside = mask[top:bottom, left:right]
    scaled = masks.resize_mask(inside, size)
    feather = FEATHER_SHARE * native * (right - left) / size[0]
    part = Region(
        picture, box, kept, scaled, masks.feather_mask(inside, feather), request.match_colors
    )
    return Canvas(size, frame, FILLS[request.fill or "original"](kept, scaled), part)


def _compute_canvas_size(box: Box, native: int) -> Size:
    """Of a region: its own where the model was trained on such, else the native area."""
    width, height = box[2] - box[0], box[3] - box[1]
    own = sizing.round_to_multiple_of_8(width), sizing.round_to_multiple_of_8(height)
    if native * 3 / 4 <= min(own) and max(own) <= native * 2:
        return own
    aspect = min(max(width / height, 0.25), 4.0) ** 0.5
    return sizing.round_to_multiple_of_8(native * aspect), sizing.round_to_multiple_of_8(
        native / aspect
    )


def find_region(mask: Mask, crop: "str | int", native: int) -> Box:
    """The region around a mask that is worth painting: (left, top, right, bottom).

    Args:
        mask: not all 0.
        crop: pixels of context to each side, or "auto".
        native: the model's native side; a region is never enlarged more than fourfold.
    """
    height, width = mask.shape
    left, top, right, bottom = masks.find_bounds(mask)
    longer = max(right - left, bottom - top)
    context = round(CONTEXT_SHARE * longer) if isinstance(crop, str) else crop
    wide, high = right - left + 2 * context, bottom - top + 2 * context
    least = max(MIN_REGION_ASPECT * max(wide, high), native / 4)
    wide, high = min(width, max(wide, least)), min(height, max(high, least))
    left, right = _fit_span((left + right) / 2, wide, width)
    top, bottom = _fit_span((top + bottom) / 2, high, height)
    if crop == "auto" and (right - left) * (bottom - top) > MAX_CROP_SHARE * width * height:
        return 0, 0, width, height
    return left, top, right, bottom


def _fit_span(center: float, length: float, limit: int) -> tuple[int, int]:
    """A span of a length around a centre, moved to lie within 0 and `limit`."""
    rounded = min(limit, round(length))
    start = min(max(0, round(center - rounded / 2)), limit - rounded)
    return start, start + rounded


def extend_picture(picture: Image.Image, mask: Mask, sides: Box) -> tuple[Image.Image, Mask]:
    """A picture with new room at its sides, there masked, and filled from its border.

    Args:
        picture: RGB.
        mask: of it.
        sides: pixels to add at the (left, top, right, bottom).
    """
    if not any(sides):
        return picture, mask
    left, top, right, bottom = sides
    borders = ((top, bottom), (left, right))
    wider = np.pad(mask, borders, constant_values=1)
    known = np.pad(np.ones_like(mask), borders)
    pixels = np.pad(np.asarray(picture, np.float32), (*borders, (0, 0)))
    return _to_image(blur_inward(pixels, known)), wider


# Fills: what the network starts from inside the mask.


def _keep_original(kept: Image.Image, mask: Mask) -> Image.Image:
    del mask
    return kept


def _fill_from_surroundings(kept: Image.Image, mask: Mask) -> Image.Image:
    return _to_image(blur_inward(_to_pixels(kept), 1 - mask))


def _fill_with_mean(kept: Image.Image, mask: Mask) -> Image.Image:
    pixels = _to_pixels(kept)
    around = mask == 0
    color = pixels[around].mean(axis=0) if around.any() else np.full(3, 127.5, np.float32)
    return _to_image(pixels + (color - pixels) * mask[..., None])


FILLS: "dict[Fill, Callable[[Image.Image, Mask], Image.Image]]" = {
    "original": _keep_original,
    "surroundings": _fill_from_surroundings,
    "flat": _fill_with_mean,
    "noise": _keep_original,
}


def blur_inward(pixels: Pixels, known: Mask) -> Pixels:
    """Pixels with what is not known filled smoothly from what is.

    Pull-push (Gortler et al. 1996, "The Lumigraph", section 3.4): halves the picture until all of
    it is known, and fills what is not from the half.

    Args:
        pixels: [height, width, 3].
        known: [height, width], 0 to 1.
    """
    height, width = known.shape
    if known.min() == 1 or max(height, width) == 1:
        return pixels
    half = (width + 1) // 2, (height + 1) // 2
    weight = np.asarray(cv2.resize(known, half, interpolation=cv2.INTER_AREA), np.float32)
    total = cv2.resize(pixels * known[..., None], half, interpolation=cv2.INTER_AREA)
    mean = np.asarray(total, np.float32).reshape(*weight.shape, 3) / weight.clip(1e-6)[..., None]
    smaller = blur_inward(mean, np.minimum(weight * 4, 1))
    larger = cv2.resize(smaller, (width, height), interpolation=cv2.INTER_LINEAR)
    filled = np.asarray(larger, np.float32).reshape(height, width, 3)
    return filled + (pixels - filled) * known[..., None]


def match_colors(painted: Pixels, wanted: Pixels, same: NDArray[np.bool_]) -> Pixels:
    """Painted pixels, shifted smoothly so that they agree with `wanted` where both show the same.

    Args:
        painted: [height, width, 3] in 0..255.
        wanted: likewise.
        same: [height, width]: where both show the same thing.
    """
    if not same.any():
        return painted
    spread = COLOR_MATCH_SHARE * min(same.shape)
    weight = same.astype(np.float32)
    shift = cv2.GaussianBlur((wanted - painted) * weight[..., None], (0, 0), spread)
    total = cv2.GaussianBlur(weight, (0, 0), spread)
    return painted + np.asarray(shift, np.float32) / np.asarray(total).clip(1e-4)[..., None]


def _to_pixels(image: Image.Image) -> Pixels:
    return np.asarray(image, np.float32)


def _to_image(pixels: Pixels) -> Image.Image:
    return Image.fromarray(np.rint(pixels.clip(0, 255)).astype(np.uint8))
