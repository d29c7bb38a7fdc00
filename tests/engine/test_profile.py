"""Profiles of step times."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overpaint.engine.profile import MOST, Profile
from overpaint.errors import OutputError
from overpaint.imaging.codec import read_picture
from overpaint.request import Request

MINIATURE = {1: 0.011, 2: 0.0164, 4: 0.026, 8: 0.0416, 16: 0.063, 32: 0.1056, 64: 0.21}
HOUSE = read_picture(Path(__file__).parents[2] / "examples" / "house.png")


def test_profile_cap_stops_where_gain_is_small() -> None:
    """Measured on the miniature; at SDXL's own size rows only wait for each other."""
    assert Profile("cpu", {(16, 16): MINIATURE}).cap(16, 16) == 16
    assert Profile("cpu", {(16, 16): MINIATURE | {32: 0.1}}).cap(16, 16) == 32
    flat = {rows: 0.06 * rows for rows in (1, 2, 4, 8)}
    assert Profile("accelerator", {(128, 128): flat}).cap(128, 128) == 2


def test_profile_without_measurements_assumes_caps() -> None:
    assert Profile("cpu").cap(64, 64) == 2
    assert Profile("cpu").cap(16, 16) == MOST
    assert Profile("accelerator").cap(128, 128) == 4
    assert Profile("accelerator").cap(256, 256) == 2


def test_profile_seconds_interpolates_between_measurements() -> None:
    profile = Profile("cpu", {(16, 16): {2: 1.0, 4: 1.5, 8: 2.5}, (8, 8): {2: 1.0}})
    times = [profile.seconds(16, 16, rows) for rows in (2, 3, 4, 6, 8, 10, 1)]
    assert times == [1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 0.75]
    assert profile.seconds(8, 8, 6) == 3.0
    assert profile.seconds(128, 128, 2) == 2.0


@pytest.mark.parametrize(
    ("request_", "seconds"),
    [
        (Request(prompt="a", num_inference_steps=10), 20),
        (Request(prompt="a", num_inference_steps=10, guidance_scale=1), 10),
        (Request(prompt="a", num_inference_steps=10, num_images=3), 60),
        (Request(prompt="a", num_inference_steps=10, width=512, height=512), 5),
        (Request(image=HOUSE, num_inference_steps=10, strength=0.5), 20),
        (Request(image=HOUSE, num_inference_steps=10, strength=0.5, steps="truncate"), 10),
        (Request(image=HOUSE, strength=0.0), 0),
        (Request(prompt="a", num_inference_steps=10, upscale=2, refine_steps=5), 60),
        (Request(image=HOUSE, num_inference_steps=10, extend=(2048, 0, 0, 0)), 8 * 20),
        (
            Request(
                image=HOUSE, num_inference_steps=10, extend=(2048, 0, 0, 0), mask_from="box:0,0,9,9"
            ),
            9 * 20,
        ),
    ],
)
def test_profile_alone_estimates_a_request(request_: Request, seconds: float) -> None:
    assert Profile().alone(request_) == pytest.approx(seconds)


@given(
    st.dictionaries(st.integers(1, 64), st.floats(1e-3, 10), min_size=1, max_size=6),
    st.integers(1, 128),
)
def test_profile_any_measurement_gives_valid_times(times: dict[int, float], rows: int) -> None:
    profile = Profile("cpu", {(16, 16): times})
    assert 2 <= profile.cap(16, 16) <= max(2, *times)
    assert profile.seconds(16, 16, rows) >= 0


def test_profile_write_then_read_is_equal(tmp_path: Path) -> None:
    profile = Profile("cpu", {(16, 16): MINIATURE}, "miniature", "float32")
    profile.write(tmp_path / "profile.json")
    assert Profile.read(tmp_path / "profile.json") == profile


def test_profile_write_to_bad_path_raises(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        Profile().write(tmp_path / "file" / "profile.json")


OF_NO_MODEL = '{"device": "cpu", "seconds": {}}'
OF_NO_SHAPE = '{"device": "cpu", "model": "m", "dtype": "float32", "seconds": {"16": {}}}'


@pytest.mark.parametrize("text", ["", "[]", "{}", OF_NO_MODEL, OF_NO_SHAPE])
def test_profile_read_of_other_file_raises(tmp_path: Path, text: str) -> None:
    (tmp_path / "profile.json").write_text(text)
    with pytest.raises(OutputError, match="overpaint bench"):
        Profile.read(tmp_path / "profile.json")
