"""The files that a command writes: a given file, new names in a folder, or stdout."""

import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overpaint.cli.syntax import STDIN
from overpaint.errors import OutputError
from overpaint.request import Request

if TYPE_CHECKING:
    from PIL.Image import Image

STDOUT = STDIN
"""The value of `--output` that means stdout."""


class Outputs:
    """Where the pictures of a command go.

    Attributes:
        to_stdout: True if the command writes one PNG to stdout.
        saved: the complete files.
    """

    def __init__(self, output: str | None, sources: int = 1):
        """Choose between a file, a folder and stdout, and make missing folders.

        Args:
            output: the value of `--output`. None means new names in the current folder.
            sources: the number of pictures to repaint. Several need a folder.

        Raises:
            OutputError: several pictures would go to one file, or a folder cannot be made.
        """
        self.to_stdout = output == STDOUT
        self.saved: list[Path] = []
        self._sources = sources
        self._file: Path | None = None
        self._folder = Path(output or ".")
        if output and not self.to_stdout and not _is_folder(output):
            if sources > 1:
                raise OutputError(f"{output}: {sources} pictures need a folder; write {output}/.")
            self._file = Path(output)
            self._folder = self._file.parent
        if not self.to_stdout:
            make_folder(self._folder)

    def check(self, stem: str, request: Request) -> None:
        """Check, before any work is done, that the pictures of a request can be written.

        Raises:
            OutputError: they cannot, or their settings are too long for the format.
        """
        from overpaint.provenance import metadata

        if not self.to_stdout:
            pictures = request.num_images
            for path in _number(self._file or self._folder / f"{stem}.png", pictures):
                if self._file:
                    metadata.check_output(path, request)
                else:  # an existing file stays, and the new one gets another name
                    metadata.check_output(path.with_name(f"{path.stem}.new.png"), request)
                    break
        elif self._sources * request.num_images > 1:
            raise OutputError("-: stdout takes one picture; give a folder, such as -o out/.")
        elif sys.stdout.isatty():
            raise OutputError("-: stdout is a terminal; send it to a file or a program.")

    def write(
        self, stem: str, images: "Sequence[Image]", records: Sequence[Mapping[str, Any]]
    ) -> list[Path]:
        """Write pictures with their settings.

        Args:
            stem: the beginning of new names.
            images: the pictures.
            records: the settings of each picture.

        Returns:
            The files; none for stdout.

        Raises:
            OutputError: a file cannot be written.
        """
        from overpaint.provenance import metadata

        if self.to_stdout:
            _write_stdout(metadata.encode_picture(images[0], "png", records[0]))
            return []
        if self._file:
            paths = _number(self._file, len(images))
            for image, path, record in zip(images, paths, records, strict=True):
                metadata.write_picture(image, path, record)
                self.saved.append(path)
            return paths
        with claim_new_files(self._folder, stem, len(images)) as paths:
            for image, path, record in zip(images, paths, records, strict=True):
                metadata.write_picture(image, path, record)
                self.saved.append(path)
        return paths


def make_folder(folder: Path) -> None:
    """Make a folder and those above it.

    Raises:
        OutputError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"The folder {folder} cannot be made: {error.strerror}.") from error


@contextmanager
def claim_new_files(folder: Path, stem: str, pictures: int) -> Generator[list[Path]]:
    """Create empty files under unused names, which no other process can get.

    The names are STEM.png, or STEM-0.png and so on for several pictures; then STEM-2.png. Files
    that are still empty are removed if the block fails.

    Raises:
        OutputError: the folder cannot be written.
    """
    for attempt in count(1):
        first = folder / (f"{stem}.png" if attempt == 1 else f"{stem}-{attempt}.png")
        if _create(paths := _number(first, pictures)):
            break
    else:
        raise AssertionError("count() does not end")
    try:
        yield paths
    except BaseException:
        _remove_empty(paths)
        raise


def _create(paths: Sequence[Path]) -> bool:
    """Create files, or return False if one of them exists."""
    created: list[Path] = []
    try:
        for path in paths:
            path.open("xb").close()
            created.append(path)
    except FileExistsError:
        _remove_empty(created)
        return False
    except OSError as error:
        _remove_empty(created)
        raise OutputError(f"{paths[0]} cannot be written: {error.strerror}.") from error
    return True


def _remove_empty(paths: Sequence[Path]) -> None:
    for path in paths:
        if path.exists() and not path.stat().st_size:
            path.unlink()


def _write_stdout(data: bytes) -> None:
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except OSError as error:
        raise OutputError(f"Stdout cannot be written: {error.strerror}.") from error


def _is_folder(output: str) -> bool:
    return output.endswith(("/", "\\")) or Path(output).is_dir()


def _number(path: Path, pictures: int) -> list[Path]:
    """Return the path, or one for each of several pictures, numbered from 0."""
    if pictures == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{i}{path.suffix}") for i in range(pictures)]
