"""Decoders read the watermark, and viewers do not see it."""

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
    """Return a picture with smooth colors and some grain, like a photograph."""
    drawn = np.random.default_rng(seed)
    coarse = drawn.integers(30, 226, (12, 12, 3)).astype(np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))
    return Image.fromarray(np.clip(smooth + drawn.normal(0, 3, smooth.shape), 0, 255).astype("u1"))


def open_example(name: str) -> Image.Image:
    with Image.open(EXAMPLES / name) as image:
        return image.convert("RGB")


PICTURES = {
    "house": open_example("house.png"),
    "cup": open_example("cup.png"),
    "flat": Image.new("RGB", (300, 280), (200, 100, 50)),
    "smallest": clouds((256, 256)),
    "odd": clouds((515, 389)),
    "large": clouds((1024, 768), 2),
}


def mark(image: Image.Image) -> Image.Image:
    marked, reason = add_watermark(image)
    assert reason is None
    return marked


def round_trip(image: Image.Image, kind: str, **options: Any) -> Image.Image:
    """Return the picture after a round trip through a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return Image.open(buffer).convert("RGB")


def decode_as_invisible_watermark(image: Image.Image) -> list[int]:
    """Return the bits that the package `invisible-watermark` reads, block by block.

    The code follows `imwatermark/maxDct.py` of version 0.2.0; pywt's Haar transform is written out.
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
def test_watermark_is_read_by_our_decoder_and_by_invisible_watermark(name: str) -> None:
    image = PICTURES[name]
    marked = mark(image)
    assert (marked.mode, marked.size) == ("RGB", image.size)
    assert has_watermark(marked)
    assert not has_watermark(image)
    assert decode_as_invisible_watermark(marked) == BITS.tolist()


@pytest.mark.parametrize("name", PICTURES)
def test_watermarked_picture_has_a_psnr_above_38_db(name: str) -> None:
    image = PICTURES[name]
    difference = np.asarray(mark(image), float) - np.asarray(image, float)
    assert 10 * np.log10(255**2 / np.mean(difference**2)) > 38


@pytest.mark.parametrize("name", [n for n in PICTURES if n != "house"])
def test_watermark_survives_png_and_jpeg_at_quality_90(name: str) -> None:
    marked = mark(PICTURES[name])
    assert has_watermark(round_trip(marked, "PNG"))
    for quality in (90, 95):
        assert has_watermark(round_trip(marked, "JPEG", quality=quality, subsampling=0)), quality


def test_watermark_of_mostly_white_picture_survives_our_output_formats() -> None:
    marked = mark(PICTURES["house"])
    assert has_watermark(round_trip(marked, "PNG"))
    assert has_watermark(round_trip(marked, "JPEG", quality=95, subsampling=0))


def test_watermark_of_photograph_survives_chroma_subsampling() -> None:
    marked = mark(PICTURES["large"])
    assert has_watermark(round_trip(marked, "JPEG", quality=90))
    assert has_watermark(round_trip(marked, "WEBP", quality=90))


@pytest.mark.parametrize("seed", range(20))
def test_watermark_is_not_found_in_unmarked_pictures(seed: int) -> None:
    assert not has_watermark(clouds((320, 256), seed))
    noise = np.random.default_rng(seed).integers(0, 256, (256, 320, 3))
    assert not has_watermark(Image.fromarray(noise.astype(np.uint8)))


def test_add_watermark_to_small_picture_returns_it_with_the_reason() -> None:
    small = clouds((255, 256))
    assert not can_hold_watermark(small.size)
    marked, reason = add_watermark(small)
    assert marked is small
    assert reason is not None
    assert "255x256 pixels are too few" in reason
    assert not has_watermark(small)
    assert can_hold_watermark((512, 128))


def test_add_watermark_to_plain_picture_returns_it_with_the_reason() -> None:
    plain = Image.new("RGB", (512, 512), "white")
    marked, reason = add_watermark(plain)
    assert marked is plain
    assert reason is not None
    assert "too plain" in reason
