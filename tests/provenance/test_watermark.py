"""The watermark is seen by decoders, ours and others', and by nobody else."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from overpaint.provenance.watermark import BITS, add_watermark, can_hold_watermark, has_watermark

EXAMPLES = Path(__file__).parents[2] / "examples"


def clouds(size: tuple[int, int], seed: int = 1) -> Image.Image:
    """A picture of smooth colours with some grain, as photographs have."""
    drawn = np.random.default_rng(seed)
    coarse = drawn.integers(30, 226, (12, 12, 3)).astype(np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))
    return Image.fromarray(np.clip(smooth + drawn.normal(0, 3, smooth.shape), 0, 255).astype("u1"))


def opened(name: str) -> Image.Image:
    with Image.open(EXAMPLES / name) as image:
        return image.convert("RGB")


PICTURES = {
    "house": opened("house.png"),
    "cup": opened("cup.png"),
    "flat": Image.new("RGB", (300, 280), (200, 100, 50)),
    "smallest": clouds((256, 256)),
    "odd": clouds((515, 389)),
    "large": clouds((1024, 768), 2),
}


def with_mark(image: Image.Image) -> Image.Image:
    made, why = add_watermark(image)
    assert why is None
    return made


def stored(image: Image.Image, kind: str, **options: Any) -> Image.Image:
    """The picture after it was a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return Image.open(buffer).convert("RGB")


def decoded(image: Image.Image) -> list[int]:
    """The bits as the package `invisible-watermark` reads them, block by block.

    As `imwatermark/maxDct.py` of its version 0.2.0 does, with pywt's Haar transform written out.
    """
    yuv = cv2.cvtColor(np.asarray(image)[:, :, ::-1].copy(), cv2.COLOR_BGR2YUV)
    rows, columns = (side // 4 * 4 for side in yuv.shape[:2])
    u = yuv[:rows, :columns, 1].astype(float)
    low = (u[::2, ::2] + u[::2, 1::2] + u[1::2, ::2] + u[1::2, 1::2]) / 2
    scores: list[list[int]] = [[] for _ in BITS]
    number = 0
    for i in range(low.shape[0] // 4):
        for j in range(low.shape[1] // 4):
            block = low[i * 4 : i * 4 + 4, j * 4 : j * 4 + 4].flatten()
            value = abs(block[np.argmax(abs(block[1:])) + 1])
            scores[number % len(BITS)].append(int(value % 36 > 18))
            number += 1
    return [int(np.mean(score) * 255 > 127) for score in scores]


@pytest.mark.parametrize("name", PICTURES)
def test_it_is_found_and_read_by_others(name: str) -> None:
    image = PICTURES[name]
    made = with_mark(image)
    assert (made.mode, made.size) == ("RGB", image.size)
    assert has_watermark(made)
    assert not has_watermark(image)
    assert decoded(made) == BITS.tolist()


@pytest.mark.parametrize("name", PICTURES)
def test_nobody_sees_it(name: str) -> None:
    image = PICTURES[name]
    difference = np.asarray(with_mark(image), float) - np.asarray(image, float)
    assert 10 * np.log10(255**2 / np.mean(difference**2)) > 38


@pytest.mark.parametrize("name", [n for n in PICTURES if n != "house"])
def test_it_outlives_compression(name: str) -> None:
    made = with_mark(PICTURES[name])
    assert has_watermark(stored(made, "PNG"))
    for quality in (90, 95):
        assert has_watermark(stored(made, "JPEG", quality=quality, subsampling=0)), quality


def test_it_outlives_compression_as_we_write_it_even_where_it_is_white() -> None:
    made = with_mark(PICTURES["house"])
    assert has_watermark(stored(made, "PNG"))
    assert has_watermark(stored(made, "JPEG", quality=95, subsampling=0))


def test_a_photograph_keeps_it_in_files_with_half_the_colors() -> None:
    made = with_mark(PICTURES["large"])
    assert has_watermark(stored(made, "JPEG", quality=90))
    assert has_watermark(stored(made, "WEBP", quality=90))


@pytest.mark.parametrize("seed", range(20))
def test_it_is_not_found_where_it_is_not(seed: int) -> None:
    assert not has_watermark(clouds((320, 256), seed))
    noise = np.random.default_rng(seed).integers(0, 256, (256, 320, 3))
    assert not has_watermark(Image.fromarray(noise.astype(np.uint8)))


def test_small_pictures_hold_none_and_it_is_said() -> None:
    small = clouds((255, 256))
    assert not can_hold_watermark(small.size)
    made, why = add_watermark(small)
    assert made is small
    assert why is not None
    assert "255x256 pixels are too few" in why
    assert not has_watermark(small)
    assert can_hold_watermark((512, 128))


def test_plain_pictures_hold_none_and_it_is_said() -> None:
    plain = Image.new("RGB", (512, 512), "white")
    made, why = add_watermark(plain)
    assert made is plain
    assert why is not None
    assert "too plain" in why
