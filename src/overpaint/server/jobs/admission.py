"""Check that a request is small enough, before the server accepts a job."""

from overpaint.engine.memory import count_result_pixels, estimate_bytes
from overpaint.errors import RequestError
from overpaint.request import Request
from overpaint.server.settings import Limits


def check_room(request: Request, native: int, limits: Limits, memory_bytes: float) -> None:
    """Check that the results of a request, and its memory, are within the limits.

    Args:
        request: not planned yet.
        native: side in pixels that its model draws.
        limits: of the server.
        memory_bytes: bytes that jobs may need at once beside the weights.

    Raises:
        RequestError: they are not.
    """
    pixels = count_result_pixels(request, native) * request.num_images
    if pixels > limits.result_pixels:
        raise RequestError(
            "num_images",
            f"The results have {pixels:,} pixels together, and may have {limits.result_pixels:,}. "
            "Ask for fewer or smaller pictures.",
        )
    needed_bytes = estimate_bytes(request, native)
    if needed_bytes > memory_bytes:
        raise RequestError(
            "request",
            f"It needs about {needed_bytes / 2**30:.1f} GiB of memory, and may need "
            f"{memory_bytes / 2**30:.1f} GiB. Send smaller pictures, ask for fewer ones, or "
            "shorten the prompt.",
        )
