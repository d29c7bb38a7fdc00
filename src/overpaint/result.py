"""The result of a request: its pictures, which notebooks show."""

from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overpaint.provenance import metadata

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Result:
    """The pictures that a request made. Iterating over it yields them."""

    images: "tuple[Image, ...]"
    """The pictures, RGB; RGBA if a part that is kept is transparent."""

    seeds: tuple[int, ...]
    """The seed of each picture; the request with this seed makes the picture alone."""

    metadata: tuple[dict[str, Any], ...] = field(repr=False)
    """The settings of each picture; `save` writes them into the file."""

    notices: tuple[str, ...]
    """Messages for the user, such as a size outside the trained range."""

    @property
    def image(self) -> "Image":
        """The first picture; most requests make only one."""
        return self.images[0]

    def __iter__(self) -> "Iterator[Image]":
        """Yield the pictures."""
        return iter(self.images)

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.images)

    def __getitem__(self, index: int) -> "Image":
        """Return a picture by its index, from 0."""
        return self.images[index]

    def save(self, path: str | PathLike[str], index: int = 0) -> None:
        """Write a picture with its settings.

        Args:
            path: a name that ends with .png, .jpg, .jpeg or .webp.
            index: the picture, from 0.

        Raises:
            OutputError: the file cannot be written; no partial file remains.
        """
        metadata.write_picture(self.images[index], Path(path), self.metadata[index])

    def _repr_png_(self) -> bytes | None:
        """Return a single picture for notebooks, which call this method."""
        return _encode_png(self.image) if len(self) == 1 else None

    def _repr_html_(self) -> str | None:
        """Return several pictures with their seeds for notebooks, which call this method."""
        if len(self) == 1:
            return None
        figures = (
            f'<figure style="display:inline-block;margin:4px">'
            f'<img alt="picture {index}" src="data:image/png;base64,'
            f'{b64encode(_encode_png(image)).decode()}">'
            f"<figcaption>{index}: seed {seed}</figcaption></figure>"
            for index, (image, seed) in enumerate(zip(self.images, self.seeds, strict=True))
        )
        return "".join(figures)


def _encode_png(image: "Image") -> bytes:
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
