"""The canvas that the model paints, and composing it into the picture."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from overpaint.errors import PictureError
from overpaint.imaging import codec, sizing
from overpaint.imaging.canvas import Canvas, blur_inward, lay_out, match_colors
from overpaint.request import Request
from overpaint.request.parts import Control

NATIVE = 128


def noisy(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def make_canvas(picture: Image.Image, **fields: Any) -> Canvas:
    return lay_out(Request(image=codec.read_picture(picture), **fields), NATIVE)


def paint_flat(size: tuple[int, int]) -> Image.Image:
    return Image.new("RGB", size, "#c08040")


def test_canvas_without_mask_is_the_fitted_picture() -> None:
    canvas = make_canvas(noisy(256, 128))
    assert canvas.size == (184, 88)
    assert canvas.region is None
    assert canvas.source_picture is canvas.start
    painted = paint_flat(canvas.size)
    assert canvas.compose(painted) is painted


@pytest.mark.parametrize("size", [(128, 128), (131, 97), (300, 170), (64, 250)])
@pytest.mark.parametrize("crop", ["auto", "off", 10])
def test_compose_changes_no_pixel_outside_the_mask(size: tuple[int, int], crop: Any) -> None:
    picture = noisy(*size)
    canvas = make_canvas(picture, mask_from="box:20,30,50,60", crop=crop)
    assert canvas.region is not None
    assert all(side % 8 == 0 and side <= 2 * NATIVE for side in canvas.size)
    result = canvas.compose(paint_flat(canvas.size))
    assert result.size == size
    changed = (np.asarray(result) != np.asarray(picture)).any(axis=2)
    inside = np.zeros_like(changed)
    inside[30:60, 20:50] = True
    assert not changed[~inside].any()
    assert changed[35:55, 25:45].mean() > 0.9


def test_compose_with_another_size_keeps_the_resized_picture() -> None:
    picture = noisy(300, 200)
    canvas = make_canvas(picture, mask_from="box:0,0,100,200", width=160, height=128, crop="off")
    assert canvas.size == (160, 128)
    resized = sizing.fit_image(picture, (160, 128), "cover")
    result = np.asarray(canvas.compose(paint_flat(canvas.size)))
    assert (result[:, 60:] == np.asarray(resized)[:, 60:]).all()


def test_canvas_of_small_mask_is_a_crop_at_native_size() -> None:
    canvas = make_canvas(noisy(512, 512), mask_from="box:100,100,160,140")
    assert canvas.region is not None
    left, top, right, bottom = canvas.region.box
    assert left < 100 < 160 < right
    assert top < 100 < 140 < bottom
    assert (right - left) * (bottom - top) < 0.1 * 512 * 512
    assert canvas.size[0] * canvas.size[1] == pytest.approx(NATIVE**2, rel=0.1)


def test_canvas_of_large_mask_is_the_whole_picture() -> None:
    canvas = make_canvas(noisy(200, 200), mask_from="box:10,10,180,180")
    assert canvas.region is not None
    assert canvas.region.box == (0, 0, 200, 200)
    assert canvas.size == (200, 200)


def test_crop_in_pixels_adds_context_inside_the_picture() -> None:
    canvas = make_canvas(noisy(400, 400), mask_from="box:0,100,80,180", crop=30)
    assert canvas.region is not None
    assert canvas.region.box == (0, 70, 140, 210)


def test_canvas_of_black_mask_is_blank() -> None:
    picture = noisy(100, 60)
    canvas = make_canvas(picture, mask=codec.read_picture(Image.new("L", (100, 60))))
    assert canvas.blank
    assert canvas.source_picture is not None
    assert (np.asarray(canvas.source_picture) == np.asarray(picture)).all()


def test_canvas_with_mask_of_another_size_is_refused() -> None:
    with pytest.raises(PictureError, match="The mask is 60x100 and the picture 100x60"):
        make_canvas(noisy(100, 60), mask=codec.read_picture(Image.new("L", (60, 100))))


def test_extend_adds_painted_pixels_at_each_side() -> None:
    picture = noisy(100, 60)
    canvas = make_canvas(picture, extend=(24, 0, 4, 36), crop="off", match_colors=False)
    result = np.asarray(canvas.compose(paint_flat(canvas.size)))
    assert result.shape == (96, 128, 3)
    assert (result[:60, 24:124] == np.asarray(picture)).all()
    assert (result[70:, 5] == (0xC0, 0x80, 0x40)).all()


@pytest.mark.parametrize("fill", ["surroundings", "flat"])
def test_fill_of_masked_area_uses_only_the_colors_around_it(fill: str) -> None:
    picture = Image.new("RGB", (128, 128), "#306090")
    picture.paste("#ff0000", (40, 40, 80, 80))
    canvas = make_canvas(picture, mask_from="box:40,40,80,80", fill=fill, crop="off")
    assert canvas.start is not None
    assert np.abs(np.asarray(canvas.start, int) - (0x30, 0x60, 0x90)).max() <= 1


def test_blur_inward_is_smooth_and_keeps_known_pixels() -> None:
    columns = np.linspace(0, 255, 64, dtype=np.float32)
    pixels = np.repeat(np.repeat(columns[None, :, None], 64, 0), 3, 2)
    known = np.ones((64, 64), np.float32)
    known[20:44, 20:44] = 0
    filled = blur_inward(np.where(known[..., None] > 0, pixels, 0), known)
    assert (filled[known > 0] == pixels[known > 0]).all()
    assert np.abs(filled - pixels).max() < 40


def test_match_colors_removes_a_constant_shift() -> None:
    wanted = np.asarray(noisy(128, 96), np.float32) / 2
    same = np.ones((96, 128), bool)
    same[30:60, 40:90] = False
    painted = wanted + np.array([12, -7, 3], np.float32)
    assert np.abs(match_colors(painted, wanted, same) - wanted).max() < 0.01
    untouched = match_colors(painted, wanted, np.zeros((96, 128), bool))
    assert (untouched == painted).all()


# Hints


def test_place_hint_crops_it_like_the_picture() -> None:
    picture = noisy(512, 400)
    canvas = make_canvas(picture, mask_from="box:100,100,160,140")
    assert canvas.region is not None
    placed = canvas.place(picture)
    assert placed.size == canvas.size
    assert placed.tobytes() == canvas.region.original.tobytes()


@pytest.mark.parametrize("fit", ["cover", "contain", "stretch"])
def test_place_hint_fits_it_like_the_picture(fit: str) -> None:
    picture = noisy(300, 170)
    canvas = make_canvas(picture, width=128, height=128, fit=fit)
    assert canvas.start is not None
    assert canvas.place(picture).tobytes() == canvas.start.tobytes()


def test_place_hint_of_extended_picture_is_black_in_the_new_area() -> None:
    canvas = make_canvas(noisy(96, 128), extend=(0, 0, 32, 0), crop="off")
    assert canvas.size == (128, 128)
    placed = np.asarray(canvas.place(noisy(96, 128)))
    assert (placed[:, 96:] == 0).all()
    assert np.array_equal(placed[:, :96], np.asarray(noisy(96, 128)))
    whole = noisy(256, 256)  # or it shows the new room too
    assert np.asarray(canvas.place(whole))[:, 96:].std() > 10


def test_place_hint_on_scaled_canvas_scales_it() -> None:
    assert make_canvas(noisy(128, 128)).scale(1.5).place(noisy(64, 64)).size == (192, 192)


def test_place_hint_of_another_aspect_raises() -> None:
    with pytest.raises(ValueError, match="100x300 has another aspect than the image, 200x200"):
        make_canvas(noisy(200, 200)).place(noisy(100, 300))


def test_canvas_without_picture_has_the_aspect_of_the_hint() -> None:
    request = Request(controls=(Control(kind="canny", hint=codec.read_picture(noisy(200, 100))),))
    assert lay_out(request, NATIVE).size == (184, 88)
