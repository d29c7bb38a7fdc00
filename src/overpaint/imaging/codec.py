"""Decode encoded pictures safely, and check pictures that strangers upload."""

import os
import re
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from overpaint.errors import FormatError, PictureError
from overpaint.imaging import png_chunks
from overpaint.imaging.color_modes import convert_to_srgb, flatten
from overpaint.imaging.color_modes import extract_alpha as extract_alpha
from overpaint.imaging.signatures import identify_format
from overpaint.imaging.structure import check_structure
from overpaint.picture import Picture
from overpaint.picture_sources import MAX_FILE_BYTES, PictureSource, read_file, read_source

READABLE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")
UPLOAD_FORMATS = ("PNG", "JPEG", "WEBP", "AVIF")
"""Pillow's names of the formats that uploads may have: those that browsers send."""
JPEG_FORMATS = ("JPEG", "MPO")
"""Pillow's names of JPEG files. An MPO has a second picture behind the first one."""
MAX_PIXELS = 178_956_970
"""Pixels of a picture, at most: half a gigabyte as RGB, Pillow's own limit."""
MAX_UPLOAD_PIXELS = 2**26
"""Pixels of an uploaded picture, at most: 8192 x 8192. Many uploads may arrive at once."""
MAX_JPEG_SCANS = 100
"""Scans of a JPEG, at most. A progressive JPEG has about ten."""
MAX_JPEG_MARKERS = 10_000
"""Markers of a JPEG, at most, so that reading them takes bounded time."""
JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
"""Matches a JPEG marker that a length follows, and the marker of the end (EOI)."""
MIN_SIDE_PIXELS = 8
"""Pixels of an uploaded picture's shorter side, at least: one latent cell."""

# Reading


def read_picture(source: PictureSource, max_file_bytes: int = MAX_FILE_BYTES) -> Picture:
    """Read a picture from any source into a `Picture`, and decode it.

    It is decoded here so that the error for a broken file names the file. The pixels stay with the
    picture, see `open_upright`.

    Args:
        source: see `read_source`. A `Picture` is returned as it is.
        max_file_bytes: bytes of a file, at most.

    Raises:
        PictureError: the source is missing, a folder, empty, not a picture, truncated or too large.
    """
    if isinstance(source, Picture):
        return source
    picture = read_source(source, max_file_bytes=max_file_bytes)
    with open_upright(
        picture, str(source) if isinstance(source, str | os.PathLike) else "the picture"
    ):
        return picture


def receive_picture(data: bytes, name: str) -> Picture:
    """Check an uploaded picture without allocating its pixels.

    The check finds truncated files, pictures that are too small, and pictures of several frames.

    Args:
        data: the encoded file, in one of `UPLOAD_FORMATS`.
        name: what error messages call the picture.

    Raises:
        FormatError: the file has another format.
        PictureError: the file is not a picture, is truncated, has more than one frame, a side below
            `MIN_SIDE_PIXELS`, or more pixels than `MAX_UPLOAD_PIXELS`.
    """
    with open_upload(data, name) as image:
        if image.format == "PNG":
            image.verify()
        # `check_structure` finds truncated AVIFs, and Pillow's WebP reader checks the end of the
        # file first. A progressive JPEG needs memory for all pixels.
        elif image.format in JPEG_FORMATS and "progressive" not in image.info:
            image.draft("L", (1, 1))
            image.load()
    return Picture(data=data)


@contextmanager
def open_upload(data: bytes, name: str) -> Generator[Image.Image]:
    """Open an uploaded picture that the caller decodes, and check all but its pixels.

    Args:
        data: the encoded file, in one of `UPLOAD_FORMATS`.
        name: what error messages call the picture.

    Raises:
        FormatError: the file has another format.
        PictureError: see `receive_picture`.
    """
    with open_image(data, name, UPLOAD_FORMATS, MAX_UPLOAD_PIXELS) as image:
        if min(image.size) < MIN_SIDE_PIXELS:
            raise PictureError(
                f"{name} is {image.width}x{image.height}; each side needs at least "
                f"{MIN_SIDE_PIXELS} pixels."
            )
        if image.format != "MPO" and (frames := getattr(image, "n_frames", 1)) > 1:
            raise PictureError(f"{name} has {frames} frames; send a picture of one frame.")
        if image.format in JPEG_FORMATS:
            _check_jpeg_scans(data, name)
        yield image


def _check_jpeg_scans(data: bytes, name: str) -> None:
    """Check that a JPEG has an end marker and few scans, since each scan decodes all pixels.

    Bytes after the end marker are ignored: phones append films there. (ITU-T T.81, B.1.1 and B.2.)

    Raises:
        PictureError: the end marker is missing, or there are too many markers or scans.
    """
    at, scans = 2, 0
    for _ in range(MAX_JPEG_MARKERS):
        if (found := JPEG_MARKER.search(data, at)) is None:
            raise PictureError(f"{name} is damaged or truncated: the end of the JPEG is missing.")
        if found[0] == b"\xff\xd9":
            break
        scans += found[0] == b"\xff\xda"
        at = found.end() + int.from_bytes(data[found.end() : found.end() + 2])
    else:
        raise PictureError(
            f"{name} has more than {MAX_JPEG_MARKERS:,} JPEG markers; save the picture again."
        )
    if scans > MAX_JPEG_SCANS:
        raise PictureError(
            f"{name} has {scans} JPEG scans, and at most {MAX_JPEG_SCANS} are read; save it again."
        )


def upright_size(picture: Picture, name: str = "the picture") -> tuple[int, int]:
    """Return the (width, height) in pixels that `decode` gives, from the header alone.

    The result is kept beside the picture, which is frozen, so that a file is opened once.

    Args:
        picture: the encoded picture.
        name: what error messages call the picture.

    Raises:
        PictureError: the header cannot be read, or declares too many pixels.
    """
    kept = vars(picture)
    if "upright_size" not in kept:
        kept["upright_size"] = _read_upright_size(picture.data, name)
    return kept["upright_size"]


def _read_upright_size(data: bytes, name: str) -> tuple[int, int]:
    with open_image(data, name) as image:
        after_pixels = image.format == "PNG" and "exif" not in image.info and b"eXIf" in data
        if after_pixels and (found := png_chunks.find_chunk(data, b"eXIf")):
            image.info["exif"] = b"Exif\0\0" + found
        exif = Image.Image.getexif(image)  # the method of PNGs would decode all pixels first
        # Pillow gives the size of a TIFF as it is after the turn.
        turned = image.format != "TIFF" and exif.get(ExifTags.Base.Orientation, 1) in range(5, 9)
        return (image.height, image.width) if turned else image.size


def check_mask_size(mask: Picture, size: tuple[int, int]) -> None:
    """Check that a mask has the (width, height) of its picture, without decoding the mask.

    Raises:
        PictureError: the mask has another size, or its header cannot be read.
    """
    if (found := upright_size(mask, "the mask")) != size:
        raise PictureError(
            f"The mask is {found[0]}x{found[1]} and the picture {size[0]}x{size[1]}; "
            "give a mask of the picture's size."
        )


def read_keypoints(path: "str | os.PathLike[str]") -> Picture:
    """Read a file of pose keypoints (JSON) as a `Picture`; it is drawn when it is decoded.

    Raises:
        PictureError: the file cannot be read.
    """
    return Picture(data=read_file(Path(path)))


def decode(picture: Picture, notices: list[str] | None = None) -> Image.Image:
    """Decode a picture to 8-bit sRGB.

    Applies the EXIF orientation. Converts an embedded color profile to sRGB; a profile that cannot
    be read counts as sRGB. Scales 16-bit samples to 8 bits. Composites transparency over white.
    Of several frames it takes the first, and appends a message to `notices`.

    Raises:
        PictureError: not a picture, truncated, too large, or with samples of more than 16 bits.
    """
    return flatten(decode_with_alpha(picture, notices))


def decode_with_alpha(picture: Picture, notices: list[str] | None = None) -> Image.Image:
    """Decode a picture as `decode` does, but keep its transparency.

    Returns:
        RGBA if a pixel is transparent, else RGB.

    Raises:
        PictureError: see `decode`.
    """
    with open_upright(picture, notices=notices) as image:
        return convert_to_srgb(image)


@contextmanager
def open_upright(
    picture: Picture, name: str = "the picture", notices: list[str] | None = None
) -> Generator[Image.Image]:
    """Open the pixels of a picture: upright, in the mode of the file. Do not modify them.

    The first call decodes the file. The pixels stay with the picture until `drop_pixels`.

    Args:
        picture: the encoded picture.
        name: what messages call the picture.
        notices: the function appends a message if the file has several frames. The first one is
            used. The second picture of a phone's JPEG (MPO) is not a frame.

    Raises:
        PictureError: the file cannot be decoded, or the context raised an error.
    """
    kept = vars(picture)
    if "upright" not in kept:
        with open_image(picture.data, name) as image:
            image.load()
            upright = ImageOps.exif_transpose(image)
            upright.format = image.format
            frames = image.format != "MPO" and getattr(image, "is_animated", False)
            kept["upright"] = upright, frames
    upright, frames = kept["upright"]
    if frames and notices is not None:
        notices.append(f"{name} has several frames; the first one is used.")
    with _picture_errors(name):
        yield upright


def drop_pixels(*pictures: Picture | None) -> None:
    """Free the pixels that `open_upright` keeps: they are many times as large as the files."""
    for picture in pictures:
        if picture:
            vars(picture).pop("upright", None)


@contextmanager
def open_image(
    data: bytes,
    name: str,
    formats: tuple[str, ...] = READABLE_FORMATS,
    largest: int = MAX_PIXELS,
    *,
    texts: bool = False,
) -> Generator[Image.Image]:
    """Open an encoded picture, and check the size that its header declares before the pixels.

    `Image.info` has the color profile, and the texts of a PNG on request. Any error inside the
    context is raised as a `PictureError`: decoders raise many types.

    Args:
        data: the encoded file.
        name: what error messages call the picture.
        formats: the formats that are accepted, by Pillow's names.
        largest: pixels, at most.
        texts: read the texts of a PNG.

    Raises:
        FormatError: the file has another format.
        PictureError: the file is empty, damaged, not a picture, or has too many pixels.
    """
    if not data:
        raise PictureError(f"{name} is empty (0 bytes); give a picture file.")
    check_structure(data, name)
    with _picture_errors(name):
        info: dict[str, Any] = {}
        if data.startswith(png_chunks.SIGNATURE):
            data, info = _split_png(data, name, texts)
        try:
            with Image.open(BytesIO(data), formats=formats) as image:
                if image.width * image.height > largest:
                    raise Image.DecompressionBombError
                image.info.update(info)
                yield image
        except Image.DecompressionBombError:
            raise PictureError(
                f"{name} declares more than {largest:,} pixels and was not decoded; "
                "scale it down first."
            ) from None
        except Image.UnidentifiedImageError:
            instead = f"give one of these formats: {', '.join(formats)}."
            if kind := identify_format(data):
                raise FormatError(f"{name} is {kind}, which is not supported; {instead}") from None
            raise PictureError(f"{name} is not a picture that can be read; {instead}") from None


@contextmanager
def _picture_errors(name: str) -> Generator[None]:
    """Raise any error of the context as a `PictureError`: decoders raise many types."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about large sizes and broken EXIF.
            yield
    except PictureError:
        raise
    except Exception as error:
        raise PictureError(f"{name} is damaged or truncated: {error}.") from error


def _split_png(data: bytes, name: str, texts: bool) -> tuple[bytes, dict[str, Any]]:
    """Return a PNG for the decoder, and the metadata that it does not read."""
    found = png_chunks.read_texts(data, name) if texts else {}
    small, info = png_chunks.split_metadata(data)
    return small, {**found, **info}


# Arrays


def to_array(image: Image.Image) -> NDArray[np.float32]:
    """Convert an RGB image to an array [3, height, width] in -1..1."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)) / np.float32(127.5) - np.float32(1)


def from_array(array: NDArray[np.floating[Any]]) -> Image.Image:
    """Convert an array [3, height, width] in -1..1 to an RGB image; values outside are clipped."""
    pixels = (array.astype(np.float32).transpose(1, 2, 0) + 1) * np.float32(127.5)
    return Image.fromarray(np.rint(pixels.clip(0, 255)).astype(np.uint8))
