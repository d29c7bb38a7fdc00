"""Output."""

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from PIL import Image

from overpaint.errors import OutputError

FORMAT_BY_SUFFIX = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


def get_output_format(path: Path) -> str:
    """Pillow's name of the format that a file name asks for.

    Raises:
        OutputError: an unknown suffix.
    """
    if (kind := FORMAT_BY_SUFFIX.get(path.suffix.lower())) is None:
        raise OutputError(f"{path}: end the name with one of {', '.join(FORMAT_BY_SUFFIX)}.")
    return kind


def check_writable(path: Path) -> None:
    """Make sure, before any work is done, that a picture can be written to `path`.

    Raises:
        OutputError: an unknown suffix, no such folder, not a file, or not ours to write.
    """
    get_output_format(path)
    try:
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):
            raise OutputError(f"{path} exists and is not a file; choose another name.")
        if path.exists() and not os.access(path, os.W_OK):
            raise OutputError(f"{path} is write-protected; choose another name.")
        if not path.parent.is_dir():
            raise OutputError(f"{path}: there is no folder {path.parent}; make it first.")
        probe = _temporary_path(path)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}.") from error


def save_image(image: Image.Image, path: Path, options: Mapping[str, Any]) -> None:
    """Write a picture in the format of its suffix, whole or not at all.

    Args:
        image: RGB.
        path: overwritten when it exists; through a symbolic link, the file it points to.
        options: Pillow's for that format.

    Raises:
        OutputError: it cannot be written; nothing is left behind.
    """
    kind, path = get_output_format(path), path.resolve()
    part = _temporary_path(path)
    try:
        with part.open("xb") as file:
            image.save(file, kind, **options)
        part.replace(path)
    except (OSError, ValueError) as error:
        raise OutputError(f"{path} cannot be written: {error}.") from error
    finally:
        part.unlink(missing_ok=True)


def _temporary_path(path: Path) -> Path:
    return path.with_name(f".overpaint-{uuid4().hex}.part")
