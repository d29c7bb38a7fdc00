"""Compute sizes that a model can draw, and bring pictures to them."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from PIL.Image import Resampling

from overpaint.errors import RequestError
from overpaint.imaging.codec import upright_size
from overpaint.imaging.color_modes import flatten
from overpaint.request import Request
from overpaint.request.fields import Fit


def compute_result_size(
    picture_size: tuple[int, int] | None, native: int, request: Request
) -> tuple[int, int]:
    """Compute the (width, height) of the result in pixels, multiples of 8 unless `size` is "keep".

    Width and height are taken from the request. If one is missing, it follows from the picture's
    aspect, or without a picture from the native area. If both are missing, `size` decides: "keep"
    is the picture's own size, "native" the picture's aspect at the native area.

    Args:
        picture_size: (width, height) of the upright picture; None for text to image.
        native: side in pixels of the square that the model was trained on.
        request: its `width`, `height` and `size` are read.

    Raises:
        RequestError: a side is below native / 4 or above native × 2.
    """
    aspect = picture_size[0] / picture_size[1] if picture_size else 1.0
    origin = ""
    match request.width, request.height:
        case int(width), int(height):
            pass
        case int(width), None:
            height = round_to_multiple_of_8(width / aspect if picture_size else native**2 / width)
        case None, int(height):
            width = round_to_multiple_of_8(height * aspect if picture_size else native**2 / height)
        case _:
            if picture_size and request.size == "keep":
                width, height = picture_size
            else:
                width, height = (
                    round_to_multiple_of_8(native * aspect**0.5),
                    round_to_multiple_of_8(native / aspect**0.5),
                )
            if picture_size:
                origin = f" (from a picture of {picture_size[0]}x{picture_size[1]})"

    for field, side in (("width", width), ("height", height)):
        if not native / 4 <= math.ceil(side / 8) * 8 <= native * 2:
            raise RequestError(
                field,
                f"{side}{origin} is out of range; this model draws {native // 4} to {native * 2} "
                "pixels a side. Give width and height within it.",
            )
    return width, height


def check_size(request: Request, native: int) -> None:
    """Check that a model can draw the requested size, without decoding pictures.

    Args:
        request: its size may follow from its image.
        native: side in pixels of the square that the model was trained on.

    Raises:
        RequestError: a side is below native / 4 or above native × 2.
        PictureError: the image cannot be read.
    """
    if (request.masked and not request.sized) or (request.controls and request.image is None):
        return  # the size follows from the mask or from a control image
    size = upright_size(request.image) if request.image else None
    compute_result_size(size, native, request)


def describe_untrained_size(size: tuple[int, int], native: int) -> str | None:
    """Return a notice for a (width, height) with a side below 3/4 of native, else None."""
    if min(size) >= native * 3 / 4:
        return None
    return (
        f"{size[0]}x{size[1]} is outside the sizes that the model was trained on "
        f"({native * 3 // 4} to {native * 2} pixels a side); the result may be worse."
    )


def fit_image(
    image: Image.Image,
    size: tuple[int, int],
    how: Fit,
    resampling: Resampling = Resampling.LANCZOS,
) -> Image.Image:
    """Resize a picture to (width, height); return it unchanged if it has that size.

    "cover" scales and crops around the center. "contain" scales and pads with the mean color of
    the picture's border. "stretch" changes the aspect.
    """
    if image.size == size:
        return image
    if how == "stretch":
        return image.resize(size, resampling)
    if how == "cover":
        return ImageOps.fit(image, size, resampling)
    scale = min(size[0] / image.width, size[1] / image.height)
    inner = max(round(image.width * scale), 1), max(round(image.height * scale), 1)
    if image.mode == "F":
        padded = Image.new("F", size, float(_get_border(np.asarray(image)).mean()))
    else:
        padded = Image.new("RGB", size, _mean_border_color(image)).convert(image.mode)
    padded.paste(
        image.resize(inner, resampling),
        ((size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2),
    )
    return padded


def pad_to_multiple_of_8(image: Image.Image) -> Image.Image:
    """Repeat the last column and row of a picture until its sides are multiples of 8 pixels."""
    across, down = -image.width % 8, -image.height % 8
    if not (across or down):
        return image
    pixels = np.asarray(image)
    depth = ((0, 0),) * (pixels.ndim - 2)
    return Image.fromarray(np.pad(pixels, ((0, down), (0, across), *depth), mode="edge"))


def round_to_multiple_of_8(side: float) -> int:
    """Round a side to the nearest multiple of 8 pixels, at least 8."""
    return max(int(side / 8 + 0.5) * 8, 8)


def _mean_border_color(image: Image.Image) -> tuple[int, int, int]:
    border = _get_border(np.asarray(flatten(image)))
    red, green, blue = border.mean(axis=0).round().astype(int).tolist()
    return red, green, blue


def _get_border(pixels: NDArray[Any]) -> NDArray[Any]:
    """Return the outermost pixels of an array [height, width, …]."""
    return np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
