"""The size of a second stage in pixels, and the colors of the image for the whole result."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from overpaint import load
from overpaint.errors import RequestError
from overpaint.imaging.color_match import match_image_colors
from overpaint.painter import Painter
from overpaint.picture import Picture
from overpaint.request import Request

HOUSE = Path(__file__).parents[2] / "examples" / "house.png"


@pytest.fixture(scope="module")
def painter() -> Painter:
    return load("miniature", device="cpu")


def colored(color: str) -> Picture:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), color).save(file, "PNG")
    return Picture(data=file.getvalue())


@pytest.mark.parametrize("space", ["pixels", "latents"])
@pytest.mark.parametrize("size", [(128, 128), (192, 96), (96, 128)])
def test_second_stage_has_the_size_asked_for(
    painter: Painter, space: Any, size: tuple[int, int]
) -> None:
    result = painter.create(
        "a cup",
        num_inference_steps=2,
        width=64,
        height=64,
        seed=7,
        upscale_to=size,
        upscale_in=space,
    )
    assert result.images[0].size == size


def test_second_stage_of_the_same_aspect_equals_that_of_a_factor(painter: Painter) -> None:
    common: dict[str, Any] = {"num_inference_steps": 2, "width": 64, "height": 64, "seed": 7}
    one = painter.create("a cup", upscale_to=(128, 128), **common).images[0]
    two = painter.create("a cup", upscale=2, **common).images[0]
    assert one.tobytes() == two.tobytes()


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"upscale_to": (100, 64)}, "upscale_to"),
        ({"upscale_to": (64, 64), "upscale": 2}, "upscale_to"),
        ({"upscale_to": (64, 64), "image": colored("red")}, "upscale_to"),
        ({"upscale_to": (64, 64), "refine": "ensemble", "refiner": "r"}, "upscale_to"),
        ({"match_image_colors": True}, "match_image_colors"),
        (
            {"match_image_colors": True, "image": colored("red"), "mask": colored("white")},
            "match_image_colors",
        ),
    ],
)
def test_contradiction_is_refused(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(RequestError) as caught:
        Request(**fields)
    assert caught.value.field.startswith(field)


def lab(image: Image.Image) -> np.ndarray[Any, Any]:
    return cv2.cvtColor(np.asarray(image, np.float32) / np.float32(255), cv2.COLOR_RGB2LAB)


def test_colors_of_the_image_move_the_colors_and_keep_the_brightness() -> None:
    with Image.open(HOUSE) as file:
        house = file.convert("RGB").resize((96, 96))
    noise = np.random.default_rng(0).integers(60, 200, (96, 96, 3), np.uint8)
    painted = Image.fromarray(noise)
    matched = lab(match_image_colors(painted, house))
    before, wanted = lab(painted), lab(house)
    for channel in (1, 2):
        gap = abs(np.median(matched[..., channel]) - np.median(wanted[..., channel]))
        assert gap < abs(np.median(before[..., channel]) - np.median(wanted[..., channel])) + 1
        assert gap < 3
    assert np.abs(matched[..., 0] - before[..., 0]).mean() < 3
    assert match_image_colors(house, house).size == house.size
    same = np.asarray(match_image_colors(house, house), int) - np.asarray(house, int)
    assert np.abs(same).max() <= 1


def test_colors_of_equal_rank_correspond() -> None:
    """The reference sorts all pixels; the histogram's bins are far narrower than a color."""
    random = np.random.default_rng(1)
    painted = Image.fromarray(random.integers(0, 256, (64, 64, 3), np.uint8))
    wanted = Image.fromarray(random.integers(80, 160, (48, 80, 3), np.uint8))
    matched, before, target = lab(match_image_colors(painted, wanted)), lab(painted), lab(wanted)
    for channel in (1, 2):
        ranks = before[..., channel].ravel().argsort().argsort() + 0.5
        reference = np.quantile(target[..., channel], ranks / ranks.size)
        # Rounding to 8 bits, and colors outside of the range of screens, move single pixels more.
        assert np.median(np.abs(matched[..., channel].ravel() - reference)) < 0.5


def test_result_takes_colors_of_its_image(painter: Painter) -> None:
    options: dict[str, Any] = {"num_inference_steps": 2, "seed": 7, "strength": 0.9}
    free = painter.edit(colored("gray"), "a red cup", **options).images[0]
    kept = painter.edit(colored("gray"), "a red cup", match_image_colors=True, **options).images[0]
    spread = [float(np.abs(lab(image)[..., 1:]).mean()) for image in (free, kept)]
    assert spread[1] < 1
    assert spread[1] < spread[0]
