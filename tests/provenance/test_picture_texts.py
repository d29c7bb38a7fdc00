"""Texts in picture files, in every encoding that programs write."""

from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from overpaint.errors import PictureError
from overpaint.imaging import codec
from overpaint.provenance import metadata
from overpaint.provenance.picture_texts import decode_text, extract_texts

PIXELS = Image.new("RGB", (16, 8), (200, 100, 50))
PROMPT = "ein großer Fuchs 狐 🦊, (tree:1.2)"
TEXT = f"{PROMPT}\nNegative prompt: blurry\nSteps: 22, Sampler: Euler a, CFG scale: 6.5, Seed: 77"
LATIN = TEXT.replace(PROMPT, "ein großer Fuchs")
UNMARKED = b"\0" * 8


def picture_with(comment: bytes | str, kind: str = "JPEG", *, in_exif_ifd: bool = True) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Software] = "a program"
    tags = exif.get_ifd(ExifTags.IFD.Exif) if in_exif_ifd else exif
    tags[ExifTags.Base.UserComment] = comment
    buffer = BytesIO()
    PIXELS.save(buffer, kind, exif=exif)
    return buffer.getvalue()


def texts_of(data: bytes) -> dict[str, str]:
    with codec.open_image(data, "the picture", texts=True) as image:
        image.load()
        return extract_texts(image)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG"])
@pytest.mark.parametrize(
    ("comment", "text"),
    [
        (b"UNICODE\0" + TEXT.encode("utf-16-be"), TEXT),
        (b"UNICODE\0" + TEXT.encode("utf-16-le"), TEXT),
        (b"UNICODE\0\xff\xfe" + TEXT.encode("utf-16-le"), TEXT),
        (b"UNICODE\0\xfe\xff" + TEXT.encode("utf-16-be"), TEXT),
        (b"UNICODE\0" + TEXT.encode("utf-16-be") + b"\0\0", TEXT),
        (b"UNICODE\0" + TEXT.encode("utf-16-le") + b"\0", TEXT),
        (b"UNICODE\0" + TEXT.encode(), TEXT),
        (b"UNICODE\0\xef\xbb\xbf" + TEXT.encode(), TEXT),
        (b"UNICODE\0" + "狐狸和森林".encode("utf-16-be"), "狐狸和森林"),
        (b"ASCII\0\0\0" + TEXT.encode(), TEXT),
        (b"ASCII\0\0\0" + LATIN.encode("latin-1"), LATIN),
        (b"JIS\0\0\0\0\0" + "狐 a fox".encode("iso2022_jp"), "狐 a fox"),
        (UNMARKED + TEXT.encode(), TEXT),
        (UNMARKED + TEXT.encode("utf-16-be"), TEXT),
        (TEXT.encode(), TEXT),
        (TEXT.encode() + b"\0\0\0", TEXT),
        (b"\xef\xbb\xbf" + TEXT.encode(), TEXT),
        (b"\xff\xfe" + TEXT.encode("utf-16-le"), TEXT),
        (b"\xfe\xff" + TEXT.encode("utf-16-be"), TEXT),
        (TEXT.encode("utf-16-le"), TEXT),
        (TEXT.encode("utf-16-be"), TEXT),
        (LATIN.encode("latin-1"), LATIN),
    ],
)
def test_user_comment_in_any_encoding_is_read_whole(comment: bytes, text: str, kind: str):
    assert texts_of(picture_with(comment, kind))["parameters"] == text


@pytest.mark.parametrize("in_exif_ifd", [True, False])
def test_user_comment_of_the_type_ascii_is_read(in_exif_ifd: bool):
    # Pillow writes texts with the type ASCII and reads them as Latin-1.
    comment = TEXT.encode().decode("latin-1")
    data = picture_with("?" * len(comment), in_exif_ifd=in_exif_ifd)
    data = data.replace(b"?" * len(comment), TEXT.encode())
    assert texts_of(data)["parameters"] == TEXT


def test_settings_in_a_jpeg_comment_or_windows_comment_are_read(tmp_path: Path):
    PIXELS.save(tmp_path / "a.jpg", comment=TEXT.encode())
    assert metadata.read_settings(tmp_path / "a.jpg").fields["prompt"] == PROMPT
    exif = Image.Exif()
    exif[ExifTags.Base.XPComment] = TEXT.encode("utf-16-le") + b"\0\0"
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = b"ASCII\0\0\0Screenshot"
    PIXELS.save(tmp_path / "b.jpg", exif=exif)
    assert metadata.read_settings(tmp_path / "b.jpg").fields["prompt"] == PROMPT


def test_utf_8_in_a_latin_1_chunk_is_read(tmp_path: Path):
    chunks = PngInfo()
    chunks.add(b"tEXt", b"parameters\0" + TEXT.encode())
    PIXELS.save(tmp_path / "a.png", pnginfo=chunks)
    assert metadata.read_settings(tmp_path / "a.png").fields["prompt"] == PROMPT


def test_latin_1_and_international_chunks_are_unchanged(tmp_path: Path):
    chunks = PngInfo()
    chunks.add_text("latin", "großer")
    chunks.add_itxt("looks like Latin-1", "Ã¶")
    PIXELS.save(tmp_path / "a.png", pnginfo=chunks)
    texts = texts_of((tmp_path / "a.png").read_bytes())
    assert texts == {"latin": "großer", "looks like Latin-1": "Ã¶"}


def test_broken_exif_hides_no_chunk(tmp_path: Path):
    chunks = PngInfo()
    chunks.add_text("parameters", TEXT)
    PIXELS.save(tmp_path / "a.png", pnginfo=chunks, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert metadata.read_settings(tmp_path / "a.png").fields["prompt"] == PROMPT


@given(prompt=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufeff")))
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("code", [b"", b"UNICODE\0", b"ASCII\0\0\0", UNMARKED])
def test_any_prompt_with_settings_is_decoded(prompt: str, code: bytes, encoding: str):
    text = TEXT.replace(PROMPT, prompt)
    assert decode_text(code + text.encode(encoding)) == text


@given(data=st.binary())
def test_any_bytes_are_decoded(data: bytes):
    for code in (b"", b"UNICODE\0", b"JIS\0\0\0\0\0"):
        decode_text(code + data)


@given(data=st.binary(max_size=200), position=st.integers(0, 400))
def test_broken_exif_raises_no_foreign_error(data: bytes, position: int):
    whole = picture_with(b"UNICODE\0" + TEXT.encode("utf-16-be"), "WEBP")
    start = whole.index(b"EXIF") + 8
    broken = bytearray(whole)
    broken[start + position : start + position + len(data)] = data
    expect_settings_or_picture_error(bytes(broken[: len(whole)]))


def expect_settings_or_picture_error(data: bytes) -> Any:
    try:
        return texts_of(data)
    except PictureError:
        return None
