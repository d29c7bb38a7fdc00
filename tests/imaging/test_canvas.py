"""What is painted on, and the way back into the picture."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from overpaint.errors import PictureError
from overpaint.imaging import canvas, codec, sizing
from overpaint.imaging.canvas import lay_out
from overpaint.request import Request
from overpaint.request_parts import Control

NATIVE = 128


def noisy(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def laid_out(picture: Image.Image, **fields: Any) -> canvas.Canvas:
    return lay_out(Request(image=codec.read_picture(picture), **fields), NATIVE)


def other(size: tuple[int, int]) -> Image.Image:
    return Image.new("RGB", size, "#c08040")


def test_without_a_mask_the_canvas_is_the_picture() -> None:
    found = laid_out(noisy(256, 128))
    assert found.size == (184, 88)
    assert found.region is None
    assert found.source_picture is found.start
    painted = other(found.size)
    assert found.compose(painted) is painted


@pytest.mark.parametrize("size", [(128, 128), (131, 97), (300, 170), (64, 250)])
@pytest.mark.parametrize("crop", ["auto", "off", 10])
def test_outside_the_mask_nothing_changes(size: tuple[int, int], crop: Any) -> None:
    picture = noisy(*size)
    found = laid_out(picture, mask_from="box:20,30,50,60", crop=crop)
    assert found.region is not None
    assert all(side % 8 == 0 and side <= 2 * NATIVE for side in found.size)
    result = found.compose(other(found.size))
    assert result.size == size
    changed = (np.asarray(result) != np.asarray(picture)).any(axis=2)
    inside = np.zeros_like(changed)
    inside[30:60, 20:50] = True
    assert not changed[~inside].any()
    assert changed[35:55, 25:45].mean() > 0.9


def test_a_resized_picture_is_kept_as_resized() -> None:
    picture = noisy(300, 200)
    found = laid_out(picture, mask_from="box:0,0,100,200", width=160, height=128, crop="off")
    assert found.size == (160, 128)
    resized = sizing.fit_image(picture, (160, 128), "cover")
    result = np.asarray(found.compose(other(found.size)))
    assert (result[:, 60:] == np.asarray(resized)[:, 60:]).all()


def test_a_small_mask_is_painted_by_itself() -> None:
    found = laid_out(noisy(512, 512), mask_from="box:100,100,160,140")
    assert found.region is not None
    left, top, right, bottom = found.region.box
    assert left < 100 < 160 < right
    assert top < 100 < 140 < bottom
    assert (right - left) * (bottom - top) < 0.1 * 512 * 512
    assert found.size[0] * found.size[1] == pytest.approx(NATIVE**2, rel=0.1)


def test_a_large_mask_is_painted_with_all_around_it() -> None:
    found = laid_out(noisy(200, 200), mask_from="box:10,10,180,180")
    assert found.region is not None
    assert found.region.box == (0, 0, 200, 200)
    assert found.size == (200, 200)


def test_a_crop_takes_the_context_asked_for_and_stays_inside() -> None:
    found = laid_out(noisy(400, 400), mask_from="box:0,100,80,180", crop=30)
    assert found.region is not None
    assert found.region.box == (0, 70, 140, 210)


def test_a_black_mask_leaves_nothing_to_paint() -> None:
    picture = noisy(100, 60)
    found = laid_out(picture, mask=codec.read_picture(Image.new("L", (100, 60))))
    assert found.blank
    assert found.source_picture is not None
    assert (np.asarray(found.source_picture) == np.asarray(picture)).all()


def test_a_mask_of_another_size() -> None:
    with pytest.raises(PictureError, match="the mask is 60x100 and the picture 100x60"):
        laid_out(noisy(100, 60), mask=codec.read_picture(Image.new("L", (60, 100))))


def test_extended_at_any_sides() -> None:
    picture = noisy(100, 60)
    found = laid_out(picture, extend=(24, 0, 4, 36), crop="off", match_colors=False)
    result = np.asarray(found.compose(other(found.size)))
    assert result.shape == (96, 128, 3)
    assert (result[:60, 24:124] == np.asarray(picture)).all()
    assert (result[70:, 5] == (0xC0, 0x80, 0x40)).all()


@pytest.mark.parametrize("fill", ["surroundings", "flat"])
def test_fills_take_nothing_from_what_is_masked(fill: str) -> None:
    picture = Image.new("RGB", (128, 128), "#306090")
    picture.paste("#ff0000", (40, 40, 80, 80))
    found = laid_out(picture, mask_from="box:40,40,80,80", fill=fill, crop="off")
    assert found.start is not None
    assert np.abs(np.asarray(found.start, int) - (0x30, 0x60, 0x90)).max() <= 1


def test_surroundings_are_smooth_and_keep_what_is_known() -> None:
    columns = np.linspace(0, 255, 64, dtype=np.float32)
    pixels = np.repeat(np.repeat(columns[None, :, None], 64, 0), 3, 2)
    known = np.ones((64, 64), np.float32)
    known[20:44, 20:44] = 0
    filled = canvas.blur_inward(np.where(known[..., None] > 0, pixels, 0), known)
    assert (filled[known > 0] == pixels[known > 0]).all()
    assert np.abs(filled - pixels).max() < 40


def test_a_shift_of_color_is_taken_back() -> None:
    wanted = np.asarray(noisy(128, 96), np.float32) / 2
    same = np.ones((96, 128), bool)
    same[30:60, 40:90] = False
    painted = wanted + np.array([12, -7, 3], np.float32)
    assert np.abs(canvas.match_colors(painted, wanted, same) - wanted).max() < 0.01
    untouched = canvas.match_colors(painted, wanted, np.zeros((96, 128), bool))
    assert (untouched == painted).all()


# What belongs to the picture


def test_a_hint_follows_the_picture_into_a_crop() -> None:
    picture = noisy(512, 400)
    found = laid_out(picture, mask_from="box:100,100,160,140")
    assert found.region is not None
    placed = found.place(picture)
    assert placed.size == found.size
    assert placed.tobytes() == found.region.original.tobytes()


@pytest.mark.parametrize("fit", ["cover", "contain", "stretch"])
def test_a_hint_is_fitted_as_the_picture_is(fit: str) -> None:
    picture = noisy(300, 170)
    found = laid_out(picture, width=128, height=128, fit=fit)
    assert found.start is not None
    assert found.place(picture).tobytes() == found.start.tobytes()


def test_a_hint_of_an_extended_picture_has_nothing_where_the_new_room_is() -> None:
    found = laid_out(noisy(96, 128), extend=(0, 0, 32, 0), crop="off")
    assert found.size == (128, 128)
    placed = np.asarray(found.place(noisy(96, 128)))
    assert (placed[:, 96:] == 0).all()
    assert np.array_equal(placed[:, :96], np.asarray(noisy(96, 128)))
    whole = noisy(256, 256)  # or it shows the new room too
    assert np.asarray(found.place(whole))[:, 96:].std() > 10


def test_a_hint_grows_with_the_second_stage() -> None:
    assert laid_out(noisy(128, 128)).scale(1.5).place(noisy(64, 64)).size == (192, 192)


def test_a_hint_of_another_aspect_is_refused() -> None:
    with pytest.raises(ValueError, match="100x300 has another aspect than the image, 200x200"):
        laid_out(noisy(200, 200)).place(noisy(100, 300))


def test_without_a_picture_the_hint_says_the_aspect() -> None:
    asked = Request(controls=(Control(kind="canny", hint=codec.read_picture(noisy(200, 100))),))
    assert lay_out(asked, NATIVE).size == (184, 88)
