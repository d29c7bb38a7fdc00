"""The shift of colors at a mask: right at the edge, smooth and fading inside."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from overpaint.imaging import codec, color_match
from overpaint.imaging.canvas import lay_out
from overpaint.request import Request


def measure_shift(same: NDArray[np.float32], shift: NDArray[np.float32]) -> NDArray[np.float32]:
    """The shift that `match_colors` adds where painted pixels differ by -shift."""
    painted = np.full((*same.shape, 3), 128, np.float32)
    return color_match.match_colors(painted, painted + shift, same) - painted


sides = st.integers(24, 300)


@settings(max_examples=60, deadline=None)
@given(sides, sides, st.floats(0.02, 1), st.floats(0, 1), st.booleans(), st.integers(0, 99))
def test_match_colors_at_any_mask_depth_makes_no_step(
    height: int, width: int, depth: float, start: float, noisy: bool, seed: int
) -> None:
    same = np.ones((height, width), np.float32)
    rows = max(1, round(depth * (height - 1)))
    top = round(start * (height - rows))
    same[top : top + rows, : width - round(start * width / 4)] = 0
    shift = np.full((height, width, 3), 40, np.float32)
    if noisy:
        shift = np.random.default_rng(seed).uniform(-40, 40, shift.shape).astype(np.float32)
    added = measure_shift(same, shift)
    length = max(1.0, color_match.LENGTH_SHARE * min(same.shape))
    for axis in (0, 1):
        steps = np.abs(np.diff(added, axis=axis)).max()
        assert steps <= 2 * 40 / length * 1.01
    assert np.abs(added).max() <= 40.001


@pytest.mark.parametrize("depth", [40, 100, 190, 300, 430, 500])
def test_match_colors_in_a_deep_mask_fades_evenly(depth: int) -> None:
    same = np.ones((512, 512), np.float32)
    same[:depth] = 0
    added = measure_shift(same, np.full((512, 512, 3), 40, np.float32))[:, 256, 0]
    assert added[depth] > 39  # at the edge it is whole
    assert (np.diff(added[:depth]) >= -1e-3).all()  # and falls from there
    assert np.diff(added).max() < 0.5  # by less than a level between two pixels
    if depth > 400:
        assert added[0] < 1  # until nothing is left


def test_match_colors_ignores_content_that_leaks_over_the_edge() -> None:
    """A VAE mixes the pixels at both sides of the edge of a mask."""
    picture = Image.new("RGB", (128, 128), (100, 100, 100))
    mask = np.zeros((128, 128), np.uint8)
    mask[:64] = 255
    request = Request(
        image=codec.read_picture(picture),
        mask=codec.read_picture(Image.fromarray(mask)),
        crop="off",
    )
    painted = np.full((128, 128, 3), 96, np.uint8)  # the VAE's shift: 4 levels
    painted[:64] = (0, 0, 250)
    painted[64:68] = (30, 30, 200)  # the leak
    result = np.asarray(lay_out(request, 128).compose(Image.fromarray(painted)))
    assert result[40, 64].tolist() == pytest.approx([4, 4, 254], abs=2)
