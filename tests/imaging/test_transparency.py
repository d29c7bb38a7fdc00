"""Transparency of the input: it stays where nothing is painted, and painted pixels are opaque."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from overpaint.imaging import canvas, codec
from overpaint.imaging.canvas import lay_out
from overpaint.imaging.color_modes import flatten
from overpaint.provenance import metadata
from overpaint.request import Request
from tests.provenance.test_metadata import recorded

NATIVE = 128


def make_layer(width: int = 96, height: int = 80) -> NDArray[np.uint8]:
    """Random colors with every level of alpha; clear pixels have colors too."""
    return np.random.default_rng(0).integers(0, 256, (height, width, 4), dtype=np.uint8)


def make_canvas(pixels: NDArray[np.uint8] | Image.Image, **fields: Any) -> canvas.Canvas:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    return lay_out(Request(image=codec.read_picture(image), **fields), NATIVE)


def paint(found: canvas.Canvas) -> Image.Image:
    return found.compose(Image.new("RGB", found.size, "#c08040"))


@pytest.mark.parametrize("crop", ["auto", "off", 10])
def test_compose_keeps_color_and_alpha_outside_the_mask(crop: Any) -> None:
    layer = make_layer()
    result = paint(make_canvas(layer, mask_from="box:20,30,50,60", crop=crop, match_colors=False))
    assert result.mode == "RGBA"
    pixels = np.asarray(result)
    outside = np.ones(pixels.shape[:2], bool)
    outside[30:60, 20:50] = False
    assert np.array_equal(pixels[outside], layer[outside])
    assert pixels[40:50, 30:40].tolist() == [[[0xC0, 0x80, 0x40, 255]] * 10] * 10


def test_compose_blends_alpha_at_the_edge_of_the_mask() -> None:
    clear = np.zeros((80, 96, 4), np.uint8)
    found = make_canvas(clear, mask_from="box:20,20,70,60", crop="off", match_colors=False)
    assert found.region
    pixels = np.asarray(paint(found))
    assert np.array_equal(pixels[..., 3], np.rint(found.region.opacity * 255))
    painted = pixels[..., 3] > 0
    assert np.abs(pixels[painted][:, :3].astype(int) - (0xC0, 0x80, 0x40)).max() <= 1


def test_compose_of_opaque_picture_with_alpha_channel_is_rgb() -> None:
    layer = make_layer()
    layer[..., 3] = 255
    assert paint(make_canvas(layer, mask_from="box:20,30,50,60")).mode == "RGB"


@pytest.mark.parametrize(
    "image",
    [
        Image.new("LA", (96, 80), (77, 0)),
        Image.new("PA", (96, 80)),
        Image.fromarray(make_layer()).convert("RGBa"),
    ],
    ids=["LA", "PA", "RGBa"],
)
def test_compose_keeps_alpha_of_each_mode(image: Image.Image) -> None:
    if image.mode == "PA":
        image.putpalette([9, 8, 7, 0] * 256, "RGBA")
    result = paint(make_canvas(image, mask_from="box:20,30,50,60", crop="off"))
    expected = np.asarray(codec.decode_with_alpha(codec.read_picture(image)))
    assert expected.shape == (80, 96, 4)
    assert np.array_equal(np.asarray(result)[:30], expected[:30])


@pytest.mark.parametrize("mode", ["P", "L", "1", "RGB", "I;16"])
def test_compose_keeps_a_transparent_color(mode: str) -> None:
    buffer = BytesIO()
    levels = Image.fromarray((np.arange(96 * 80).reshape(80, 96) % 251 > 90).astype(np.uint8))
    image = levels.point(lambda level: 255 * level).convert(mode if mode != "I;16" else "L")
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image, np.uint16) * 257)
    image.save(buffer, "PNG", transparency=(0, 0, 0) if mode == "RGB" else 0)
    picture = codec.Picture(data=buffer.getvalue())
    found = lay_out(Request(image=picture, mask_from="box:20,30,50,60", crop="off"), NATIVE)
    result = np.asarray(paint(found))
    expected = np.asarray(codec.decode_with_alpha(picture))
    assert expected.shape == (80, 96, 4)
    assert set(np.unique(expected[..., 3])) == {0, 255}
    assert np.array_equal(result[:30], expected[:30])


def test_unpainted_picture_keeps_its_alpha() -> None:
    layer = make_layer()
    black = codec.read_picture(Image.new("L", (96, 80)))
    found = make_canvas(layer, mask=black)
    assert found.blank
    assert found.unpainted
    assert np.array_equal(np.asarray(found.unpainted), layer)
    kept = make_canvas(layer, size="keep", strength=0.0).unpainted
    assert kept
    assert np.array_equal(np.asarray(kept), layer)


@pytest.mark.parametrize("fit", ["cover", "contain", "stretch"])
def test_resized_picture_keeps_its_alpha(fit: str) -> None:
    layer = make_layer(150, 80)
    layer[:, :75, 3] = 0
    result = paint(make_canvas(layer, mask_from="box:90,0,110,80", width=128, height=128, fit=fit))
    assert result.mode == "RGBA"
    assert result.size == (128, 128)
    alpha = np.asarray(result)[64, :, 3]
    assert alpha[20] == 0


def test_extended_picture_keeps_its_alpha_and_is_opaque_in_the_new_area() -> None:
    layer = make_layer()
    found = make_canvas(layer, extend=(32, 0, 0, 0), crop="off", match_colors=False)
    pixels = np.asarray(paint(found))
    assert np.array_equal(pixels[:, 32:], layer)
    assert (pixels[:, :32, 3] == 255).all()


def test_result_without_mask_is_opaque() -> None:
    assert paint(make_canvas(make_layer())).mode == "RGB"


@pytest.mark.parametrize("kind", ["png", "webp", "jpg"])
def test_written_files_keep_alpha_or_show_it_over_white(kind: str, tmp_path: Path) -> None:
    image = Image.fromarray(make_layer())
    record = recorded(Request())
    path = tmp_path / f"out.{kind}"
    options = {"lossless": True} if kind == "webp" else {}
    path.write_bytes(metadata.encode_picture(image, kind, record, **options))
    with Image.open(path) as read:
        if kind == "jpg":
            shown = np.asarray(read, int)
            assert np.abs(shown - np.asarray(flatten(image), int)).mean() < 12
        else:
            assert np.array_equal(np.asarray(read), np.asarray(image))
    metadata.write_picture(image, path, record)
    with Image.open(path) as read:
        assert read.mode == ("RGB" if kind == "jpg" else "RGBA")
        if kind == "webp":  # lossy in color alone
            assert np.array_equal(np.asarray(read)[..., 3], np.asarray(image)[..., 3])
