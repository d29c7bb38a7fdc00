"""Read the texts in picture files: PNG text chunks, comments and EXIF, in any encoding."""

from dataclasses import dataclass
from typing import Any

from PIL import ExifTags, Image

_TEXT_TAGS = {
    ExifTags.Base.UserComment: "UserComment",
    ExifTags.Base.XPComment: "XPComment",
    ExifTags.Base.ImageDescription: "ImageDescription",
    ExifTags.Base.Make: "Make",
    ExifTags.Base.Model: "Model",
}
"""EXIF tags with texts, and the keys that `extract_texts` gives them."""

SETTINGS_KEYS = ("parameters", "UserComment", "XPComment", "comment", "ImageDescription", "Model")
"""Keys under which programs put settings as A1111's text or as JSON, the usual one first."""

GRAPH_KEYS = ("prompt", "Model", "Make", "ImageDescription", "UserComment")
"""Keys under which ComfyUI and its nodes put a graph, the usual one first."""

_CODE_LENGTH = 8
_CODES = {b"UNICODE\0", b"ASCII\0\0\0", b"JIS\0\0\0\0\0", b"\0" * _CODE_LENGTH}
"""The character codes at the start of an EXIF UserComment (EXIF 2.32, 4.6.5)."""

_BYTE_ORDER_MARKS = {b"\xef\xbb\xbf": "utf-8", b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}


@dataclass(frozen=True)
class PictureTexts:
    """The texts of a picture.

    Attributes:
        by_key: the texts by the key of their chunk or the name of their EXIF tag.
        size: width and height of the picture in pixels.
    """

    by_key: dict[str, str]
    size: tuple[int, int]


def extract_texts(image: Image.Image) -> dict[str, str]:
    """Return the texts of a picture by the key of their chunk or the name of their EXIF tag.

    Overpaint's record has the key "overpaint" in every format, and A1111's text "parameters".
    """
    texts = {
        str(key): text
        for key, value in image.info.items()
        if (text := _decode_chunk(value, comment=key == "comment")) is not None
    }
    for key, text in _read_exif(image).items():
        texts.setdefault(key, text)
    description = texts.get("ImageDescription", "")
    if description.startswith('{"overpaint": '):
        texts.setdefault("overpaint", description.removeprefix('{"overpaint": ')[:-1])
    if "UserComment" in texts:
        texts.setdefault("parameters", texts["UserComment"])
    return texts


def decode_text(data: bytes) -> str:
    """Decode a text whose encoding its writer does not tell reliably.

    The function accepts UTF-8, UTF-16 in either byte order, ISO 2022 and Latin-1, with or
    without the character code of an EXIF UserComment and a byte order mark.
    """
    code = data[:_CODE_LENGTH] if data[:_CODE_LENGTH] in _CODES else b""
    body = data[len(code) :]
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if body.startswith(mark):
            return _clean(body[len(mark) :].decode(encoding, "replace"))
    if _is_utf16(body, marked=code == b"UNICODE\0"):
        # Writers disagree about the order. Latin letters have their zero byte first in big-endian.
        big = body[0::2].count(0) >= body[1::2].count(0)
        whole = body[: len(body) // 2 * 2]
        return _clean(whole.decode("utf-16-be" if big else "utf-16-le", "replace"))
    if code.startswith(b"JIS") and b"\x1b" in body:
        return _clean(body.decode("iso2022_jp", "replace"))
    return _clean(body.decode("utf-8" if _is_utf8(body) else "latin-1"))


def _is_utf16(data: bytes, *, marked: bool) -> bool:
    """Return True for UTF-16 without a byte order mark.

    Settings have Latin letters, whose zero bytes are all first or all second; UTF-8 has zero bytes
    only as padding. A text without Latin letters is UTF-16 if it is marked and no UTF-8.
    """
    if 4 * data.rstrip(b"\0").count(0) >= len(data) > 1:
        return True
    first, second = data[0::2].count(0), data[1::2].count(0)
    one_sided = first + second > 1 and min(first, second) == 0
    return (marked or one_sided) and not _is_utf8(data)


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _clean(text: str) -> str:
    return text.strip("\0\ufeff")


def _decode_chunk(value: Any, *, comment: bool) -> str | None:
    """Return the text of a chunk, or of a JPEG's or GIF's comment; None for other values."""
    if isinstance(value, str):
        return _clean(value)
    return decode_text(value) if comment and isinstance(value, bytes) else None


def _read_exif(image: Image.Image) -> dict[str, str]:
    texts: dict[str, str] = {}
    try:
        exif = image.getexif()
        for tags in (exif.get_ifd(ExifTags.IFD.Exif), exif):
            for tag, key in _TEXT_TAGS.items():
                value = tags.get(tag)
                if isinstance(value, str):
                    value = value.encode("latin-1", "replace")  # from a tag of the type ASCII
                if isinstance(value, bytes):
                    texts.setdefault(key, decode_text(value))
    except Exception:  # Pillow raises many types for broken EXIF; other texts remain
        return texts
    return texts
