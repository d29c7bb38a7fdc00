"""Every kind of source becomes the same picture."""

import base64
from collections.abc import Callable
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from overpaint.errors import PictureError
from overpaint.imaging import codec
from overpaint.picture_sources import read_source

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8)
FLOATS = PIXELS / 255
GRAY = PIXELS[..., 0]


def encoded() -> bytes:
    buffer = BytesIO()
    Image.fromarray(PIXELS).save(buffer, "PNG")
    return buffer.getvalue()


def as_file(_: Path) -> BytesIO:
    file = BytesIO(encoded())
    file.seek(0, 2)  # as after writing
    return file


def as_path(folder: Path) -> Path:
    (folder / "a.png").write_bytes(encoded())
    return folder / "a.png"


CHW = torch.from_numpy(PIXELS).permute(2, 0, 1)

SOURCES: dict[str, Callable[[Path], Any]] = {
    "path": as_path,
    "text": lambda folder: str(as_path(folder)),
    "bytes": lambda _: encoded(),
    "bytearray": lambda _: bytearray(encoded()),
    "memoryview": lambda _: memoryview(encoded()),
    "file object": as_file,
    "Pillow": lambda _: Image.fromarray(PIXELS),
    "uint8": lambda _: PIXELS,
    "int64": lambda _: PIXELS.astype(np.int64),
    "uint16": lambda _: PIXELS.astype(np.uint16) * 257,
    "float32": lambda _: FLOATS.astype(np.float32),
    "float64": lambda _: FLOATS,
    "float64 with rounding errors": lambda _: FLOATS * 1.0002 - 1e-4,
    "batch of one": lambda _: PIXELS[None],
    "not contiguous": lambda _: np.asfortranarray(PIXELS),
    "channels first": lambda _: PIXELS.transpose(2, 0, 1),
    "tensor": lambda _: CHW,
    "tensor of floats": lambda _: CHW.float() / 255,
    "tensor with gradients": lambda _: (CHW.float() / 255).requires_grad_(),
    "tensor batch of one": lambda _: CHW[None],
    "tensor with channels last": lambda _: torch.from_numpy(PIXELS),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_source_of_each_kind_has_the_same_pixels(kind: str, tmp_path: Path) -> None:
    source = SOURCES[kind](tmp_path)
    found = codec.decode(codec.read_picture(source))
    assert np.array_equal(np.asarray(found), PIXELS)


@pytest.mark.parametrize(
    "source",
    [
        GRAY,
        GRAY[..., None],
        GRAY / 255,
        torch.from_numpy(GRAY.copy()),
        GRAY.astype(np.float16) / 255,
    ],
    ids=["two axes", "one channel", "float", "tensor", "float16"],
)
def test_gray_source_has_the_same_levels(source: Any) -> None:
    found = np.asarray(codec.decode(read_source(source)))
    assert np.array_equal(found, np.repeat(GRAY[..., None], 3, 2))


def test_boolean_array_is_black_and_white() -> None:
    found = np.asarray(codec.decode(read_source(GRAY > 128)))
    assert np.array_equal(found[..., 0], np.where(GRAY > 128, 255, 0))


def test_fourth_channel_is_alpha() -> None:
    rgba = np.dstack([PIXELS, np.full_like(GRAY, 7)])
    found = codec.decode_with_alpha(read_source(rgba))
    assert found.getchannel("A").getextrema() == (7, 7)


def test_bfloat16_tensor_is_read() -> None:
    found = codec.decode(read_source(torch.ones(3, 8, 8, dtype=torch.bfloat16)))
    assert found.getextrema() == ((255, 255),) * 3


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((8, 8, 5)), r"shape \[8, 8, 5\]; give one picture as \[height, width, chan"),
        (torch.zeros(2, 3, 8, 8), r"shape \[2, 3, 8, 8\]; give one picture as \[channels, height"),
        (np.zeros(8), r"shape \[8\]"),
        (np.zeros((0, 8, 3)), r"shape \[0, 8, 3\]"),
        (np.full((8, 8), -1.0), "from -1 to -1; give 0 to 1, or uint8 from 0 to 255"),
        (FLOATS * 255, "float64 from 0 to 255; give 0 to 1"),
        (np.full((8, 8), np.nan), "from nan to nan"),
        (np.full((8, 8), 256), "from 256 to 256; give 0 to 255"),
        (np.full((8, 8), "a"), "values of type <U1"),
        (StringIO("P1"), "file of text; open it with mode 'rb'"),
        (5, "is 5, which is not a picture. Give a path, a URL"),
        (None, "is None, which is not a picture"),
    ],
)
def test_source_that_is_no_picture_is_described(source: Any, message: str) -> None:
    with pytest.raises(PictureError, match=f"^the mask .*{message}"):
        read_source(source, "the mask")


def test_large_file_object_is_refused() -> None:
    with pytest.raises(PictureError, match="larger than 10 bytes"):
        read_source(BytesIO(bytes(11)), max_file_bytes=10)


def test_url_is_fetched_under_the_rules(tmp_path: Path) -> None:
    for url in ("http://127.0.0.1/a.png", "HTTPS://[::1]/a.png"):
        with pytest.raises(PictureError, match="an address that is not public"):
            codec.read_picture(url)


def closed_file() -> BytesIO:
    file = BytesIO(encoded())
    file.close()
    return file


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.uint8(3), "has the shape \\[\\]"),
        (torch.zeros(3, 4, 4).to_sparse(), "dense"),
        (torch.zeros(3, 4, 4, device="meta"), "dense"),
        (closed_file(), "cannot be read"),
        ("", "is an empty text"),
        ("data:image/png;base64,%%%", "not in base64"),
        ("data:image/png,abc", "not in base64"),
    ],
    ids=["number", "sparse", "meta", "closed", "empty", "damaged data URL", "text data URL"],
)
def test_source_that_has_no_picture_is_refused(source: Any, message: str) -> None:
    with pytest.raises(PictureError, match=message):
        read_source(source)


def test_data_url_is_read() -> None:
    url = f"data:image/png;base64,{base64.b64encode(encoded()).decode()}"
    assert read_source(url).data == encoded()


def test_whole_numbers_in_a_pillow_image_are_levels_as_in_an_array() -> None:
    whole = Image.fromarray(GRAY.astype(np.int32))
    assert whole.mode == "I"
    decoded = np.asarray(codec.decode(read_source(whole)))
    assert (decoded[..., 0] == GRAY).all()
