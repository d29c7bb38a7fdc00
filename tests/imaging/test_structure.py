"""Picture files of many small parts are refused before a decoder reads them."""

import struct
import zlib
from io import BytesIO

import pytest
from PIL import Image

from overpaint.errors import PictureError
from overpaint.imaging import structure
from overpaint.imaging.codec import read_picture, receive_picture
from overpaint.imaging.structure import check_structure


def encode(kind: str) -> bytes:
    buffer = BytesIO()
    exif = Image.Exif()
    exif[0x010E] = "a house"
    Image.effect_noise((64, 64), 90).save(buffer, kind, exif=exif)
    return buffer.getvalue()


PNG, JPEG = encode("PNG"), encode("JPEG")


def png_of_chunks(count: int) -> bytes:
    empty = struct.pack(">I", 0) + b"teSt" + struct.pack(">I", zlib.crc32(b"teSt"))
    header = 8 + 25
    return PNG[:header] + empty * count + PNG[header:]


def jpeg_of(segment: bytes, count: int) -> bytes:
    return JPEG[:2] + segment * count + JPEG[2:]


def app(number: int, content: bytes) -> bytes:
    return bytes((0xFF, 0xE0 + number)) + struct.pack(">H", len(content) + 2) + content


EXIF = app(1, b"Exif\0\0" + bytes(60_000))
COMMENT = bytes((0xFF, 0xFE)) + struct.pack(">H", 3) + b"a"


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (png_of_chunks(200_000), "PNG chunks"),
        (jpeg_of(EXIF, 100), "EXIF segments"),
        (jpeg_of(COMMENT, 2000), "JPEG segments"),
        (jpeg_of(app(13, b""), 2000), "JPEG segments"),
        (jpeg_of(b"\xff", 100_000), "JPEG segments"),
        (jpeg_of(b"\xff\x00", 100_000), "JPEG segments"),
    ],
)
def test_picture_of_too_many_parts_is_refused_before_it_is_opened(
    data: bytes, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(Image, "open")
    for read in (lambda: receive_picture(data, "image"), lambda: read_picture(data)):
        with pytest.raises(PictureError, match=problem):
            read()


@pytest.mark.parametrize(
    "data",
    [
        png_of_chunks(structure.MAX_SMALL_PNG_CHUNKS // 2),
        jpeg_of(EXIF, structure.MAX_EXIF_SEGMENTS // 2),
        jpeg_of(COMMENT, structure.MAX_JPEG_SEGMENTS // 2),
    ],
)
def test_picture_of_many_parts_is_read(data: bytes) -> None:
    assert receive_picture(data, "image").data == data


@pytest.mark.parametrize("whole", [PNG, JPEG])
def test_structure_of_a_truncated_picture_is_no_error(whole: bytes) -> None:
    for length in range(300):
        check_structure(whole[:length], "image")
