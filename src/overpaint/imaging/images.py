"""Pictures: read safely, brought to size, laid out in a grid, written whole or not at all."""

import os
import re
import stat
import struct
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, ImageDraw, ImageFont, ImageOps
from PIL.Image import Resampling

from overpaint.errors import FormatError, OutputError, PictureError, RequestError
from overpaint.picture import Picture
from overpaint.request import Request
from overpaint.request_fields import Fit

READABLE = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
RECEIVED = ("PNG", "JPEG", "WEBP")
"""Formats that are read of strangers: those that browsers send, and whose readers meet the most."""
WRITABLE = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
LARGEST_PIXELS = 178_956_970
"""Pixels above which a picture is refused unread: half a gigabyte as RGB, Pillow's own limit."""
LARGEST_RECEIVED = 2**26
"""The same for pictures of strangers, many of which may come at once: 8192 a side."""
MOST_SCANS = 100
"""Scans of a JPEG; those that are refined as they come have a dozen."""
MOST_MARKERS = 10_000
MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
"""Of a JPEG, one with a length behind it, or that of its end."""
SMALLEST_SIDE = 8
"""Pixels below which there is nothing in a picture that could be repainted."""
LARGEST_BYTES = 2**30
"""Bytes beyond which a file is not read on: whatever it is, it is no picture to repaint."""

BEGINNINGS: tuple[tuple[str, int, bytes], ...] = (
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

_PNG_MODES = {"1", "L", "LA", "P", "RGB", "RGBA", "I;16"}


# Reading


def picture(source: "str | os.PathLike[str] | bytes | Image.Image | Picture") -> Picture:
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
        return Picture(data=_as_png(source))
    if isinstance(source, bytes):
        name, data = "the picture", source
    else:
        name, data = str(source), _file(Path(source))
    with opened(data, name) as image:
        image.load()
    return Picture(data=data)


def received(data: bytes, name: str) -> Picture:
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
    with opened(data, name, RECEIVED, LARGEST_RECEIVED) as image:
        if min(image.size) < SMALLEST_SIDE:
            raise PictureError(
                f"{name} is {image.width}x{image.height}; give one of {SMALLEST_SIDE} pixels a "
                "side at least."
            )
        if image.format != "MPO" and (frames := getattr(image, "n_frames", 1)) > 1:
            raise PictureError(f"{name} has {frames} frames; give one picture.")
        if image.format == "PNG":
            image.verify()
        elif image.format != "WEBP":  # whose reader looks at the end first
            _check_scans(data, name)
            if "progressive" not in image.info:  # which would need room for the whole picture
                image.draft("L", (1, 1))
                image.load()
    return Picture(data=data)


def _check_scans(data: bytes, name: str) -> None:
    """See that a JPEG ends, and soon: each of its scans goes over the whole picture.

    What stands behind its end is none of it: phones put films there. (ITU-T T.81, B.1.1 and B.2.)

    Raises:
        PictureError: it does not.
    """
    at, scans = 2, 0
    for _ in range(MOST_MARKERS):
        if (found := MARKER.search(data, at)) is None:
            raise PictureError(f"{name} is damaged or truncated: the end of the JPEG is missing.")
        if found[0] == b"\xff\xd9":
            break
        scans += found[0] == b"\xff\xda"
        at = found.end() + int.from_bytes(data[found.end() : found.end() + 2])
    else:
        raise PictureError(f"{name} has more than {MOST_MARKERS:,} markers; save it again.")
    if scans > MOST_SCANS:
        raise PictureError(f"{name} has {scans} scans; save it again, as others do, with ten.")


def opacity(image: Image.Image) -> Image.Image | None:
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
    with opened(picture.data, name) as image:
        behind = image.format == "PNG" and "exif" not in image.info and b"eXIf" in picture.data
        if behind and (found := _chunk(picture.data, b"eXIf")):
            image.info["exif"] = b"Exif\0\0" + found
        exif = Image.Image.getexif(image)  # a PNG's own way decodes it, to see what stands behind
        turned = exif.get(ExifTags.Base.Orientation, 1) in range(5, 9)
        return (image.height, image.width) if turned else image.size


def _chunk(data: bytes, wanted: bytes) -> bytes:
    """What the first chunk of a name holds in a PNG (its specification, 5.3); b"" without one."""
    at, kind = 8, b""
    while at + 8 <= len(data) and kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == wanted:
            return data[at + 8 : at + 8 + length]
        at += length + 12
    return b""


def check_mask(mask: Picture, size: tuple[int, int]) -> None:
    """Make sure that a mask is of its picture's size, (width, height), without decoding it.

    Raises:
        PictureError: it has another, or cannot be read.
    """
    if (found := upright_size(mask, "the mask")) != size:
        raise PictureError(
            f"the mask is {found[0]}x{found[1]} and the picture {size[0]}x{size[1]}; "
            "give a mask of the picture's size."
        )


def keypoints(path: "str | os.PathLike[str]") -> Picture:
    """A file of keypoints, in the place of the picture that is drawn from it.

    Raises:
        PictureError: it cannot be read.
    """
    return Picture(data=_file(Path(path)))


def decode(picture: Picture) -> Image.Image:
    """The pixels of a picture as 8-bit sRGB.

    The EXIF orientation is applied, an embedded colour profile converted to sRGB (one that cannot
    be read counts as sRGB), 16-bit values are scaled, transparency is laid over white, and of
    several frames the first is taken.

    Raises:
        PictureError: not a picture, truncated, too large, or with samples of more than 16 bits.
    """
    with opened(picture.data, "the picture") as image:
        image.load()
        return _rgb(ImageOps.exif_transpose(image))


@contextmanager
def opened(
    data: bytes, name: str, formats: tuple[str, ...] = READABLE, largest: int = LARGEST_PIXELS
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
        if kind := _kind(data):
            raise FormatError(f"{name} is {kind}, which is not read; {instead}") from None
        raise PictureError(f"{name} is not a picture that can be read; {instead}") from None
    except Exception as error:  # a decoder raises whatever a broken file makes it meet
        raise PictureError(f"{name} is damaged or truncated: {error}.") from error


def _kind(data: bytes) -> str | None:
    """What a file is that is none of ours, if that is known."""
    for kind, at, beginning in BEGINNINGS:
        if data.startswith(beginning, at):
            return kind
    return "an SVG" if b"<svg" in data[:1000].lower() else None


def _file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_BYTES + 1)
    except FileNotFoundError:
        raise PictureError(f"{path}: no such file.") from None
    except IsADirectoryError:
        raise PictureError(f"{path} is a folder; give a picture file.") from None
    except (OSError, ValueError) as error:
        raise PictureError(f"{path} cannot be read: {error}.") from error
    if len(data) > LARGEST_BYTES:
        raise PictureError(f"{path} is larger than {LARGEST_BYTES:,} bytes; give a smaller file.")
    return data


def _as_png(image: Image.Image) -> bytes:
    orientation = image.getexif()
    profile = image.info.get("icc_profile")
    if image.mode not in _PNG_MODES:
        image, profile = _rgb(image), None
    buffer = BytesIO()
    image.save(buffer, "PNG", compress_level=1, exif=orientation, icc_profile=profile)
    return buffer.getvalue()


def _rgb(image: Image.Image) -> Image.Image:
    """8-bit sRGB from any mode, transparency over white."""
    profile = image.info.get("icc_profile")
    if image.mode.startswith(("I", "F")):
        image = _eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
    elif image.mode in {"1", "P"}:
        image = image.convert("RGB")
    if profile:
        with suppress(ImageCms.PyCMSError, OSError):
            image = _to_srgb(image, profile)
    if image.mode == "RGBA":
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
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


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    converted = ImageCms.profileToProfile(
        image,
        ImageCms.ImageCmsProfile(BytesIO(profile)),
        ImageCms.createProfile("sRGB"),
        outputMode="RGBA" if image.mode == "RGBA" else "RGB",
    )
    return converted or image


# Sizes


def result_size(
    picture_size: tuple[int, int] | None, native: int, request: Request
) -> tuple[int, int]:
    """The (width, height) of the result in pixels, multiples of 8.

    Width and height as asked; where one is missing it follows from the picture's aspect, or
    without a picture from the native area; where both are, `size` decides: "keep" is the
    picture's own size, "native" the picture's aspect at the native area.

    Args:
        picture_size: (width, height) of the upright picture, None for text to image.
        native: the side of the square that the model was trained on.
        request: its `width`, `height` and `size`.

    Raises:
        RequestError: a side below native / 4 or above native × 2.
    """
    aspect = picture_size[0] / picture_size[1] if picture_size else 1.0
    origin = ""
    match request.width, request.height:
        case int(width), int(height):
            pass
        case int(width), None:
            height = to_eights(width / aspect if picture_size else native**2 / width)
        case None, int(height):
            width = to_eights(height * aspect if picture_size else native**2 / height)
        case _:
            if picture_size and request.size == "keep":
                width, height = map(to_eights, picture_size)
            else:
                width, height = to_eights(native * aspect**0.5), to_eights(native / aspect**0.5)
            if picture_size:
                origin = f" (from a picture of {picture_size[0]}x{picture_size[1]})"

    for field, side in (("width", width), ("height", height)):
        if not native / 4 <= side <= native * 2:
            raise RequestError(
                field,
                f"{side}{origin} is out of range; this model draws {native // 4} to {native * 2} "
                "pixels a side. Give width and height within it.",
            )
    return width, height


def check_size(request: Request, native: int) -> None:
    """Refuse a size that a model cannot draw, as far as it is known without decoding pictures.

    Args:
        request: whose size may follow from its image.
        native: as for `result_size`.

    Raises:
        RequestError: as `result_size`.
        PictureError: the image cannot be read.
    """
    if (request.masked and not request.sized) or (request.controls and request.image is None):
        return  # it follows from the mask, or from a hint
    size = upright_size(request.image) if request.image else None
    result_size(size, native, request)


def outside_trained(size: tuple[int, int], native: int) -> str | None:
    """What to say about a (width, height) with a side below three quarters of native, or None."""
    if min(size) >= native * 3 / 4:
        return None
    return (
        f"{size[0]}x{size[1]} is outside the sizes that the model was trained on "
        f"({native * 3 // 4} to {native * 2} pixels a side); the result may suffer."
    )


def fit(
    image: Image.Image,
    size: tuple[int, int],
    how: Fit,
    resampling: Resampling = Resampling.LANCZOS,
) -> Image.Image:
    """Bring a picture to (width, height); it is returned itself when it has that size.

    "cover" scales and crops around the centre; "contain" scales and pads with the mean colour of
    the picture's border; "stretch" distorts.
    """
    if image.size == size:
        return image
    if how == "stretch":
        return image.resize(size, resampling)
    if how == "cover":
        return ImageOps.fit(image, size, resampling)
    scale = min(size[0] / image.width, size[1] / image.height)
    inner = max(round(image.width * scale), 1), max(round(image.height * scale), 1)
    padded = Image.new("RGB", size, _border_color(image))
    padded.paste(
        image.resize(inner, resampling),
        ((size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2),
    )
    return padded


def to_eights(side: float) -> int:
    """The nearest multiple of 8 pixels, at least 8."""
    return max(int(side / 8 + 0.5) * 8, 8)


def _border_color(image: Image.Image) -> tuple[int, int, int]:
    pixels = np.asarray(image.convert("RGB"))
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    red, green, blue = border.mean(axis=0).round().astype(int).tolist()
    return red, green, blue


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


def output_format(path: Path) -> str:
    """Pillow's name of the format that a file name asks for.

    Raises:
        OutputError: an unknown suffix.
    """
    if (kind := WRITABLE.get(path.suffix.lower())) is None:
        raise OutputError(f"{path}: end the name with one of {', '.join(WRITABLE)}.")
    return kind


def check_writable(path: Path) -> None:
    """Make sure, before any work is done, that a picture can be written to `path`.

    Raises:
        OutputError: an unknown suffix, no such folder, not a file, or not ours to write.
    """
    output_format(path)
    try:
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):
            raise OutputError(f"{path} exists and is not a file; choose another name.")
        if path.exists() and not os.access(path, os.W_OK):
            raise OutputError(f"{path} is write-protected; choose another name.")
        if not path.parent.is_dir():
            raise OutputError(f"{path}: there is no folder {path.parent}; make it first.")
        probe = _beside(path)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}.") from error


def save(image: Image.Image, path: Path, options: Mapping[str, Any]) -> None:
    """Write a picture in the format of its suffix, whole or not at all.

    Args:
        image: RGB.
        path: overwritten when it exists; through a symbolic link, the file it points to.
        options: Pillow's for that format.

    Raises:
        OutputError: it cannot be written; nothing is left behind.
    """
    kind, path = output_format(path), path.resolve()
    part = _beside(path)
    try:
        with part.open("xb") as file:
            image.save(file, kind, **options)
        part.replace(path)
    except (OSError, ValueError) as error:
        raise OutputError(f"{path} cannot be written: {error}.") from error
    finally:
        part.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    return path.with_name(f".overpaint-{uuid4().hex}.part")


# A grid


def sweep_grid(
    pictures: Sequence[Image.Image], strengths: Sequence[float], scales: Sequence[float]
) -> Image.Image:
    """One labelled picture of strength by guidance; `pictures` row by row, a row per scale."""
    columns = len(strengths)
    return grid(
        [pictures[i : i + columns] for i in range(0, len(pictures), columns)],
        [f"{value:g}" for value in strengths],
        [f"{value:g}" for value in scales],
        column_title="strength",
        row_title="guidance",
    )


def grid(
    rows: Sequence[Sequence[Image.Image]],
    column_labels: Sequence[str],
    row_labels: Sequence[str],
    *,
    column_title: str = "",
    row_title: str = "",
) -> Image.Image:
    """One labelled picture of many.

    Args:
        rows: images of one size, row by row.
        column_labels: above each column.
        row_labels: left of each row.
        column_title: what the columns vary, above their labels.
        row_title: what the rows vary, in the top left corner.
    """
    width, height = rows[0][0].size
    text = min(max(height // 12, 12), 36)
    font, gap = ImageFont.load_default(text), max(text // 2, 6)
    title_width = font.getlength(row_title)
    left = int(max([title_width, *map(font.getlength, row_labels)])) + 2 * gap
    top = 2 * text + 3 * gap
    columns = len(column_labels)
    sheet = Image.new(
        "RGB",
        (left + columns * (width + gap), top + len(rows) * (height + gap)),
        "white",
    )
    draw = ImageDraw.Draw(sheet)
    middle = left + (columns * (width + gap) - gap) / 2
    draw.text((middle, gap), column_title, fill="#555555", font=font, anchor="ma")
    draw.text((gap, top - gap), row_title, fill="#555555", font=font, anchor="ls")
    for column, label in enumerate(column_labels):
        x = left + column * (width + gap)
        draw.text((x + width / 2, top - gap), label, fill="black", font=font, anchor="ms")
    for row, (label, images) in enumerate(zip(row_labels, rows, strict=True)):
        y = top + row * (height + gap)
        draw.text((left - gap, y + height / 2), label, fill="black", font=font, anchor="rm")
        for column, image in enumerate(images):
            sheet.paste(image, (left + column * (width + gap), y))
    return sheet
