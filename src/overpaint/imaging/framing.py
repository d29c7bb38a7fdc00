"""Find the region of a picture to paint, and the size at which to paint it, from sides alone.

The server does so before it accepts a request, so this module does without OpenCV.
"""

from overpaint.imaging import sizing

Box = tuple[int, int, int, int]
"""(left, top, right, bottom) in pixels."""

MAX_CROP_SHARE = 0.5
"""Largest share of the picture that crop="auto" still paints as a region alone."""
CONTEXT_SHARE = 0.25
"""Context around a mask by default, as a share of the mask's longer side."""
MIN_REGION_ASPECT = 0.5
"""Smallest ratio of a region's shorter to its longer side, if the picture is large enough."""


def compute_canvas_size(box: Box, native: int) -> tuple[int, int]:
    """Return a region's own size if the model was trained on it, else a size of the native area."""
    width, height = box[2] - box[0], box[3] - box[1]
    own = sizing.round_to_multiple_of_8(width), sizing.round_to_multiple_of_8(height)
    if native * 3 / 4 <= min(own) and max(own) <= native * 2:
        return own
    aspect = min(max(width / height, 0.25), 4.0) ** 0.5
    return sizing.round_to_multiple_of_8(native * aspect), sizing.round_to_multiple_of_8(
        native / aspect
    )


def frame_bounds(bounds: Box, whole: tuple[int, int], crop: "str | int", native: int) -> Box:
    """Return the region around the bounds of a mask to paint.

    Args:
        bounds: of the mask's pixels above 0.
        whole: (width, height) of the picture.
        crop: pixels of context on each side, or "auto".
        native: the model's native side in pixels; a region is enlarged at most four times.
    """
    width, height = whole
    left, top, right, bottom = bounds
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
