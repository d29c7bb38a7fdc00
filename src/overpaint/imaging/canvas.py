"""The canvas in pixels: the whole picture or a region of it, and how it is put back."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.Image import Resampling

from overpaint.imaging import codec, hints, masks, sizing
from overpaint.imaging.color_match import match_colors
from overpaint.imaging.masks import Mask, Size

if TYPE_CHECKING:
    from overpaint.registry import Fill
    from overpaint.request import Request
    from overpaint.request_fields import Fit

Box = tuple[int, int, int, int]
Pixels = NDArray[np.floating[Any]]

MAX_CROP_SHARE = 0.5
"""Largest share of the picture that crop="auto" still paints as a region alone."""
CONTEXT_SHARE = 0.25
"""Context around a mask by default, as a share of the mask's longer side."""
MIN_REGION_ASPECT = 0.5
"""Smallest ratio of a region's shorter to its longer side, if the picture is large enough."""
FEATHER_SHARE = 1 / 128
"""Width of the fade inside a mask's edge, as a share of the native side."""
ASPECT_TOLERANCE = 0.05
"""Relative difference of aspects that a control image may have: sides are rounded to 8."""
COLOR_TRUST_PX = 16
"""Distance from the mask in canvas pixels at which a kept pixel fully counts for the match of
colors: the VAE's decoder mixes nearer pixels with the repainted content."""


@dataclass(frozen=True, eq=False)
class Region:
    """The region of a picture that is repainted.

    Attributes:
        base: the whole picture, at the result's size.
        box: (left, top, right, bottom) of the region in `base`.
        original: the region before painting, at the canvas's size.
        mask: float32 [height, width] at the canvas's size.
        opacity: float32 [height, width] at the region's own size: the share of the painted pixels.
        match_colors: shift the painted pixels to the colors of the kept pixels around them.
    """

    base: Image.Image
    box: Box
    original: Image.Image
    mask: Mask
    opacity: Mask
    match_colors: bool

    def describe_crop(self, size: Size) -> str | None:
        """Return a notice if less than the whole picture is painted, else None.

        Args:
            size: (width, height) at which the region is painted.
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
        """Blend the painted region into the picture; pixels of opacity 0 do not change by a bit."""
        left, top, right, bottom = self.box
        pixels = _to_pixels(painted)
        if self.match_colors:
            kept = self.original.resize(painted.size, Resampling.LANCZOS)
            same = (masks.resize_mask(self.mask, painted.size) == 0).astype(np.float32)
            trust = masks.feather_mask(same, COLOR_TRUST_PX) ** 3
            pixels = match_colors(pixels, _to_pixels(kept), trust)
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


@dataclass(frozen=True, eq=False)
class Canvas:
    """The pixels that the network paints.

    Attributes:
        size: (width, height) in pixels, multiples of 8.
        placement: where the request's image lies in the result.
        start: the picture to start from, at the first stage's size; None for text to image.
        region: the region that is repainted; None if the whole picture is.
        blank: the mask is black, so that there is nothing to paint.
    """

    size: Size
    placement: Placement
    start: Image.Image | None = None
    region: Region | None = None
    blank: bool = False

    @property
    def source_picture(self) -> Image.Image | None:
        """The picture at the result's size before painting; None for text to image."""
        return self.region.base if self.region else self.start

    def scale(self, factor: float) -> "Canvas":
        """Return the canvas of a further stage, with sides longer by `factor`.

        A whole picture becomes larger; a region returns to the size of its picture.
        """
        if factor == 1:
            return self
        width, height = (sizing.round_to_multiple_of_8(factor * side) for side in self.size)
        part = self.region and replace(
            self.region,
            original=self.region.original.resize((width, height), Resampling.LANCZOS),
            mask=masks.resize_mask(self.region.mask, (width, height)),
        )
        return Canvas((width, height), self.placement, self.start, part)

    def place(
        self, picture: Image.Image, resampling: Resampling = Resampling.LANCZOS
    ) -> Image.Image:
        """Bring a picture that belongs to the request's image to the canvas.

        Raises:
            ValueError: the picture has neither the image's size nor the result's aspect.
        """
        placed = self.placement.place(picture, resampling)
        if self.region and self.region.box != (0, 0, *placed.size):
            placed = placed.crop(self.region.box)
        return placed.resize(self.size, resampling)

    def compose(self, painted: Image.Image) -> Image.Image:
        """Turn the painted canvas into the result."""
        return self.region.compose(painted) if self.region else painted


def check_pictures(request: "Request") -> None:
    """Check a request's pictures before a model is loaded.

    Raises:
        PictureError: a picture cannot be decoded, or the mask has another size.
        RequestError: `mask_from` is malformed, or a control image cannot be made.
    """
    for index, control in enumerate(request.controls):
        if given := control.hint or control.image:
            hints.decode_control_image(control.kind, given)
        if not control.hint and (control.kind != "pose" or not control.image):
            hints.check_hint(control.kind, control.options, f"controls.{index}.options")
    if request.image is not None:
        masks.build_mask(request, codec.decode(request.image))


def lay_out(request: "Request", native: int) -> Canvas:
    """Lay out the canvas of a request for a model with a native side in pixels.

    Raises:
        PictureError: the picture or the mask cannot be decoded, or their sizes differ.
        RequestError: the model cannot draw the size, or `mask_from` is malformed.
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
    """Return a region's own size if the model was trained on it, else a size of the native area."""
    width, height = box[2] - box[0], box[3] - box[1]
    own = sizing.round_to_multiple_of_8(width), sizing.round_to_multiple_of_8(height)
    if native * 3 / 4 <= min(own) and max(own) <= native * 2:
        return own
    aspect = min(max(width / height, 0.25), 4.0) ** 0.5
    return sizing.round_to_multiple_of_8(native * aspect), sizing.round_to_multiple_of_8(
        native / aspect
    )


def find_region(mask: Mask, crop: "str | int", native: int) -> Box:
    """Find the region around a mask to paint: (left, top, right, bottom).

    Args:
        mask: at least one pixel is above 0.
        crop: pixels of context on each side, or "auto".
        native: the model's native side in pixels; a region is enlarged at most four times.
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
    """Return (start, end) of a span around a center, moved to lie within 0 and `limit`."""
    rounded = min(limit, round(length))
    start = min(max(0, round(center - rounded / 2)), limit - rounded)
    return start, start + rounded


def extend_picture(picture: Image.Image, mask: Mask, sides: Box) -> tuple[Image.Image, Mask]:
    """Add room at the sides of a picture, filled from its border, and mask it.

    Args:
        picture: an RGB picture.
        mask: the mask of the picture.
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


# Fills: the pixels inside the mask that painting starts from.


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
    """Fill unknown pixels smoothly from the known pixels around them.

    Pull-push (Gortler et al. 1996, "The Lumigraph", section 3.4): halve the picture until all of it
    is known, then fill unknown pixels from the half size.

    Args:
        pixels: [height, width, 3].
        known: [height, width], 0 (unknown) to 1.
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


def _to_pixels(image: Image.Image) -> Pixels:
    return np.asarray(image, np.float32)


def _to_image(pixels: Pixels) -> Image.Image:
    return Image.fromarray(np.rint(pixels.clip(0, 255)).astype(np.uint8))
