"""Exact sizes, and large extensions in windows at the native size."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from overpaint.errors import RequestError
from overpaint.imaging import canvas, codec, extension, sizing
from overpaint.imaging.canvas import lay_out
from overpaint.request import Request

NATIVE = 128
FILES = Path(__file__).parent / "files"


def make_noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def make_canvas(picture: Image.Image, **fields: Any) -> canvas.Canvas:
    return lay_out(Request(image=codec.read_picture(picture), **fields), NATIVE)


@pytest.mark.parametrize("size", [(130, 101), (128, 128), (137, 255), (256, 33), (129, 250)])
def test_size_keep_gives_the_exact_size(size: tuple[int, int]) -> None:
    picture = make_noise(*size)
    found = make_canvas(picture, size="keep")
    assert found.size == tuple(-(-side // 8) * 8 for side in size)
    assert found.start
    assert found.start.size == found.size
    result = found.compose(found.start)  # painted as it is, no pixel has moved
    assert result.tobytes() == picture.tobytes()
    assert found.unpainted
    assert found.unpainted.size == size
    assert found.place(picture).tobytes() == found.start.tobytes()
    for factor in (1.5, 2.0):
        larger = found.scale(factor)
        painted = found.start.resize(larger.size, Image.Resampling.LANCZOS)
        shown = larger.compose(painted)
        assert shown.size == tuple(round(factor * side) for side in size)
        expected = picture.resize(shown.size, Image.Resampling.LANCZOS)
        inner = (8, 8, shown.width - 16, shown.height - 16)
        pair = (np.asarray(image.crop(inner), int) for image in (shown, expected))
        assert np.abs(np.subtract(*pair)).mean() < 12


def test_size_keep_of_a_picture_with_odd_sides_keeps_them() -> None:
    found = lay_out(Request(image=codec.read_picture(FILES / "odd.png"), size="keep"), NATIVE)
    assert found.start
    assert found.compose(found.start).size == (130, 101)


@pytest.mark.parametrize("size", [(257, 128), (128, 20)])
def test_size_keep_beyond_the_model_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(RequestError, match="this model draws 32 to 256"):
        make_canvas(make_noise(*size), size="keep")


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_padding_repeats_the_border(mode: str) -> None:
    image = make_noise(13, 10).convert(mode)
    padded = sizing.pad_to_multiple_of_8(image)
    assert padded.size == (16, 16)
    assert padded.getpixel((15, 15)) == image.getpixel((12, 9))


# Extensions


@settings(max_examples=80, deadline=None)
@given(
    st.integers(8, 400),
    st.integers(8, 400),
    st.tuples(*[st.integers(0, 900)] * 4),
    st.integers(32, 400),
)
def test_extension_windows_cover_the_new_area_once(
    width: int, height: int, sides: tuple[int, int, int, int], side: int
) -> None:
    left, top, right, bottom = sides
    whole = left + width + right, top + height + bottom
    known = np.zeros((whole[1], whole[0]), bool)
    known[top : top + height, left : left + width] = True
    inner = (left, top, left + width, top + height)
    windows = extension.plan_windows(inner, whole, side)
    assert len(windows) == extension._count_planned(inner, whole, side)  # pyright: ignore[reportPrivateUsage]
    for window in windows:
        x, y, x2, y2 = window.target
        assert x2 > x
        assert y2 > y
        assert not known[y:y2, x:x2].any()
        known[y:y2, x:x2] = True
        x, y, x2, y2 = window.box
        assert known[y:y2, x:x2].all()
        assert max(x2 - x, y2 - y) <= extension.MAX_SPAN * side + 1
    assert known.all()


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([(64, 64), (200, 90), (96, 300)]),
    st.tuples(*[st.sampled_from([0, 0, 40, 128, 500])] * 4).filter(any),
    st.sampled_from([{}, {"size": "native"}, {"width": 128, "height": 96}]),
)
def test_extension_windows_are_counted_before_the_picture_is_decoded(
    size: tuple[int, int], sides: tuple[int, int, int, int], fields: dict[str, Any]
) -> None:
    request = Request(image=codec.read_picture(make_noise(*size)), extend=sides, **fields)
    try:
        found = lay_out(request, NATIVE)
    except RequestError as error:
        with pytest.raises(RequestError, match=re.escape(str(error))):
            extension.count_windows(request, NATIVE)
        return
    later = found.extension
    in_windows = any("extended in" in notice for notice in found.notices)
    planned = (len(later.windows) if later else 0) + in_windows
    assert extension.count_windows(request, NATIVE) == planned


def test_extension_in_too_many_windows_is_refused_without_planning_them() -> None:
    picture = codec.read_picture(make_noise(64, 64))
    request = Request(image=picture, extend=(4096, 4096, 4096, 4096))
    with pytest.raises(RequestError, match=r"extend: .* takes [\d,]+ steps .* may take 64"):
        extension.count_windows(request, NATIVE)
    assert extension.count_windows(request.model_copy(update={"crop": "off"}), NATIVE) == 0


def test_large_extension_is_painted_in_windows_with_a_notice() -> None:
    picture = make_noise(512, 512)
    found = make_canvas(picture, extend=(2048, 0, 0, 0), match_colors=False)
    assert found.notices == ("the picture is extended in 8 steps of up to 512x512 pixels.",)
    step, colors = 0, ("#101010", "#f0f0f0")
    while True:
        assert found.size == (128, 128)  # the native size
        assert found.region
        left, top, right, bottom = found.region.box
        assert (right - left, bottom - top) == (512, 512)
        painted = Image.new("RGB", found.size, colors[step % 2])
        step += 1
        if found.extension is None:
            break
        found = found.lay_out_next(painted)
    assert step == 8
    result = found.compose(painted)
    assert result.size == (2560, 512)
    pixels = np.asarray(result)
    assert np.array_equal(pixels[:, 2048:], np.asarray(picture))
    for strip in range(8):  # the strips lie from the picture outward
        shown = pixels[256, 2048 - 256 * strip - 128]
        assert shown.tolist() == [(0x10, 0xF0)[strip % 2]] * 3


@pytest.mark.parametrize(
    "sides",
    [(100, 0, 0, 0), (128, 64, 0, 0), (0, 200, 0, 0), (90, 90, 90, 90)],
)
def test_small_extension_is_painted_in_one_pass(sides: tuple[int, int, int, int]) -> None:
    found = make_canvas(make_noise(512, 512), extend=sides)
    assert found.extension is None
    assert not found.notices


@pytest.mark.parametrize(
    "sides",
    [(2048, 0, 0, 0), (0, 0, 0, 2048), (1000, 0, 1000, 0), (600, 600, 600, 600)],
)
def test_extension_windows_are_as_fine_as_the_picture_alone(
    sides: tuple[int, int, int, int],
) -> None:
    found = make_canvas(make_noise(512, 512), extend=sides)
    while found.extension:
        assert found.region
        left, top, right, bottom = found.region.box
        assert found.size[0] / (right - left) >= 0.2
        assert found.size[1] / (bottom - top) >= 0.2
        found = found.lay_out_next(Image.new("RGB", found.size, "red"))


def test_extension_with_mask_paints_the_mask_first() -> None:
    picture = Image.new("RGB", (256, 256), "#306090")
    found = make_canvas(
        picture, mask_from="box:100,100,140,140", extend=(1024, 0, 0, 0), match_colors=False
    )
    assert found.region
    assert found.region.box[0] > 1024  # the mask alone
    while found.extension:
        found = found.lay_out_next(Image.new("RGB", found.size, "#c08040"))
    pixels = np.asarray(found.compose(Image.new("RGB", found.size, "#c08040")))
    assert pixels.shape == (256, 1280, 3)
    assert pixels[120, 1024 + 120].tolist() == [0xC0, 0x80, 0x40]
    assert pixels[20, 1024 + 20].tolist() == [0x30, 0x60, 0x90]
    assert (pixels[:, :1000] == (0xC0, 0x80, 0x40)).all(axis=2).mean() > 0.95


def test_extension_in_windows_keeps_the_alpha() -> None:
    picture = make_noise(128, 128).convert("RGBA")
    picture.putalpha(Image.linear_gradient("L").resize((128, 128)))
    found = make_canvas(picture, extend=(0, 0, 0, 700), match_colors=False)
    while found.extension:
        found = found.lay_out_next(Image.new("RGB", found.size, "#c08040"))
    pixels = np.asarray(found.compose(Image.new("RGB", found.size, "#c08040")))
    assert np.array_equal(pixels[:128], np.asarray(picture))
    assert (pixels[128:, :, 3] == 255).all()


def test_extension_without_crop_is_one_pass_with_a_notice() -> None:
    found = make_canvas(make_noise(512, 512), extend=(2048, 0, 0, 0), crop="off")
    assert found.extension is None
    assert found.region
    says = found.region.describe_scale(found.size)
    assert says == "2560x512 pixels are painted at 256x64 and enlarged 10.0 times."


def test_a_window_fades_into_the_windows_before_and_not_into_the_picture() -> None:
    picture = make_noise(128, 128)
    found = make_canvas(picture, extend=(512, 0, 0, 0), match_colors=False)
    assert found.region
    assert set(np.unique(found.region.mask)) == {0.0, 1.0}  # only the picture lies around it
    found = found.lay_out_next(Image.new("RGB", found.size, "#404040"))
    found = found.lay_out_next(Image.new("RGB", found.size, "#404040"))
    assert found.region
    row = found.region.mask[64]
    assert (row[:64] == 1).all()
    assert (np.diff(row) <= 0).all()
    assert np.abs(np.diff(row)).max() < 0.1
    assert row[64 + 32 :].max() == 0
    while found.extension:
        found = found.lay_out_next(Image.new("RGB", found.size, "#404040"))
    result = np.asarray(found.compose(Image.new("RGB", found.size, "#404040")))
    assert np.array_equal(result[:, 512:], np.asarray(picture))


def test_extension_of_many_windows_is_refused_by_name() -> None:
    picture = codec.read_picture(Image.new("RGB", (64, 64)))
    request = Request(image=picture, extend=(512, 512, 512, 512))
    with pytest.raises(RequestError, match=r"^extend: .* and may take 64") as caught:
        lay_out(request, NATIVE)
    assert caught.value.field == "extend"
    for fields in ({"crop": "off"}, {"extend": (512, 0, 0, 0)}):
        assert lay_out(request.model_copy(update=fields), NATIVE).region
