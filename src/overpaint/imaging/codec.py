"""Pictures: read safely, brought to size, laid out in a grid, written whole or not at all."""

import os
import re
import struct
import warnings
from collections.abc import Generator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, ImageOps

from overpaint.errors import FormatError, PictureError
from overpaint.picture import Picture

READABLE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
UPLOAD_FORMATS = ("PNG", "JPEG", "WEBP")
"""Formats that are read of strangers: those that browsers send, and whose readers meet the most."""
MAX_PIXELS = 178_956_970
"""Pixels above which a picture is refused unread: half a gigabyte as RGB, Pillow's own limit."""
MAX_UPLOAD_PIXELS = 2**26
"""The same for pictures of strangers, many of which may come at once: 8192 a side."""
MAX_JPEG_SCANS = 100
"""Scans of a JPEG; those that are refined as they come have a dozen."""
MAX_JPEG_MARKERS = 10_000
JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
"""Of a JPEG, one with a length behind it, or that of its end."""
MIN_SIDE_PIXELS = 8
"""Pixels below which there is nothing in a picture that could be repainted."""
MAX_FILE_BYTES = 2**30
"""Bytes beyond which a file is not read on: whatever it is, it is no picture to repaint."""

FILE_SIGNATURES: tuple[tuple[str, int, bytes], ...] = (
    ("a TIFF", 0, b"II*\0"),
    ("a TIFF", 0, b"MM\0*"),
    ("a GIF", 0, b"GIF8"),
    ("a BMP", 0, b"BM"),
    ("a PSD", 0, b"8BPS"),
    ("a FITS", 0, b"SIMPLE  ="),
    ("an EPS", 0, b"%!PS"),
    ("an EPS", 0, b"\xc5\xd0\xd3\xc6"),
    ("a PDF", 0, b"%PDF"),
    ("a JPEG 2000", 0, b"\0\0\0\x0cjP  "),
    ("a JPEG XL", 0, b"\0\0\0\x0cJXL "),
    ("a JPEG XL", 0, b"\xff\x0a"),
    ("an OpenEXR", 0, b"v/1\x01"),
    ("an AVIF", 4, b"ftypavif"),
    ("a HEIC", 4, b"ftyphei"),
    ("a HEIC", 4, b"ftypmif1"),
)
"""How files begin that people take for pictures: what they are, where it stands, and what."""

PNG_MODES = {"1", "L", "LA", "P", "RGB", "RGBA", "I;16"}


# Reading


def read_picture(source: "str | os.PathLike[str] | bytes | Image.Image | Picture") -> Picture:
    """A picture by content from wherever it is.

    Files and bytes are decoded once here, so that one which is no picture is refused at the door
    and by name. A Pillow image becomes a PNG with its orientation and colour profile.

    Args:
        source: a path, the bytes of an encoded file, a Pillow image, or a `Picture` (returned).

    Raises:
        PictureError: missing, a folder, empty, not a picture, truncated, or too large.
    """
    if isinstance(source, Picture):
        return source
    if isinstance(source, Image.Image):
        return Picture(data=_encode_png(source))
    if isinstance(source, bytes):
        name, data = "the picture", source
    else:
        name, data = str(source), _read_file(Path(source))
    with open_image(data, name) as image:
        image.load()
    return Picture(data=data)


def receive_picture(data: bytes, name: str) -> Picture:
    """A picture that a stranger sent.

    It is looked at as closely as can be without the memory of its pixels: a truncated one is found,
    one without room for anything, and one of many frames, of which all but the first would be
    dropped.

    Args:
        data: the encoded file, in one of `RECEIVED`.
        name: what to call it in messages.

    Raises:
        FormatError: another format.
        PictureError: as `decode`, more than one frame, a side below `SMALLEST_SIDE`, or more pixels
            than `LARGEST_RECEIVED`.
    """
    with open_image(data, name, UPLOAD_FORMATS, MAX_UPLOAD_PIXELS) as image:
        if min(image.size) < MIN_SIDE_PIXELS:
            raise PictureError(
                f"{name} is {image.width}x{image.height}; give one of {MIN_SIDE_PIXELS} pixels a "
                "side at least."
            )
        if image.format != "MPO" and (frames := getattr(image, "n_frames", 1)) > 1:
            raise PictureError(f"{name} has {frames} frames; give one picture.")
        if image.format == "PNG":
            image.verify()
        elif image.format != "WEBP":  # whose reader looks at the end first
            _check_jpeg_scans(data, name)
            if "progressive" not in image.info:  # which would need room for the whole picture
                image.draft("L", (1, 1))
                image.load()
    return Picture(data=data)


def _check_jpeg_scans(data: bytes, name: str) -> None:
    """See that a JPEG ends, and soon: each of its scans goes over the whole picture.

    What stands behind its end is none of it: phones put films there. (ITU-T T.81, B.1.1 and B.2.)

    Raises:
        PictureError: it does not.
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
        raise PictureError(f"{name} has more than {MAX_JPEG_MARKERS:,} markers; save it again.")
    if scans > MAX_JPEG_SCANS:
        raise PictureError(f"{name} has {scans} scans; save it again, as others do, with ten.")


def extract_alpha(image: Image.Image) -> Image.Image | None:
    """How opaque an open picture is, 0 to 255; None where it is so everywhere."""
    if not image.has_transparency_data:
        return None
    found = (image if "A" in image.getbands() else image.convert("RGBA")).getchannel("A")
    return None if found.getextrema() == (255, 255) else found


def upright_size(picture: Picture, name: str = "the picture") -> tuple[int, int]:
    """(width, height) of a picture as `decode` gives it, in pixels.

    Args:
        picture: encoded.
        name: what to call it in messages.

    Raises:
        PictureError: as `decode`, as far as that can be told without decoding it.
    """
    with open_image(picture.data, name) as image:
        behind = image.format == "PNG" and "exif" not in image.info and b"eXIf" in picture.data
        if behind and (found := _read_png_chunk(picture.data, b"eXIf")):
            image.info["exif"] = b"Exif\0\0" + found
        exif = Image.Image.getexif(image)  # a PNG's own way decodes it, to see what stands behind
        turned = exif.get(ExifTags.Base.Orientation, 1) in range(5, 9)
        return (image.height, image.width) if turned else image.size


def _read_png_chunk(data: bytes, wanted: bytes) -> bytes:
    """What the first chunk of a name holds in a PNG (its specification, 5.3); b"" without one."""
    at, kind = 8, b""
    while at + 8 <= len(data) and kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == wanted:
            return data[at + 8 : at + 8 + length]
        at += length + 12
    return b""


def check_mask_size(mask: Picture, size: tuple[int, int]) -> None:
    """Make sure that a mask is of its picture's size, (width, height), without decoding it.

    Raises:
        PictureError: it has another, or cannot be read.
    """
    if (found := upright_size(mask, "the mask")) != size:
        raise PictureError(
            f"the mask is {found[0]}x{found[1]} and the picture {size[0]}x{size[1]}; "
            "give a mask of the picture's size."
        )


def read_keypoints(path: "str | os.PathLike[str]") -> Picture:
    """A file of keypoints, in the place of the picture that is drawn from it.

    Raises:
        PictureError: it cannot be read.
    """
    return Picture(data=_read_file(Path(path)))


def decode(picture: Picture) -> Image.Image:
    """The pixels of a picture as 8-bit sRGB.

    The EXIF orientation is applied, an embedded colour profile converted to sRGB (one that cannot
    be read counts as sRGB), 16-bit values are scaled, transparency is laid over white, and of
    several frames the first is taken.

    Raises:
        PictureError: not a picture, truncated, too large, or with samples of more than 16 bits.
    """
    with open_image(picture.data, "the picture") as image:
        image.load()
        return _convert_to_rgb(ImageOps.exif_transpose(image))


@contextmanager
def open_image(
    data: bytes, name: str, formats: tuple[str, ...] = READABLE_FORMATS, largest: int = MAX_PIXELS
) -> Generator[Image.Image]:
    """Open an encoded picture; its header alone is read, and its size checked, before the body.

    Whatever goes wrong inside the context is the picture's fault and raised as such.

    Args:
        data: the encoded file.
        name: what to call it in messages.
        formats: that it may have, by Pillow's names.
        largest: pixels that it may have.

    Raises:
        FormatError: it is of another format.
        PictureError: as `decode`.
    """
    if not data:
        raise PictureError(f"{name} is empty (0 bytes); give a picture.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's doubts about large sizes and EXIF
            with Image.open(BytesIO(data), formats=formats) as image:
                if image.width * image.height > largest:
                    raise Image.DecompressionBombError
                yield image
    except PictureError:
        raise
    except Image.DecompressionBombError:
        raise PictureError(
            f"{name} declares more than {largest:,} pixels and was not decoded; "
            "scale it down first."
        ) from None
    except Image.UnidentifiedImageError:
        instead = f"give one of {', '.join(formats)}."
        if kind := _identify_format(data):
            raise FormatError(f"{name} is {kind}, which is not read; {instead}") from None
        raise PictureError(f"{name} is not a picture that can be read; {instead}") from None
    except Exception as error:  # a decoder raises whatever a broken file makes it meet
        raise PictureError(f"{name} is damaged or truncated: {error}.") from error


def _identify_format(data: bytes) -> str | None:
    """What a file is that is none of ours, if that is known."""
    for kind, at, beginning in FILE_SIGNATURES:
        if data.startswith(beginning, at):
            return kind
    return "an SVG" if b"<svg" in data[:1000].lower() else None


def _read_file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise PictureError(f"{path}: no such file.") from None
    except IsADirectoryError:
        raise PictureError(f"{path} is a folder; give a picture file.") from None
    except (OSError, ValueError) as error:
        raise PictureError(f"{path} cannot be read: {error}.") from error
    if len(data) > MAX_FILE_BYTES:
        raise PictureError(f"{path} is larger than {MAX_FILE_BYTES:,} bytes; give a smaller file.")
    return data


def _encode_png(image: Image.Image) -> bytes:
    orientation = image.getexif()
    profile = image.info.get("icc_profile")
    if image.mode not in PNG_MODES:
        image, profile = _convert_to_rgb(image), None
    buffer = BytesIO()
    image.save(buffer, "PNG", compress_level=1, exif=orientation, icc_profile=profile)
    return buffer.getvalue()


def _convert_to_rgb(image: Image.Image) -> Image.Image:
    """8-bit sRGB from any mode, transparency over white."""
    profile = image.info.get("icc_profile")
    if image.mode.startswith(("I", "F")):
        image = _scale_to_8_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
    elif image.mode in {"1", "P"}:
        image = image.convert("RGB")
    if profile:
        with suppress(ImageCms.PyCMSError, OSError):
            image = _convert_to_srgb(image, profile)
    if image.mode == "RGBA":
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _scale_to_8_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey (modes I;16 and I) to 8 bits; a transparent grey value becomes white."""
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise PictureError(
            f"the picture has 32-bit samples (mode {image.mode}), whose white is not known; "
            "save it with 8 or 16 bits."
        )
    if (transparent := image.info.get("transparency")) is not None:
        values = np.where(values == transparent, 65535, values)
    return Image.fromarray(np.rint(values / 257.0).astype(np.uint8))


def _convert_to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    converted = ImageCms.profileToProfile(
        image,
        ImageCms.ImageCmsProfile(BytesIO(profile)),
        ImageCms.createProfile("sRGB"),
        outputMode="RGBA" if image.mode == "RGBA" else "RGB",
    )
    return converted or image


# Sizes


# Arrays


def to_array(image: Image.Image) -> NDArray[np.float32]:
    """[3, height, width] in -1..1 from an RGB image."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)) / np.float32(127.5) - np.float32(1)


def from_array(array: NDArray[np.floating[Any]]) -> Image.Image:
    """An RGB image from [3, height, width] in -1..1; a decoder's overshoot is cut off."""
    pixels = (array.astype(np.float32).transpose(1, 2, 0) + 1) * np.float32(127.5)
    return Image.fromarray(np.rint(pixels.clip(0, 255)).astype(np.uint8))


# Writing


# A grid
