"""Write pictures to files, atomically."""

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

from PIL import Image

from overpaint.errors import OutputError
from overpaint.imaging.color_modes import flatten

FORMAT_BY_SUFFIX = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


def get_output_format(path: Path) -> str:
    """Return Pillow's name of the format that a file's suffix stands for.

    Raises:
        OutputError: the suffix is unknown.
    """
    if (kind := FORMAT_BY_SUFFIX.get(path.suffix.lower())) is None:
        raise OutputError(
            f"{path}: the suffix is unknown; use one of {', '.join(FORMAT_BY_SUFFIX)}."
        )
    return kind


def check_writable(path: Path) -> None:
    """Check, before any work is done, that a picture can be written to `path`.

    Raises:
        OutputError: the suffix is unknown, the folder is missing, the path is not a file, or the
            file is write-protected.
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


def encode_image(
    image: Image.Image, file: IO[bytes], kind: str, options: Mapping[str, Any]
) -> None:
    """Write a picture, RGB or RGBA, to an open file; a JPEG shows transparency over white.

    Args:
        image: the picture.
        file: open for writing.
        kind: Pillow's name of the format.
        options: Pillow's options for that format.
    """
    if kind == "JPEG" and image.mode == "RGBA":
        image = flatten(image)
    image.save(file, kind, **options)


def save_image(image: Image.Image, path: Path, options: Mapping[str, Any]) -> None:
    """Write a picture in the format of its suffix, atomically.

    Args:
        image: an RGB or RGBA picture.
        path: an existing file is replaced; for a symbolic link, the file that it points to.
        options: Pillow's options for that format.

    Raises:
        OutputError: the file cannot be written; no partial file is left.
    """
    kind, path = get_output_format(path), path.resolve()
    part = _temporary_path(path)
    try:
        with part.open("xb") as file:
            encode_image(image, file, kind, options)
        part.replace(path)
    except (OSError, ValueError) as error:
        raise OutputError(f"{path} cannot be written: {error}.") from error
    finally:
        part.unlink(missing_ok=True)


def _temporary_path(path: Path) -> Path:
    return path.with_name(f".overpaint-{uuid4().hex}.part")
