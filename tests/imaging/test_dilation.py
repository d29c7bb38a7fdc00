"""Growing a mask: equal to OpenCV's dilation with a disc, by both ways, and it can be given up."""

import threading

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from overpaint.imaging import dilation
from overpaint.imaging.dilation import dilate
from overpaint.imaging.masks import blur_mask, grow_mask
from overpaint.system.abandon import AbandonedError, abandonable

Levels = NDArray[np.uint8]


def dilate_by_opencv(levels: Levels, radius: int) -> Levels:
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    return np.asarray(cv2.dilate(levels, disc), np.uint8)


def make_levels(seed: int, height: int, width: int, values: int, share: float) -> Levels:
    random = np.random.default_rng(seed)
    levels = random.integers(0, 256, values, dtype=np.uint8)[
        random.integers(0, values, (height, width))
    ]
    return np.where(random.random((height, width)) < share, levels, np.uint8(0))


@given(
    seed=st.integers(0, 2**32),
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    values=st.sampled_from((1, 2, 4, 200)),
    share=st.sampled_from((0.001, 0.02, 0.5, 1.0)),
    radius=st.integers(1, 60),
)
def test_dilation_equals_that_of_opencv(
    seed: int, height: int, width: int, values: int, share: float, radius: int
) -> None:
    levels = make_levels(seed, height, width, values, share)
    np.testing.assert_array_equal(dilate(levels, radius), dilate_by_opencv(levels, radius))


@pytest.mark.parametrize("radius", [1, 5, 17, 40])
def test_dilation_by_distance_and_by_rows_agree_across_tiles(
    radius: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    levels = make_levels(3, 150, 170, 2, 0.004)
    expected = dilate_by_opencv(levels, radius)
    monkeypatch.setattr(dilation, "TILE_ROWS", 32)
    monkeypatch.setattr(dilation, "TILE_COLUMNS", 48)
    for most in (-1, 10_000):
        monkeypatch.setattr(dilation, "MAX_RADIUS_BY_ROWS", most)
        np.testing.assert_array_equal(dilate(levels, radius), expected)


@pytest.mark.parametrize("pixels", [-30, -3, 3, 30])
def test_mask_grows_and_shrinks_like_opencv(pixels: int) -> None:
    mask = make_levels(1, 120, 100, 200, 0.01).astype(np.float32) / np.float32(255)
    mask[40:110, 30:90] = 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * abs(pixels) + 1,) * 2)
    expected = (cv2.dilate if pixels > 0 else cv2.erode)(mask, disc)
    np.testing.assert_array_equal(grow_mask(mask, pixels), expected)


@pytest.mark.parametrize("pixels", [80, 200, 512])
def test_wide_blur_equals_a_gaussian_blur(pixels: int) -> None:
    mask = np.zeros((700, 900), np.float32)
    mask[300:420, 200:640] = 1
    expected = cv2.GaussianBlur(mask, (0, 0), pixels / 2)
    np.testing.assert_allclose(blur_mask(mask, pixels), expected, atol=2e-3)


@pytest.mark.parametrize("values", [1, 200])
def test_dilation_of_an_abandoned_request_ends(values: int) -> None:
    event = threading.Event()
    with abandonable(event):
        levels = make_levels(1, 50, 50, values, 0.1)
        dilate(levels, 20)
        event.set()
        with pytest.raises(AbandonedError):
            dilate(levels, 20)
