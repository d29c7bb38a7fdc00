"""Masks: read, drawn, grown, blurred."""

from io import BytesIO
from pathlib import Path
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


@pytest.mark.parametrize(("color", "share"), [("red", "30%"), ("blue", "11%"), ("#800000", "15%")])
def test_mask_with_colors_says_how_strongly_it_repaints(color: str, share: str) -> None:
    mask, notices = Image.new("RGB", (64, 48)), list[str]()
    mask.paste(color, (16, 8, 32, 24))
    masks.decode_mask(codec.read_picture(mask), (64, 48), notices)
    (notice,) = notices
    assert f"its brightest part at {share}" in notice
    masks.decode_mask(codec.read_picture(square("RGB")), (64, 48), notices)
    assert len(notices) == 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_mask_in_a_turned_tiff_has_the_size_of_its_picture(orientation: int) -> None:
    file, exif = BytesIO(), Image.Exif()
    exif[0x112] = orientation
    Image.new("RGB", (64, 48)).save(file, "TIFF", exif=exif)
    picture = codec.read_picture(file.getvalue())
    assert codec.upright_size(picture) == codec.decode(picture).size


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
    with pytest.raises(PictureError, match="The mask is 48x64 and the picture 64x48"):
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


# Masks of other programs

FILES = Path(__file__).parent / "files"


def read(image: Image.Image | str, kind: str = "PNG") -> tuple[masks.Mask, list[str]]:
    """The mask of a picture or file, and the notices about it."""
    notices: list[str] = []
    if isinstance(image, str):
        picture = codec.read_picture(FILES / image)
    else:
        buffer = BytesIO()
        image.save(buffer, kind)
        picture = codec.Picture(data=buffer.getvalue())
    return masks.decode_mask(picture, codec.upright_size(picture), notices), notices


def test_white_strokes_on_a_clear_layer_are_repainted_and_said() -> None:
    mask, notices = read("white_on_clear.png")
    assert 0 < mask.mean() < 0.5
    assert "white strokes on a transparent layer" in notices[0]
    strokes = Image.new("LA", (64, 48), (255, 0))
    strokes.paste((255, 255), (16, 8, 32, 24))
    assert read(strokes)[0].sum() == 16 * 16
    black = Image.new("RGBA", (64, 48))  # clear pixels are often black
    black.paste((255, 255, 255, 128), (16, 8, 32, 24))
    assert read(black)[0].max() == pytest.approx(128 / 255)


@pytest.mark.parametrize("color", [(0, 0, 0, 255), (200, 30, 30, 255)])
def test_mask_of_colored_strokes_repaints_the_clear_part_with_a_notice(color: Any) -> None:
    strokes = Image.new("RGBA", (64, 48))
    strokes.paste(color, (16, 8, 32, 24))
    mask, notices = read(strokes)
    assert mask[8:24, 16:32].max() == 0
    assert "Overpaint repaints its transparent part, 92% of the picture" in notices[0]


def test_mask_with_transparent_hole_repaints_it_with_a_notice() -> None:
    white = Image.new("RGBA", (64, 48), "white")
    white.paste((255, 255, 255, 0), (16, 8, 32, 24))
    mask, notices = read(white)
    assert mask.sum() == 16 * 16
    assert "its transparent part, 8% of the picture" in notices[0]


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "I;16", "I", "F", "LA"])
def test_mask_of_zeros_and_ones_is_scaled_with_a_notice(mode: str) -> None:
    ones = np.zeros((48, 64), np.uint8)
    ones[8:24, 16:32] = 1
    if mode == "P":
        image = Image.fromarray(ones).convert("P")
    elif mode == "LA":  # opaque is 1
        image = Image.merge("LA", (Image.new("L", (64, 48)), Image.fromarray(1 - ones)))
    else:
        dtype = {"I;16": np.uint16, "I": np.int32, "F": np.float32}.get(mode, np.uint8)
        image = Image.fromarray(ones.astype(dtype))
        image = image.convert(mode) if mode == "RGB" else image
    mask, notices = read(image, "TIFF" if mode in ("I", "F") else "PNG")
    assert mask[8:24, 16:32].min() == 1
    assert mask.sum() == 16 * 16
    assert "1" in notices[0]


def test_mask_of_floating_point_values_is_unchanged() -> None:
    values = np.linspace(0, 1, 64 * 48, dtype=np.float32).reshape(48, 64)
    assert np.allclose(read(Image.fromarray(values), "TIFF")[0], values)


def test_mask_file_of_zeros_and_ones_is_scaled() -> None:
    mask, _ = read("zero_one.png")
    assert set(np.unique(mask).tolist()) == {0.0, 1.0}


def test_mask_that_is_nearly_black_gives_a_notice() -> None:
    mask, notices = read(Image.new("L", (64, 48), 7))
    assert mask.max() == pytest.approx(7 / 255)
    assert notices == ["the brightest level of the mask is 7 of 255; below 8 counts as black."]
    assert read(Image.new("L", (64, 48)))[1] == []
    assert read(square())[1] == []


def test_mask_of_noisy_black_jpeg_stays_below_the_minimum() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 2, (48, 64), np.uint8))
    mask, _ = read(noise, "JPEG")
    assert mask.max() < masks.MIN_MASK_VALUE


def test_mask_with_frames_uses_the_first_with_a_notice() -> None:
    buffer = BytesIO()
    square().save(buffer, "GIF", save_all=True, append_images=[Image.new("L", (64, 48), 255)])
    notices: list[str] = []
    mask = masks.decode_mask(codec.Picture(data=buffer.getvalue()), (64, 48), notices)
    assert mask.sum() == 16 * 16
    assert notices == ["the mask has several frames; the first one is used."]


def test_transparency_becomes_a_gray_mask() -> None:
    white = Image.new("RGBA", (64, 48), "white")
    white.paste((255, 255, 255, 0), (0, 0, 64, 40))
    found = masks.encode_transparency(codec.read_picture(white))
    assert found
    mask = masks.decode_mask(found, (64, 48))
    assert mask[:40].min() == 1
    assert mask[40:].max() == 0
    assert masks.encode_transparency(codec.read_picture(square())) is None
