"""The pictures that a command repaints: files, folders, patterns, URLs and stdin."""

import glob
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from overpaint.cli.syntax import STDIN, read_picture
from overpaint.errors import PictureError, RequestError
from overpaint.network.urls import is_url
from overpaint.picture import Picture

PICTURE_SUFFIXES = {
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".bmp", ".gif"),
    *(".tif", ".tiff", ".avif"),
}
"""Suffixes of the files that are read from a folder."""


@dataclass(frozen=True)
class Source:
    """A picture to repaint, which is not read yet."""

    text: str
    """A path, a URL, or "-" for stdin."""

    @property
    def stem(self) -> str:
        """The beginning of the names of its results."""
        if self.text == STDIN:
            return "stdin"
        if self.text.startswith("data:"):
            return "picture"
        if is_url(self.text):
            name = Path(unquote(urlsplit(self.text).path)).stem
            return re.sub(r"[^\w.-]+", "-", name).strip(".-")[:100] or "picture"
        return Path(self.text).stem

    def read(self) -> Picture:
        """Read the picture.

        Raises:
            PictureError: it cannot be read.
        """
        return read_picture(self.text)


def split_prompt(words: Sequence[str]) -> tuple[Sequence[str], str | None]:
    """Split the arguments of a command into pictures and the prompt, which is the last one.

    A single argument is a picture. A last argument that looks like a picture, or is a file, is one,
    and there is no prompt.

    Raises:
        RequestError: there is no argument.
    """
    if not words:
        raise RequestError(
            "image", "It is missing. Give a picture, a folder, a URL or - for stdin."
        )
    if len(words) == 1 or _looks_like_picture(words[-1]):
        return words, None
    return words[:-1], words[-1]


def list_sources(words: Sequence[str], note: Callable[[str], None]) -> list[Source]:
    """List the pictures of files, folders, patterns such as "*.png", URLs and "-".

    Args:
        words: the arguments.
        note: receives a message about the other files of a folder.

    Raises:
        PictureError: there is no such file, or no picture in a folder.
        RequestError: stdin is given twice.
    """
    if words.count(STDIN) > 1:
        raise RequestError("image", "- is given twice, but stdin has one picture.")
    return [Source(text) for word in words for text in _expand(word, note)]


def _expand(word: str, note: Callable[[str], None]) -> Iterator[str]:
    if word == STDIN or is_url(word) or word.startswith("data:"):
        yield word
        return
    path = Path(word)
    if path.is_dir():
        files = [p for p in path.iterdir() if p.is_file() and not p.name.startswith(".")]
        names = sorted(str(p) for p in files if p.suffix.lower() in PICTURE_SUFFIXES)
        if not names:
            raise PictureError(f"{word} is a folder without pictures; give a picture file.")
        if left := sorted(p.name for p in files if p.suffix.lower() not in PICTURE_SUFFIXES):
            note(f"{word}: {len(left)} files do not look like pictures: {', '.join(left[:3])}.")
        yield from names
    elif path.exists():
        yield word
    elif glob.has_magic(word) and (found := sorted(glob.glob(word))):  # a shell without patterns
        yield from found
    else:
        raise PictureError(f"{word}: no such file.")


def _looks_like_picture(word: str) -> bool:
    if word == STDIN or is_url(word) or word.startswith("data:") or word.endswith(("/", "\\")):
        return True
    is_name = Path(word).suffix.lower() in PICTURE_SUFFIXES
    return (is_name and " " not in word) or os.path.isfile(word)
