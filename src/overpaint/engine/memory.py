"""Estimates of the memory that a request needs beside the weights.

The estimates are upper bounds for common requests. They compare requests with a budget; they do
not predict the memory to the byte.
"""

from typing import TYPE_CHECKING

from overpaint.errors import PictureError
from overpaint.imaging.codec import upright_size
from overpaint.request.fields import BREAK_PATTERN, MAX_PROMPT_CHUNKS

if TYPE_CHECKING:
    from overpaint.picture import Picture
    from overpaint.request import Request

INPUT_BYTES_PER_PIXEL = 48
"""Bytes per pixel of an input: decoded, as floats, and blended with the painted part."""

RESULT_BYTES_PER_PIXEL = 8
"""Bytes per pixel of a result: decoded, and encoded as a file."""

CHUNK_BYTES = 26e6
"""Bytes of keys and values that a chunk of a prompt costs SDXL in 16 bits, for one row."""

SMALL_CHUNK_BYTES = 2e6
"""Bytes of a chunk for a model below `SDXL_MIN_SIDE_PX`, such as the miniature."""

SDXL_MIN_SIDE_PX = 512

CHARS_PER_CHUNK = 300
"""Characters of a chunk of 75 tokens in English text."""


def estimate_bytes(request: "Request", native: int) -> float:
    """Estimate the bytes that a request needs beside the weights.

    Args:
        request: not planned yet.
        native: side in pixels that the model draws.
    """
    pictures = [request.mask]
    pictures += [p for c in request.controls for p in (c.image, c.hint, c.mask)]
    inputs = sum(_count_pixels(picture) for picture in pictures if picture)
    if request.image:
        inputs += _count_pixels(request.image, request.extend)
    width, height = request.width or native, request.height or native
    stage = request.count_second_stage_pixels(width * height)
    results = count_result_pixels(request, native) * request.num_images
    texts = (
        request.prompt,
        request.prompt_2,
        request.negative_prompt,
        request.negative_prompt_2,
    )
    chunks = max(_estimate_chunks(text or "") for text in texts)
    chunk_bytes = CHUNK_BYTES if native >= SDXL_MIN_SIDE_PX else SMALL_CHUNK_BYTES
    rows = (2 if request.guided else 1) * (2 if request.staged else 1)
    return (
        (inputs + stage) * INPUT_BYTES_PER_PIXEL
        + results * RESULT_BYTES_PER_PIXEL
        + chunks * chunk_bytes * rows
    )


def count_result_pixels(request: "Request", native: int) -> int:
    """Return the pixels of one result, before the request is planned.

    Args:
        request: its size may follow from its picture.
        native: side in pixels that the model draws.
    """
    width, height = request.width or native, request.height or native
    pixels = width * height
    if request.image and not request.sized:
        pixels = _count_pixels(request.image, request.extend)
    return round(pixels if request.masked else request.count_second_stage_pixels(pixels))


def _count_pixels(picture: "Picture", sides: tuple[int, int, int, int] = (0, 0, 0, 0)) -> int:
    try:
        width, height = upright_size(picture)
    except PictureError:  # keypoints as JSON; other broken pictures fail when they are decoded
        return 0
    left, top, right, bottom = sides
    return (left + width + right) * (top + height + bottom)


def _estimate_chunks(text: str) -> int:
    chunks = 1 + len(BREAK_PATTERN.findall(text)) + len(text) // CHARS_PER_CHUNK
    return min(chunks, MAX_PROMPT_CHUNKS)
