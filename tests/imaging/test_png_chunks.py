"""PNGs with large texts and profiles, and transparent levels of every depth."""

import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from overpaint.errors import PictureError
from overpaint.imaging import codec, png_chunks
from overpaint.picture import Picture
from overpaint.provenance import metadata

FILES = Path(__file__).parent / "files"


def encode(image: Image.Image, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def make_chunk(kind: bytes, body: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + body))
    return struct.pack(">I", len(body)) + kind + body + check


def insert_chunk(data: bytes, kind: bytes, body: bytes, before: bytes = b"IDAT") -> bytes:
    at = data.index(before) - 4
    return data[:at] + make_chunk(kind, body) + data[at:]


def make_png(depth: int, color: int, row: bytes, width: int, transparent: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, 1, depth, color, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"tRNS", transparent), (b"IDAT", zlib.compress(b"\0" + row))]
    return png_chunks.SIGNATURE + b"".join(
        make_chunk(kind, body) for kind, body in [*chunks, (b"IEND", b"")]
    )


def make_gray_profile(gamma: float = 1.0) -> bytes:
    """A gray profile (ICC.1) with a gamma curve."""
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    white = b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)
    text = b"desc" + bytes(4) + struct.pack(">I", 2) + b"g\0" + bytes(78)
    tags, blobs, at = b"", b"", 128 + 4 + 3 * 12
    for name, blob in ((b"kTRC", curve), (b"wtpt", white), (b"desc", text)):
        blob += bytes(-len(blob) % 4)
        tags += name + struct.pack(">II", at, len(blob))
        blobs, at = blobs + blob, at + len(blob)
    header = bytearray(128)
    header[0:4] = struct.pack(">I", at)
    header[8:12] = b"\x02\x10\0\0"
    header[12:24] = b"mntrGRAYXYZ "
    header[36:40] = b"acsp"
    header[68:80] = struct.pack(">3i", 63190, 65536, 54061)
    return bytes(header) + struct.pack(">I", 3) + tags + blobs


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"tEXt"])
@pytest.mark.parametrize("before", [b"IDAT", b"IEND"])
def test_png_with_megabytes_of_text_is_decoded(kind: bytes, before: bytes) -> None:
    text = b"word " * 2**20
    body = {
        b"tEXt": b"note\0" + text,
        b"zTXt": b"note\0\0" + zlib.compress(text),
        b"iTXt": b"note\0\1\0\0\0" + zlib.compress(text),
    }[kind]
    data = encode(Image.new("RGB", (16, 16), (1, 2, 3)))
    for _ in range(20):
        data = insert_chunk(data, kind, body, before)
    assert codec.decode(codec.read_picture(data)).getpixel((8, 8)) == (1, 2, 3)
    assert codec.decode(codec.receive_picture(data, "it")).getpixel((8, 8)) == (1, 2, 3)
    assert codec.upright_size(Picture(data=data)) == (16, 16)
    with (
        pytest.raises(PictureError, match="it carries more than 8 MiB of text"),
        codec.open_image(data, "it", texts=True),
    ):
        pass


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("international", [True, False])
def test_settings_of_more_than_a_megabyte_are_read(
    compressed: bool, international: bool, tmp_path: Path
) -> None:
    prompt = "a" * 60 + " " + "b" * 2**21
    chunks = PngInfo()
    text = f"{prompt}\nSteps: 7, Sampler: Euler a, CFG scale: 6.5, Seed: 3, Size: 512x512"
    write = chunks.add_itxt if international else chunks.add_text
    write("parameters", text, zip=compressed)
    (tmp_path / "in.png").write_bytes(encode(Image.new("RGB", (8, 8)), pnginfo=chunks))
    with codec.open_image((tmp_path / "in.png").read_bytes(), "it", texts=True) as image:
        assert metadata.extract_texts(image)["parameters"] == text
    assert metadata.read_settings(tmp_path / "in.png").fields["num_inference_steps"] == 7


def test_damaged_texts_are_left_out() -> None:
    data = encode(Image.new("RGB", (8, 8)))
    for kind, body in ((b"zTXt", b"a\0\0junk"), (b"iTXt", b"b"), (b"tEXt", b""), (b"iTXt", b"c\0")):
        data = insert_chunk(data, kind, body)
    with codec.open_image(data, "it", texts=True) as image:
        image.load()
    assert codec.decode(Picture(data=data)).size == (8, 8)


def test_orientation_in_xmp_is_applied() -> None:
    packet = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/></x:xmpmeta>'
    chunks = PngInfo()
    chunks.add_itxt("XML:com.adobe.xmp", packet, zip=True)
    picture = Picture(data=encode(Image.new("RGB", (40, 20)), pnginfo=chunks))
    assert codec.upright_size(picture) == codec.decode(picture).size == (20, 40)


def test_profile_of_megabytes_is_converted() -> None:
    with codec.open_image((FILES / "icc3mb.png").read_bytes(), "it") as image:
        assert len(image.info["icc_profile"]) > 2**20
    assert codec.decode(codec.read_picture(FILES / "icc3mb.png")).mode == "RGB"
    swapped = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, green = swapped.index(b"rXYZ"), swapped.index(b"gXYZ")
    swapped[red : red + 4], swapped[green : green + 4] = b"gXYZ", b"rXYZ"
    large = bytes(swapped) + bytes(3 * 2**20)
    data = encode(Image.new("RGB", (8, 8), (255, 0, 0)), icc_profile=large)
    for picture in (codec.read_picture(data), codec.receive_picture(data, "it")):
        red, green, blue = np.asarray(codec.decode(picture))[4, 4].tolist()
        assert (red < 10, green > 245, blue < 10) == (True, True, True)
    with codec.open_image(data, "it") as image:  # a Pillow image keeps it, too
        again = codec.read_picture(image)
    assert codec.decode(again) == codec.decode(Picture(data=data))
    assert "icc_profile" not in codec.decode(again).info  # it would have the time of decoding


def test_profile_beyond_the_limit_is_ignored() -> None:
    body = b"icc\0\0" + zlib.compress(bytes(png_chunks.MAX_PROFILE_BYTES + 1))
    data = insert_chunk(encode(Image.new("RGB", (8, 8), (9, 8, 7))), b"iCCP", body)
    assert codec.decode(codec.read_picture(data)).getpixel((0, 0)) == (9, 8, 7)


def test_gray_with_alpha_keeps_its_profile() -> None:
    decoded = codec.decode(codec.read_picture(FILES / "gray_LA.png"))
    assert decoded.getpixel((64, 64)) == (128, 128, 128)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P", "1", "I;16", "L with tRNS"])
def test_gray_profile_is_converted_in_each_mode(mode: str) -> None:
    value = {"1": 1, "I;16": 55 * 257}.get(mode, 55)
    options: dict[str, object] = {"icc_profile": make_gray_profile()}
    if mode == "L with tRNS":
        image, options["transparency"] = Image.new("L", (8, 8), value), 3
        image.putpixel((0, 0), 3)
    elif mode in ("1", "I;16"):
        image = Image.new(mode, (8, 8), value)
    else:
        image = Image.new("L", (8, 8), value).convert(mode)
    plain = encode(Image.new("L", (8, 8), 55), icc_profile=options["icc_profile"])
    expected = [255] * 3 if mode == "1" else np.asarray(codec.decode(Picture(data=plain)))[4, 4]
    assert min(expected) > 120
    shown = np.asarray(codec.decode(Picture(data=encode(image, **options))))[4, 4]
    assert shown.tolist() == list(expected)


def test_gray_profile_of_a_color_picture_is_ignored() -> None:
    image = Image.new("RGB", (8, 8), (200, 10, 30))
    decoded = codec.decode(Picture(data=encode(image, icc_profile=make_gray_profile())))
    assert decoded.getpixel((4, 4)) == (200, 10, 30)


@pytest.mark.parametrize(
    ("depth", "color", "row", "transparent"),
    [
        (1, 0, b"\x80", b"\0\1"),
        (2, 0, b"\x80", b"\0\2"),
        (4, 0, b"\x50", b"\0\5"),
        (8, 0, b"\x07\0", b"\0\7"),
        (16, 0, b"\x12\x34\0\0", b"\x12\x34"),
        (8, 2, b"\1\2\3\0\0\0", b"\0\1\0\2\0\3"),
        (16, 2, b"\1\1\2\2\3\3" + bytes(6), b"\1\1\2\2\3\3"),
    ],
)
def test_transparent_level_of_any_depth_becomes_alpha(
    depth: int, color: int, row: bytes, transparent: bytes
) -> None:
    picture = Picture(data=make_png(depth, color, row, 2, transparent))
    decoded = codec.decode_with_alpha(picture)
    assert decoded.mode == "RGBA"
    assert np.asarray(decoded)[0, :, 3].tolist() == [0, 255]
    assert codec.decode(picture).getpixel((0, 0)) == (255, 255, 255)


def count_inflated_bytes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record the uncompressed bytes of each call of the decompressor from now on."""
    sizes: list[int] = []
    make = zlib.decompressobj

    class Counting:
        def __init__(self) -> None:
            self._stream = make()

        @property
        def eof(self) -> bool:
            return self._stream.eof

        def decompress(self, data: bytes, limit: int) -> bytes:
            sizes.append(min(limit, 1032 * len(data)))  # a failure may cost it
            found = self._stream.decompress(data, limit)
            sizes[-1] = len(found)
            return found

    monkeypatch.setattr(zlib, "decompressobj", Counting)
    return sizes


@pytest.mark.parametrize(
    ("kind", "head"),
    [(b"iCCP", b"icc\0\0"), (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0")],
)
@pytest.mark.parametrize("damaged", [False, True])
def test_repeated_profiles_and_orientations_are_inflated_up_to_one_limit(
    kind: bytes, head: bytes, damaged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = zlib.compress(bytes(2**19 if kind == b"iTXt" else 15 * 2**20))
    body = head + (bomb[:-4] + b"junk" if damaged else bomb)
    data = encode(Image.new("RGB", (8, 8)))
    for _ in range(20):
        data = insert_chunk(data, kind, body)
    sizes = count_inflated_bytes(monkeypatch)
    png_chunks.split_metadata(data)
    assert sum(sizes) <= (17 * 2**20 if kind == b"iCCP" else 2**21)


def test_damaged_texts_count_toward_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(Image.new("RGB", (8, 8)))
    body = b"note\0\0" + zlib.compress(bytes(4 * 2**20))[:-4] + b"junk"
    for _ in range(20):
        data = insert_chunk(data, b"zTXt", body)
    sizes = count_inflated_bytes(monkeypatch)
    with pytest.raises(PictureError, match="more than 8 MiB of text"):
        png_chunks.read_texts(data, "it")
    assert sum(sizes) <= 10 * 2**20
