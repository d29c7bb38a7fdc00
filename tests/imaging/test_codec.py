import pickle
import resource
import struct
import zlib
from concurrent.futures import ProcessPoolExecutor
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, ImageFile
from PIL.PngImagePlugin import PngInfo

from overpaint.errors import FormatError, OutputError, PictureError, RequestError
from overpaint.imaging import codec, grid, output, sizing
from overpaint.picture import Picture
from overpaint.provenance.importers.a1111 import split_a1111_pairs
from overpaint.request import Request
from tests.memory import COUNTED, added


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> Picture:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return Picture(data=buffer.getvalue())


def noise(width: int = 40, height: int = 24) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


END = b"\0\0\0\0IEND"


def bomb(width: int = 50_000, height: int = 50_000) -> bytes:
    """A PNG of about 1 KB that declares many pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(500_000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


# Reading


def test_read_picture_from_path_bytes_or_image_is_equal(tmp_path: Path):
    image = noise()
    path = tmp_path / "in.png"
    image.save(path)
    for source in (path, str(path), path.read_bytes(), image, codec.read_picture(path)):
        assert codec.decode(codec.read_picture(source)) == image


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"<html>not a picture</html>", "not a picture"),
        (b"\x89PNG\r\n\x1a\n", "not a picture"),
        (encoded(noise(200, 200)).data[:2000], "truncated"),
        (encoded(noise(200, 200), "JPEG").data[:2000], "truncated"),
        (encoded(noise(200, 200), "WEBP").data[:2000], "truncated"),
        (encoded(noise(200, 200), "TIFF").data[:2000], "truncated"),
        (encoded(noise(200, 200), "BMP").data[:2000], "truncated"),
        (encoded(noise(200, 200), "GIF").data[:2000], "truncated"),
        (bomb(), "pixels"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "an EPS"),
        (b"P6 1 1 255 aaa", "not a picture"),
    ],
)
def test_unreadable_picture_is_refused_with_its_file_name(
    content: bytes, words: str, tmp_path: Path
):
    path = tmp_path / "holiday.png"
    path.write_bytes(content)
    with pytest.raises(PictureError, match=words) as refused:
        codec.read_picture(path)
    assert "holiday.png" in str(refused.value)
    with pytest.raises(PictureError, match=words):
        codec.decode(Picture(data=content))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "AVIF"])
def test_received_picture_that_is_truncated_is_refused(kind: str):
    whole = encoded(noise(), kind)
    assert codec.receive_picture(whole.data, "it") == whole
    for share in (0.1, 0.5, 0.99):
        with pytest.raises(PictureError, match="it is"):
            codec.receive_picture(whole.data[: int(len(whole.data) * share)], "it")


@pytest.mark.parametrize("kind", ["TIFF", "BMP", "GIF"])
def test_received_picture_in_unsupported_format_is_refused(kind: str):
    data = encoded(noise(), kind).data
    assert codec.read_picture(data)
    with pytest.raises(
        FormatError, match=f"it is a {kind}, which is not supported; give one of these formats: PNG"
    ):
        codec.receive_picture(data, "it")


@pytest.mark.parametrize("size", [0, 1, 7, 2**32 - 1])
def test_received_avif_with_broken_sizes_is_refused(size: int):
    data = encoded(noise(), "AVIF").data
    with pytest.raises(PictureError, match="it "):
        codec.receive_picture(data[:32] + size.to_bytes(4) + data[36:], "it")


def test_received_avif_with_bytes_after_its_end_is_accepted():
    data = encoded(noise(), "AVIF").data + b"more"
    assert codec.receive_picture(data, "it").data == data


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "AVIF"])
def test_received_picture_with_two_frames_is_refused(kind: str):
    data = encoded(noise(), kind, save_all=True, append_images=[noise(40, 24).rotate(180)]).data
    with pytest.raises(PictureError, match="has 2 frames"):
        codec.receive_picture(data, "it")


def test_received_mpo_of_a_phone_is_accepted():
    both = encoded(noise(), "MPO", save_all=True, append_images=[noise()])
    assert codec.receive_picture(both.data, "it") == both


def test_received_picture_below_8_pixels_is_refused():
    for size in ((1, 1), (1, 20_000), (7, 8)):
        with pytest.raises(PictureError, match="at least 8 pixels"):
            codec.receive_picture(encoded(Image.new("L", size)).data, "it")


def looked_at(data: bytes) -> int:
    """Bytes that it takes to find that a picture is not whole; for a process of its own."""

    def look() -> None:
        with pytest.raises(PictureError, match="truncated"):
            codec.receive_picture(data, "it")

    return added(look)[0]


@pytest.mark.skipif(not COUNTED.exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "AVIF"])
def test_truncated_large_picture_is_refused_in_32_mib(kind: str):
    data = encoded(Image.new("RGB", (8192, 8192)), kind).data  # 200 MB
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        assert process.submit(looked_at, data[: len(data) // 2]).result() < 32 * 2**20


def pairs_read(text: str) -> int:
    """Bytes that reading a line of settings takes."""
    return added(lambda: split_a1111_pairs(text))[0]


@pytest.mark.skipif(not COUNTED.exists(), reason="needs Linux's /proc")
def test_long_line_of_settings_is_parsed_in_64_mib():
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        text = 'note:"' + '"a' * 2_000_000
        assert process.submit(pairs_read, text).result() < 64 * 2**20
        text = 'note:"' + "a" * 4_000_000 + '"'
        assert process.submit(pairs_read, text).result() < 64 * 2**20


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_size_matches_the_decoded_picture(orientation: int):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    for kind in ("PNG", "JPEG", "WEBP"):
        picture = encoded(noise(), kind, exif=exif)
        assert codec.upright_size(picture) == codec.decode(picture).size


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_upright_size_reads_only_the_header(kind: str):
    half = encoded(noise(200, 100), kind).data[:1000]
    assert codec.upright_size(Picture(data=half)) == (200, 100)


def test_upright_size_of_png_reads_exif_behind_the_pixels():
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    data = encoded(noise(200, 100), "PNG", exif=exif, pnginfo=saying_exif()).data
    at = data.rindex(b"eXIf") - 4
    (length,) = struct.unpack_from(">I", data, at)
    chunk = data[at : at + 12 + length]
    behind = data.replace(chunk, b"").replace(END, chunk + END)
    for turned in (data, behind):
        picture = Picture(data=turned)
        assert codec.upright_size(picture) == codec.decode(picture).size == (100, 200)
    said = encoded(noise(200, 100), "PNG", pnginfo=saying_exif())
    assert codec.upright_size(said) == codec.decode(said).size == (200, 100)
    assert codec.upright_size(Picture(data=said.data[:1000])) == (200, 100)


def saying_exif() -> PngInfo:
    """Texts with the name of the chunk in them."""
    text = PngInfo()
    text.add_text("note", "eXIf")
    return text


def test_upright_size_of_png_ignores_exif_behind_its_end():
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    data = encoded(noise(200, 100), "PNG", exif=exif).data
    at = data.rindex(b"eXIf") - 4
    (length,) = struct.unpack_from(">I", data, at)
    chunk = data[at : at + 12 + length]
    picture = Picture(data=data.replace(chunk, b"") + chunk)
    assert codec.upright_size(picture) == codec.decode(picture).size == (200, 100)


def test_received_lossless_jpeg_is_refused():
    data = encoded(noise(), "JPEG").data
    lossless = data.replace(b"\xff\xc0", b"\xff\xc3", 1)
    with pytest.raises(PictureError, match="damaged or truncated"):
        codec.receive_picture(lossless, "it")


def test_received_jpeg_of_many_scans_is_refused():
    data = encoded(noise(), "JPEG", progressive=True).data
    assert codec.receive_picture(data, "it").data == data
    last = data.rfind(b"\xff\xda")
    many = data[:last] + data[last:-2] * 101 + data[-2:]
    with pytest.raises(PictureError, match=r"it has 1\d\d JPEG scans"):
        codec.receive_picture(many, "it")


def test_received_jpeg_ignores_markers_in_exif_and_behind_its_end():
    """Films of phones, and small pictures in EXIF."""
    small = encoded(noise(8, 8), "JPEG").data
    exif = Image.Exif()
    exif[ExifTags.Base.UserComment] = small * 50
    film = np.random.default_rng(0).integers(0, 256, 2**23, dtype=np.uint8).tobytes()
    assert film.count(b"\xff\xda") > 100
    for kind in ({}, {"progressive": True}, {"restart_marker_blocks": 1}):
        data = encoded(noise(), "JPEG", exif=exif, **kind).data
        assert codec.receive_picture(data + film, "it").data == data + film
        with pytest.raises(PictureError, match="it is damaged or truncated"):
            codec.receive_picture(data[:-2], "it")


@pytest.mark.parametrize("data", [b"\xff\xe0\0\2" * 20_000, b"\xff\xe0\0\0" * 20_000])
def test_received_jpeg_of_many_markers_is_refused(data: bytes):
    whole = encoded(noise(), "JPEG").data
    with pytest.raises(PictureError, match="it has more than 10,000 JPEG markers"):
        codec.receive_picture(whole[:-2] + data + whole[-2:], "it")


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "LA", "RGBA"])
def test_extract_alpha_returns_alpha_or_none(mode: str):
    image = Image.new(mode, (2, 1), 0)
    if mode not in ("LA", "RGBA"):
        assert codec.extract_alpha(image) is None
        return
    image.putalpha(Image.new("L", (2, 1), 7))
    found = codec.extract_alpha(image)
    assert found
    assert found.getextrema() == (7, 7)


def test_read_picture_of_missing_file_or_folder_is_refused(tmp_path: Path):
    with pytest.raises(PictureError, match=r"none\.png: no such file"):
        codec.read_picture(tmp_path / "none.png")
    with pytest.raises(PictureError, match="folder"):
        codec.read_picture(tmp_path)
    with pytest.raises(PictureError, match="cannot be read"):
        codec.read_picture("a\0b")


def test_read_picture_of_too_large_file_is_refused(tmp_path: Path):
    (tmp_path / "huge.png").write_bytes(bytes(1001))
    with pytest.raises(PictureError, match=r"huge\.png is larger than 1,000 bytes"):
        codec.read_picture(tmp_path / "huge.png", max_file_bytes=1000)


def test_decompression_bomb_is_refused_in_20_mb():
    before = peak_memory()
    assert len(bomb()) < 1100
    with pytest.raises(PictureError, match="178,956,970 pixels"):
        codec.read_picture(bomb())
    assert peak_memory() - before < 20_000  # KB; decoded it would be 7.5 GB


def test_received_picture_above_64_megapixels_is_refused():
    """Several may be looked at at once."""
    image = Image.new("L", (8192, 8200))
    with pytest.raises(PictureError, match="mask declares more than 67,108,864 pixels"):
        codec.receive_picture(encoded(image, "PNG").data, "mask")
    fitting = encoded(image.crop((0, 0, 8192, 8192)), "PNG")
    assert codec.receive_picture(fitting.data, "mask") == fitting


def test_open_image_of_100_megapixels_gives_no_warning():
    with codec.open_image(bomb(10_000, 10_000), "large") as image:
        assert image.size == (10_000, 10_000)


def test_pillow_setting_for_truncated_images_is_unchanged():
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def test_open_image_passes_errors_of_its_block_on():
    with pytest.raises(PictureError, match="ours"), codec.open_image(bomb(8, 8), "x"):
        raise PictureError("ours")


def test_decoded_picture_is_turned_by_its_exif_orientation():
    image = Image.new("RGB", (40, 20), "red")
    image.paste("blue", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    for kind in ("PNG", "WEBP"):
        upright = codec.decode(encoded(image, kind, exif=exif, lossless=True))
        assert upright.size == (20, 40)
        assert upright.getpixel((10, 5)) == (0, 0, 255)
        assert upright.getpixel((10, 35)) == (255, 0, 0)
        assert not upright.getexif()


def test_read_picture_of_pillow_image_keeps_orientation_and_profile():
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    source = Image.open(BytesIO(encoded(noise(), "JPEG", exif=exif, icc_profile=profile).data))
    stored = codec.read_picture(source)
    assert codec.decode(stored).size == (24, 40)
    assert Image.open(BytesIO(stored.data)).info["icc_profile"] == profile


def gray_ramp() -> np.ndarray[Any, np.dtype[np.uint16]]:
    return np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(1, 256)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_decoded_16_bit_gray_is_scaled_and_not_clipped(kind: str):
    decoded = np.asarray(codec.decode(encoded(Image.fromarray(gray_ramp()), kind)))
    assert decoded.shape == (1, 256, 3)
    assert np.abs(decoded[0, :, 1].astype(int) - np.arange(256)).max() <= 1


def test_decoded_32_bit_gray_is_scaled_up_to_16_bit_values_else_refused():
    ramp = gray_ramp().astype(np.int32)
    decoded = np.asarray(codec.decode(encoded(Image.fromarray(ramp), "TIFF")))
    assert decoded[0, -1].tolist() == [255, 255, 255]
    assert decoded[0, 128].tolist() == [128, 128, 128]
    with pytest.raises(PictureError, match="32-bit"):
        codec.decode(encoded(Image.fromarray(ramp * 1000), "TIFF"))
    with pytest.raises(PictureError, match="32-bit"):
        codec.decode(encoded(Image.fromarray(ramp.astype(np.float32)), "TIFF"))


def transparent_palette() -> Picture:
    image = Image.new("P", (2, 1), 0)
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((1, 0), 1)
    return encoded(image, transparency=0)


def half_transparent(mode: str, color: tuple[int, ...]) -> Picture:
    return encoded(Image.new(mode, (2, 1), color))


@pytest.mark.parametrize(
    ("picture", "left"),
    [
        (half_transparent("RGBA", (255, 0, 0, 0)), (255, 255, 255)),
        (half_transparent("RGBA", (255, 0, 0, 51)), (255, 204, 204)),
        (half_transparent("LA", (0, 51)), (204, 204, 204)),
        (transparent_palette(), (255, 255, 255)),
        (encoded(Image.new("1", (2, 1), 1)), (255, 255, 255)),
        (encoded(Image.new("1", (2, 1), 0)), (0, 0, 0)),
        (encoded(Image.new("L", (2, 1), 77)), (77, 77, 77)),
        (encoded(Image.new("L", (2, 1), 77), transparency=77), (255, 255, 255)),
        (encoded(Image.new("I;16", (2, 1), 257), transparency=257), (255, 255, 255)),
        (encoded(Image.new("RGB", (2, 1), (1, 2, 3)), transparency=(1, 2, 3)), (255, 255, 255)),
        (encoded(Image.new("CMYK", (2, 1), (0, 255, 255, 0)), "TIFF"), (255, 0, 0)),
        (encoded(Image.new("P", (2, 1), 0), "GIF"), (0, 0, 0)),
    ],
)
def test_decoded_picture_of_each_mode_is_rgb_over_white(picture: Picture, left: tuple[int, ...]):
    image = codec.decode(picture)
    assert image.mode == "RGB"
    assert image.getpixel((0, 0)) == left


def test_decoded_cmyk_jpeg_is_not_inverted():
    image = codec.decode(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"))
    red, green, blue = np.asarray(image)[8, 8].tolist()
    assert red > 240
    assert green < 15
    assert blue < 15


def test_decoded_gif_is_its_first_frame():
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    picture = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert codec.decode(picture).getpixel((4, 4)) == (255, 0, 0)


def swapped_profile() -> bytes:
    """An sRGB profile whose red and green primaries are exchanged."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, green = data.index(b"rXYZ"), data.index(b"gXYZ")
    data[red : red + 4], data[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(data)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_decoded_picture_with_profile_is_converted_to_srgb(mode: str):
    image = Image.new("RGB", (4, 4), (255, 0, 0)).convert(mode)
    converted = codec.decode(encoded(image, icc_profile=swapped_profile()))
    red, green, blue = np.asarray(converted)[2, 2].tolist()
    assert red < 10
    assert green > 245
    assert blue < 10


def test_decoded_picture_with_unreadable_profile_is_left_as_srgb():
    picture = encoded(Image.new("RGB", (4, 4), (9, 8, 7)), icc_profile=b"not a profile")
    assert codec.decode(picture).getpixel((0, 0)) == (9, 8, 7)


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "LAB", "HSV", "RGBX", "I"])
def test_read_picture_accepts_pillow_images_of_each_mode(mode: str):
    image = Image.new("RGB", (4, 4), (200, 30, 60))
    image = Image.new("I", (4, 4), 65535) if mode == "I" else image.convert(mode, None)
    decoded = codec.decode(codec.read_picture(image))
    expected = image.convert("RGB") if mode != "I" else Image.new("RGB", (4, 4), "white")
    assert np.abs(np.asarray(decoded).astype(int) - np.asarray(expected)).max() <= 2


# Sizes

SKETCH = codec.read_picture(Image.new("RGB", (8, 8)))


def sized(
    picture_size: tuple[int, int] | None, native: int = 1024, **fields: Any
) -> tuple[int, int]:
    request = Request(image=SKETCH if picture_size else None, seed=0, **fields)
    return sizing.compute_result_size(picture_size, native, request)


@pytest.mark.parametrize(
    ("picture_size", "fields", "expected"),
    [
        (None, {}, (1024, 1024)),
        (None, {"width": 512, "height": 768}, (512, 768)),
        (None, {"width": 1280}, (1280, 816)),
        (None, {"height": 1280}, (816, 1280)),
        ((400, 400), {}, (1024, 1024)),
        ((4000, 3000), {}, (1184, 888)),
        ((3000, 4000), {}, (888, 1184)),
        ((4000, 3000), {"width": 1024}, (1024, 768)),
        ((4000, 3000), {"height": 768}, (1024, 768)),
        ((4000, 3000), {"width": 512, "height": 512}, (512, 512)),
        ((637, 1003), {"size": "keep"}, (637, 1003)),
        ((1024, 1024), {"size": "keep"}, (1024, 1024)),
    ],
)
def test_result_size_follows_request_picture_and_native_size(
    picture_size: tuple[int, int] | None, fields: dict[str, Any], expected: tuple[int, int]
):
    assert sized(picture_size, **fields) == expected


@pytest.mark.parametrize(
    ("picture_size", "fields", "field"),
    [
        (None, {"width": 248, "height": 1024}, "width"),
        (None, {"width": 1024, "height": 2056}, "height"),
        (None, {"width": 2048}, None),
        ((20000, 1), {}, "width"),
        ((1, 20000), {}, "width"),
        ((128, 128), {"size": "keep"}, "width"),
        ((4000, 400), {"size": "keep"}, "width"),
        ((4000, 1000), {"width": 512}, "height"),
    ],
)
def test_result_size_beyond_the_model_is_refused(
    picture_size: tuple[int, int] | None, fields: dict[str, Any], field: str | None
):
    if field is None:
        assert sized(picture_size, **fields) == (2048, 512)
        return
    with pytest.raises(RequestError, match="256 to 2048") as refused:
        sized(picture_size, **fields)
    assert refused.value.field == field


def test_result_size_limits_depend_on_the_native_size():
    assert sized(None, native=128) == (128, 128)
    with pytest.raises(RequestError, match="32 to 256"):
        sized(None, native=128, width=1024, height=1024)


def test_describe_untrained_size_names_the_trained_range():
    assert sizing.describe_untrained_size((768, 1024), 1024) is None
    assert "768 to 2048" in str(sizing.describe_untrained_size((760, 1024), 1024))
    assert "512x512" in str(sizing.describe_untrained_size((512, 512), 1024))


# Fitting


def bands(width: int, height: int) -> Image.Image:
    """Red, green and blue thirds from left to right."""
    image = Image.new("RGB", (width, height), "green")
    image.paste("red", (0, 0, width // 3, height))
    image.paste("blue", (width - width // 3, 0, width, height))
    return image


def test_fit_of_picture_with_target_size_returns_it():
    image = noise()
    assert sizing.fit_image(image, image.size, "cover") is image


@pytest.mark.parametrize("how", ["cover", "contain", "stretch"])
@pytest.mark.parametrize("source", [(1, 1), (7, 301), (640, 333), (64, 64)])
@pytest.mark.parametrize("target", [(64, 64), (128, 40), (24, 200)])
def test_fit_in_each_mode_has_the_target_size(
    how: Any, source: tuple[int, int], target: tuple[int, int]
):
    fitted = sizing.fit_image(Image.new("RGB", source, (10, 200, 30)), target, how)
    assert fitted.size == target
    assert fitted.getextrema() == ((10, 10), (200, 200), (30, 30))


def test_fit_cover_crops_to_the_center():
    assert sizing.fit_image(bands(300, 100), (100, 100), "cover").getpixel((10, 50)) == (0, 128, 0)


def test_fit_stretch_keeps_both_ends():
    stretched = sizing.fit_image(bands(300, 100), (90, 90), "stretch")
    assert stretched.getpixel((10, 50)) == (255, 0, 0)
    assert stretched.getpixel((80, 50)) == (0, 0, 255)


def test_fit_contain_pads_with_the_border_color():
    image = Image.new("RGB", (300, 100), (60, 70, 80))
    image.paste("white", (20, 20, 280, 80))
    padded = sizing.fit_image(image, (90, 90), "contain")
    assert padded.getpixel((45, 2)) == (60, 70, 80)
    assert padded.getpixel((45, 87)) == (60, 70, 80)
    assert padded.getpixel((45, 45)) == (255, 255, 255)


# Arrays


def test_array_of_an_image_converts_back_exactly():
    image = noise()
    array = codec.to_array(image)
    assert array.shape == (3, 24, 40)
    assert array.dtype == np.float32
    assert (array.min(), array.max()) == (-1, 1)
    assert codec.from_array(array) == image


def test_from_array_clips_values_beyond_the_range():
    array = np.array([[[-1.5, 0.0, 1.5]]] * 3, dtype=np.float32)
    assert np.asarray(codec.from_array(array))[0, :, 0].tolist() == [0, 128, 255]


# Writing


@pytest.mark.parametrize("name", ["out.png", "out.jpg", "out.JPEG", "out.webp"])
def test_save_writes_each_format(name: str, tmp_path: Path):
    output.check_writable(tmp_path / name)
    output.save_image(noise(), tmp_path / name, {})
    with Image.open(tmp_path / name) as written:
        assert written.size == (40, 24)
        assert written.format == output.get_output_format(Path(name))
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("out.tiff", r"\.png, \.jpg"),
        ("out", r"\.png, \.jpg"),
        ("missing/out.png", "no folder"),
        ("x" * 300 + ".png", "cannot be written"),
        ("/proc/out.png", "cannot be written"),
        ("folder.png", "not a file"),
        ("file/out.png", "no folder"),
    ],
)
def test_check_writable_refuses_unwritable_outputs(name: str, words: str, tmp_path: Path):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=words):
        output.check_writable(tmp_path / name)
    assert len(list(tmp_path.iterdir())) == 2


def test_check_writable_changes_no_file(tmp_path: Path):
    target = tmp_path / "out.png"
    target.write_bytes(b"old")
    output.check_writable(target)
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_failed_save_keeps_the_old_file(tmp_path: Path):
    target = tmp_path / "out.png"
    target.write_bytes(b"old")
    with pytest.raises(OutputError, match=r"out\.png cannot be written"):
        output.save_image(Image.new("CMYK", (8, 8)), target, {})
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_save_through_a_link_keeps_the_link(tmp_path: Path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link.png").symlink_to(tmp_path / "real" / "out.png")
    output.save_image(noise(), tmp_path / "link.png", {})
    assert (tmp_path / "link.png").is_symlink()
    assert (tmp_path / "real" / "out.png").is_file()


# A grid


def test_grid_places_each_picture_in_its_row_and_column():
    colors = [["red", "lime"], ["blue", "yellow"], ["cyan", "magenta"]]
    rows = [[Image.new("RGB", (64, 48), color) for color in row] for row in colors]
    sheet = grid.draw_grid(
        rows, ["0.2", "0.4"], ["3", "5", "a long label"], column_title="strength"
    )
    pixels = np.asarray(sheet)
    corners: list[list[tuple[int, int]]] = []
    for row in rows:
        corners.append([])
        for image in row:
            ys, xs = np.nonzero((pixels == np.asarray(image)[0, 0]).all(axis=2))
            assert (np.ptp(xs) + 1, np.ptp(ys) + 1) == (64, 48)
            assert len(xs) == 64 * 48
            corners[-1].append((xs.min(), ys.min()))
    assert len({x for row in corners for x, _ in row}) == 2
    assert corners[0][0][0] < corners[0][1][0]
    assert corners[0][0][1] < corners[1][0][1] < corners[2][0][1]
    assert (pixels[: corners[0][0][1]] < 100).any()  # column labels
    assert (pixels[:, : corners[0][0][0]] < 100).any()  # row labels


def test_pickled_picture_has_the_file_without_its_pixels(tmp_path: Path):
    path = tmp_path / "a.png"
    Image.new("RGB", (512, 512)).save(path)
    picture = codec.read_picture(path)
    assert picture.sha256
    assert "upright" in vars(picture)
    copy = pickle.loads(pickle.dumps(picture))
    assert copy == picture
    assert "upright" not in vars(copy)
    assert len(pickle.dumps(Request(image=picture))) < len(pickle.dumps(Request())) + 4096
    assert codec.decode(copy).size == (512, 512)
    assert "upright" in vars(picture)  # the original keeps them
