"""Check that there is room for a job or an upload before the server accepts it."""

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from overpaint.engine.memory import count_result_pixels, estimate_bytes
from overpaint.errors import RequestError
from overpaint.imaging import sizing
from overpaint.imaging.extension import count_windows
from overpaint.request import Request
from overpaint.server.jobs.readiness import is_disk_full
from overpaint.server.settings import Limits
from overpaint.server.store.origins import Origin, write_origin


def check_disk(folder: Path, limits: Limits) -> None:
    """Check that the disk of a folder has room for a new job or upload.

    Raises:
        OSError: it has not.
    """
    if is_disk_full(folder, limits.free_disk_bytes):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def check_drawable(request: Request, native: int) -> None:
    """Check that a model can draw the size of a request, and extend its picture in few windows.

    Args:
        request: not planned yet.
        native: side in pixels that the model draws.

    Raises:
        RequestError: it cannot.
        PictureError: the picture cannot be read.
    """
    sizing.check_size(request, native)
    count_windows(request, native)


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
            "num_images" if request.num_images > 1 else "request",
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


def check_text(stored: Mapping[str, Any], origin: Origin, limits: Limits) -> None:
    """Check that the text of a job that the store keeps is within the limit.

    Args:
        stored: the request as JSON, with names of files in place of its pictures.
        origin: the fields that the client API keeps.
        limits: of the server.

    Raises:
        RequestError: it is not.
    """
    chars = sum(len(json.dumps(part, default=str)) for part in (stored, write_origin(origin)))
    if chars > limits.stored_chars:
        raise RequestError(
            "request",
            f"It has {chars:,} characters as JSON without its pictures, and may have "
            f"{limits.stored_chars:,}. Shorten its texts.",
        )
