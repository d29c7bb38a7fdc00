"""Masks: read, drawn, grown, blurred."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from overpaint.errors import PictureError, RequestError
from overpaint.imaging import codec, masks
from overpaint.request import Request

PICTURE = Image.new("RGB", (64, 48), "#204060")


def square(mode: str = "L", size: tuple[int, int] = (64, 48)) -> Image.Image:
    mask = Image.new("L", size)
    mask.paste(255, (16, 8, 32, 24))
    return mask.convert(mode)


def make_request(**fields: Any) -> Request:
    return Request(image=codec.read_picture(PICTURE), **fields)


def build(**fields: Any) -> masks.Mask:
    mask = masks.build_mask(make_request(**fields), PICTURE)
    assert mask is not None
    return mask


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "P"])
def test_mask_white_pixels_are_repainted(mode: str) -> None:
    mask = masks.decode_mask(codec.read_picture(square(mode)), (64, 48))
    assert mask.dtype == np.float32
    assert mask[8:24, 16:32].min() == 1
    assert mask.sum() == 16 * 16


def test_mask_transparent_pixels_are_repainted() -> None:
    clear = square().point(lambda value: 255 - value)
    mask = masks.decode_mask(codec.read_picture(Image.merge("LA", (square(), clear))), (64, 48))
    assert mask[8:24, 16:32].min() == 1
    assert mask.sum() == 16 * 16


def test_mask_with_opaque_alpha_uses_brightness() -> None:
    opaque = square("RGB")
    opaque.putalpha(255)
    assert masks.decode_mask(codec.read_picture(opaque), (64, 48)).sum() == 16 * 16


def test_mask_of_another_size_is_refused() -> None:
    with pytest.raises(PictureError, match="the mask is 48x64 and the picture 64x48"):
        masks.decode_mask(codec.read_picture(square(size=(48, 64))), (64, 48))


def test_mask_with_exif_orientation_is_turned() -> None:
    turned = square().transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    turned.info["exif"] = exif.tobytes()
    turned.getexif()[0x0112] = 6
    assert (masks.decode_mask(codec.read_picture(turned), (64, 48)) > 0).sum() == 16 * 16


def test_request_without_mask_builds_none() -> None:
    assert masks.build_mask(make_request(), PICTURE) is None


@pytest.mark.parametrize(
    ("text", "pixels"),
    [
        ("box:16,8,32,24", 256),
        ("box:-10,-10,8,8", 64),
        ("ellipse:0,0,40,20", 628),
        ("polygon:0,0,20,0,20,20,0,20", 441),
        ("color:#204060", 64 * 48),
        ("color:rgb(32,64,96)", 64 * 48),
        ("color:#2f4f6f", 64 * 48),
    ],
)
def test_mask_from_text_selects_its_shape(text: str, pixels: int) -> None:
    assert masks.draw_mask(text, PICTURE).sum() == pytest.approx(pixels, rel=0.02)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("circle:1,2,3", "begin with one of box:, ellipse:, polygon:, color:\\."),
        ("box:1,2,3", "give 4 numbers"),
        ("box:1,2,3,x", "give 4 numbers"),
        ("polygon:1,2,3,4", "at least three corners"),
        ("color:reddish", "'reddish' is not a color"),
        ("color:#ff0000", r"selects no pixel of the picture \(64x48"),
        ("box:100,100,120,120", "selects no pixel"),
    ],
)
def test_mask_from_invalid_text_names_the_field(text: str, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        masks.draw_mask(text, PICTURE)
    assert caught.value.field == "mask_from"


def test_mask_invert_selects_the_rest() -> None:
    assert build(mask_from="box:0,0,32,48", mask_invert=True)[:, 32:].min() == 1


@pytest.mark.parametrize("pixels", [-5, 5])
def test_mask_grow_moves_each_edge(pixels: int) -> None:
    box = masks.find_bounds(build(mask_from="box:16,8,48,40", mask_grow=pixels))
    assert box == (16 - pixels, 8 - pixels, 48 + pixels, 40 + pixels)


def test_mask_blur_fades_to_both_sides_of_the_edge() -> None:
    row = build(mask_from="box:32,0,64,48", mask_blur=8)[24]
    assert row[31] < 0.5 < row[32]
    assert list(row) == sorted(row)
    assert row[:16].max() == 0
    assert 0 < row[26] < row[30]


def test_mask_with_nearly_black_pixels_treats_them_as_black() -> None:
    noisy = np.full((48, 64), 7, np.uint8)
    noisy[10:20, 10:20] = 255
    mask = masks.build_mask(make_request(mask=codec.read_picture(Image.fromarray(noisy))), PICTURE)
    assert mask is not None
    assert (mask > 0).sum() == 100


def test_feather_fades_only_inside_the_mask() -> None:
    mask = np.zeros((64, 64), np.float32)
    mask[16:48, 16:48] = 0.5
    feathered = masks.feather_mask(mask, 4)
    assert (feathered[mask == 0] == 0).all()
    assert feathered[32, 16] == pytest.approx(0.2)
    assert feathered[24:40, 24:40].min() == 1
    assert (masks.feather_mask(np.ones((8, 8), np.float32), 4) == 1).all()


def test_latent_cell_has_the_largest_value_of_its_pixels() -> None:
    mask = np.zeros((16, 24), np.float32)
    mask[7, 8] = 0.25
    assert masks.to_latent_cells(mask, 8).tolist() == [[0, 0.25, 0], [0, 0, 0]]
