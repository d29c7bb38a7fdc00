"""The canvas in pixels: the whole picture or a region of it, and how it is put back."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from PIL.Image import Resampling

from overpaint.imaging import codec, extension, hints, masks, sizing
from overpaint.imaging.color_match import match_colors as match_colors
from overpaint.imaging.color_match import match_image_colors
from overpaint.imaging.color_modes import flatten
from overpaint.imaging.extension import Extension
from overpaint.imaging.fills import FILLS, blur_inward, to_image, to_pixels
from overpaint.imaging.framing import Box, compute_canvas_size, frame_bounds
from overpaint.imaging.masks import Mask, Size
from overpaint.imaging.placement import Placement, Trim
from overpaint.imaging.region import Region
from overpaint.system.abandon import check_abandoned

if TYPE_CHECKING:
    from overpaint.request import Request
    from overpaint.request.fields import Fit

FEATHER_SHARE = 1 / 128
"""Width of the fade inside a mask's edge, as a share of the native side."""


@dataclass(frozen=True, eq=False)
class Canvas:
    """The pixels that the network paints.

    Attributes:
        size: (width, height) in pixels, multiples of 8.
        placement: where the request's image lies in the result.
        start: the picture to start from, at the first stage's size; None for text to image.
        region: the region that is repainted; None if the whole picture is.
        blank: the mask is black, so that there is nothing to paint.
        unpainted: the picture at the result's size before painting, RGB, or RGBA if it is
            transparent anywhere; None for text to image.
        trim: the part of the canvas that is the result; None for all of it.
        extension: windows that follow this one; None without any.
        notices: messages for the user.
        crops: a further stage has another aspect, so that its pictures are cropped.
        color_target: the picture whose colors the result gets; None to leave its colors.
    """

    size: Size
    placement: Placement
    start: Image.Image | None = None
    region: Region | None = None
    blank: bool = False
    unpainted: Image.Image | None = None
    trim: Trim | None = None
    extension: Extension | None = None
    notices: tuple[str, ...] = ()
    crops: bool = False
    color_target: Image.Image | None = None

    @property
    def source_picture(self) -> Image.Image | None:
        """The picture, RGB, at the result's size before painting; None for text to image."""
        if self.region:
            return self.region.base
        return self.start if self.trim is None else self.unpainted and flatten(self.unpainted)

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
        trim = self.trim and self.trim.scale(factor)
        return replace(self, size=(width, height), region=part, trim=trim)

    def crop_to(self, size: Size) -> "Canvas":
        """Return the canvas of a further stage of another size, for text to image."""
        return replace(self, size=size, crops=True)

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
        if self.trim:
            placed = sizing.pad_to_multiple_of_8(placed)
        return sizing.fit_image(placed, self.size, self.fit, resampling)

    @property
    def fit(self) -> "Fit":
        """How pictures of the earlier stage's aspect are fitted to this canvas."""
        return "cover" if self.crops else "stretch"

    def compose(self, painted: Image.Image) -> Image.Image:
        """Turn the painted canvas into the result, RGB or RGBA."""
        if self.region:
            return self.region.compose(painted)
        if self.color_target:
            painted = match_image_colors(painted, self.color_target)
        return self.trim.cut(painted) if self.trim else painted

    def lay_out_next(self, painted: Image.Image) -> "Canvas":
        """Lay out the next window of an extension, given this one's painted canvas.

        Raises:
            ValueError: no window follows.
        """
        if self.extension is None:
            raise ValueError("No window follows this canvas.")
        return _lay_out_window(self.compose(painted), self.placement, self.extension)


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
        sizes = (hints.measure_control_image(kind, shown) for kind, shown in given if shown)
        size = sizing.compute_result_size(next(filter(None, sizes), None), native, request)
        return Canvas(size, Placement(None, size))
    notices: list[str] = []
    picture = codec.decode_with_alpha(request.image, notices)
    if not any(request.image is given for c in request.controls for given in (c.hint, c.image)):
        codec.drop_pixels(request.image)  # The next steps need much memory too.
    if request.masked:
        canvas = _lay_out_masked(request, picture, native, notices)
        return replace(canvas, notices=tuple(notices))
    size = sizing.compute_result_size(picture.size, native, request)
    fit = request.fit or "cover"
    fitted = sizing.fit_image(picture, size, fit)
    start = sizing.pad_to_multiple_of_8(flatten(fitted))
    trim = None
    if start.size != size:
        trim = Trim((size[0] / start.width, size[1] / start.height), size)
    frame = Placement(picture.size, size, fit)
    return Canvas(
        start.size,
        frame,
        start,
        unpainted=fitted,
        trim=trim,
        notices=tuple(notices),
        color_target=start if request.match_image_colors else None,
    )


def _lay_out_masked(
    request: "Request", picture: Image.Image, native: int, notices: list[str]
) -> Canvas:
    source = picture.size
    check_abandoned()
    mask = masks.build_mask(request, flatten(picture), notices)
    codec.drop_pixels(request.mask)
    check_abandoned()
    if mask is None:
        mask = np.zeros((picture.height, picture.width), np.float32)
    if request.sized:
        size = sizing.compute_result_size(picture.size, native, request)
        fit = request.fit or "cover"
        picture, mask = sizing.fit_image(picture, size, fit), masks.fit_mask(mask, size, fit)
    frame = Placement(source, picture.size, request.fit or "cover", request.extend)
    fill, repainted = request.fill or "original", bool(mask.any())
    picture, wider = extend_picture(picture, mask, request.extend)
    if not wider.any():
        return Canvas(picture.size, frame, flatten(picture), blank=True, unpainted=picture)
    whole = (0, 0, *picture.size)
    box = whole if request.crop == "off" else find_region(wider, request.crop, native)
    size = picture.size if request.sized and box == whole else compute_canvas_size(box, native)
    later = Extension((), native, fill, request.match_colors)
    if any(request.extend) and request.crop == "auto":
        left, top, _, _ = request.extend
        inner = (left, top, left + frame.fitted[0], top + frame.fitted[1])
        span = box[2] - box[0], box[3] - box[1]
        if extension.needs_windows(inner, span, size, native):
            side = extension.get_window_side(inner, native)
            windows = extension.plan_extension(inner, picture.size, native)
            later = replace(later, windows=windows)
            notices.append(
                f"the picture is extended in {len(windows)} steps of up to {side}x{side} pixels."
            )
    if later.windows and not repainted:
        return _lay_out_window(picture, frame, later)
    if later.windows:
        wider = np.pad(mask, _get_borders(request.extend))
        box = find_region(wider, request.crop, native)
        size = compute_canvas_size(box, native)
    return _lay_out_region(picture, wider, box, size, frame, later)


def _lay_out_window(picture: Image.Image, frame: Placement, later: Extension) -> Canvas:
    """Lay out the next window of an extension.

    Args:
        picture: the whole picture with the windows before, RGB or RGBA.
        frame: where the request's image lies in it.
        later: has one window at least.
    """
    window, *windows = later.windows
    left, top, right, bottom = window.target
    mask = np.zeros((picture.height, picture.width), np.float32)
    mask[top:bottom, left:right] = 1
    seen = picture.crop(window.box)
    left, top, right, bottom = window.box
    known = 1 - mask[top:bottom, left:right]
    filled = to_image(blur_inward(to_pixels(flatten(seen)), known))
    picture = picture.copy()
    picture.paste(
        filled.convert(picture.mode),
        window.box[:2],
        Image.fromarray(np.rint(255 * (1 - known)).astype(np.uint8)),
    )
    x, y, _, _ = frame.sides
    inner = (x, y, x + frame.fitted[0], y + frame.fitted[1])
    mask[top:bottom, left:right] = masks.blend_into_painted(1 - known, window.box, inner)
    size = compute_canvas_size(window.box, later.native)
    return _lay_out_region(
        picture, mask, window.box, size, frame, replace(later, windows=tuple(windows))
    )


def _lay_out_region(
    picture: Image.Image, mask: Mask, box: Box, size: Size, frame: Placement, later: Extension
) -> Canvas:
    """Lay out a region of a picture, RGB or RGBA, that has the mask's size."""
    base = flatten(picture)
    layer = picture if picture.mode == "RGBA" else None
    kept = base.crop(box).resize(size, Resampling.LANCZOS)
    left, top, right, bottom = box
    inside = mask[top:bottom, left:right]
    scaled = masks.resize_mask(inside, size)
    opacity = masks.feather_mask(inside, FEATHER_SHARE * later.native * (right - left) / size[0])
    part = Region(base, layer, box, kept, scaled, opacity, later.match_colors)
    return Canvas(
        size,
        frame,
        FILLS[later.fill](kept, scaled),
        part,
        unpainted=picture,
        extension=later if later.windows else None,
    )


def find_region(mask: Mask, crop: "str | int", native: int) -> Box:
    """Find the region around a mask to paint: (left, top, right, bottom).

    Args:
        mask: at least one pixel is above 0.
        crop: pixels of context on each side, or "auto".
        native: the model's native side in pixels; a region is enlarged at most four times.
    """
    return frame_bounds(masks.find_bounds(mask), (mask.shape[1], mask.shape[0]), crop, native)


def extend_picture(picture: Image.Image, mask: Mask, sides: Box) -> tuple[Image.Image, Mask]:
    """Add room at the sides of a picture, filled from its border, and mask it.

    Args:
        picture: an RGB or RGBA picture; the room is opaque.
        mask: the mask of the picture.
        sides: pixels to add at the (left, top, right, bottom).
    """
    if not any(sides):
        return picture, mask
    borders = _get_borders(sides)
    wider = np.pad(mask, borders, constant_values=1)
    known = np.pad(np.ones_like(mask), borders)
    pixels = np.pad(to_pixels(flatten(picture)), (*borders, (0, 0)))
    extended = to_image(blur_inward(pixels, known)).convert(picture.mode)
    extended.paste(picture, sides[:2])
    return extended, wider


def _get_borders(sides: Box) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return (left, top, right, bottom) as numpy's widths of a padding."""
    left, top, right, bottom = sides
    return (top, bottom), (left, right)
