"""Transparency, exact sizes and large extensions from files to files, with the miniature."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import overpaint
from overpaint.cli.main import main
from overpaint.events import Finished, Notice, Step
from overpaint.imaging import codec
from overpaint.request.parts import Control

FILES = Path(__file__).parent / "imaging" / "files"


@pytest.fixture(scope="module")
def painter() -> overpaint.Painter:
    return overpaint.load("miniature", device="cpu")


def run_command(*arguments: str) -> None:
    with pytest.raises(SystemExit) as end:
        main(["edit", *arguments, "--steps", "1", "--seed", "7"])
    assert end.value.code in (0, None)


@pytest.mark.parametrize("kind", ["png", "webp", "jpg"])
def test_edit_of_a_transparent_picture_keeps_alpha_in_the_file(kind: str, tmp_path: Path) -> None:
    source = np.random.default_rng(1).integers(0, 256, (90, 110, 4), np.uint8)
    Image.fromarray(source).save(tmp_path / "in.png")
    target = tmp_path / f"out.{kind}"
    words = "box:20,30,60,70"
    run_command(str(tmp_path / "in.png"), "a cup", "--mask-from", words, "-o", str(target))
    with Image.open(target) as image:
        assert image.mode == ("RGB" if kind == "jpg" else "RGBA")
        pixels = np.asarray(image)
    outside = np.ones((90, 110), bool)
    outside[30:70, 20:60] = False
    if kind == "png":
        assert np.array_equal(pixels[outside], source[outside])
    if kind != "jpg":
        assert np.array_equal(pixels[outside][:, 3], source[outside][:, 3])
        assert (pixels[40:60, 30:50, 3] == 255).all()


def test_edit_with_size_keep_writes_the_exact_size(tmp_path: Path) -> None:
    target = tmp_path / "out.png"
    run_command(str(FILES / "odd.png"), "a cup", "--size", "keep", "-o", str(target))
    with Image.open(target) as image:
        assert image.size == (130, 101)
    enlarged = ["--upscale", "1.5", "--refine-steps", "1"]
    run_command(str(FILES / "odd.png"), "a cup", "--size", "keep", *enlarged, "-o", str(target))
    with Image.open(target) as image:
        assert image.size == (195, 152)


def test_strength_0_returns_a_transparent_picture_unchanged(painter: overpaint.Painter) -> None:
    source = Image.fromarray(np.random.default_rng(1).integers(0, 256, (90, 110, 4), np.uint8))
    (image,) = painter.edit(source, "", strength=0.0, size="keep").images
    assert image.tobytes() == source.tobytes()


@pytest.mark.parametrize("refine", [False, True])
def test_large_extension_runs_in_steps(painter: overpaint.Painter, refine: bool) -> None:
    source = Image.fromarray(np.random.default_rng(1).integers(0, 256, (128, 128, 3), np.uint8))
    request = overpaint.Request(
        image=codec.read_picture(source),
        prompt="grass",
        extend=(256, 0, 0, 0),
        num_inference_steps=2,
        num_images=2,
        seed=7,
        refine="sequential" if refine else None,
        refine_strength=0.5 if refine else 0.3,
    )
    events = list(painter.stream(request))
    steps = [event for event in events if isinstance(event, Step)]
    assert steps[-1].done == steps[-1].total == 2 * 4 * 2 * (2 if refine else 1)
    assert any(isinstance(e, Notice) and "extended in 4 steps" in e.message for e in events)
    finished = events[-1]
    assert isinstance(finished, Finished)
    first, second = (np.asarray(image) for image in finished.images)
    assert first.shape == (128, 384, 3)
    assert np.array_equal(first[:, 256:], np.asarray(source))
    assert np.array_equal(second[:, 256:], np.asarray(source))
    assert np.abs(first[:, :64].astype(int) - second[:, :64]).mean() > 1
    if not refine:  # a picture depends only on its own seed
        (alone,) = painter.run(request.model_copy(update={"num_images": 1, "seed": 8})).images
        assert np.array_equal(np.asarray(alone), second)


def test_animated_picture_and_black_hint_give_notices(painter: overpaint.Painter) -> None:
    white = codec.read_picture(Image.new("RGB", (128, 128), "white"))
    control = Control(kind="canny", net="miniature-canny", image=white)
    result = painter.edit(
        FILES / "anim.gif", "a cup", num_inference_steps=1, controls=(control,), seed=7
    )
    assert "the picture has several frames; the first one is used." in result.notices
    assert any("the canny control image is nearly black" in said for said in result.notices)


def test_avif_picture_is_repainted(painter: overpaint.Painter) -> None:
    (image,) = painter.edit(FILES / "pic.avif", "a cup", num_inference_steps=1, seed=7).images
    assert image.size == (128, 128)


def test_white_strokes_are_repainted_with_a_notice(painter: overpaint.Painter) -> None:
    source = Image.fromarray(np.random.default_rng(1).integers(0, 256, (192, 256, 3), np.uint8))
    mask = codec.read_picture(FILES / "white_on_clear.png")
    result = painter.edit(source, "a cup", mask=mask, num_inference_steps=1, seed=7)
    assert any("white strokes on a transparent layer" in said for said in result.notices)
    changed = (np.asarray(result.images[0]) != np.asarray(source)).any(axis=2)
    with Image.open(FILES / "white_on_clear.png") as layer:
        strokes = np.asarray(layer)[..., 3] > 0
    assert not changed[~strokes].any()
    assert changed[strokes].mean() > 0.5


def test_white_strokes_mask_a_control_like_white_on_black(painter: overpaint.Painter) -> None:
    house = codec.read_picture(FILES.parents[2] / "examples" / "house.png")
    strokes = Image.new("LA", (512, 512), (255, 0))
    strokes.paste((255, 255), (0, 0, 200, 512))
    plain = Image.new("L", (512, 512))
    plain.paste(255, (0, 0, 200, 512))
    results: list[overpaint.Result] = []
    for mask in (strokes, plain):
        control = Control(
            kind="canny", net="miniature-canny", image=house, mask=codec.read_picture(mask)
        )
        results.append(
            painter.create("a house", controls=(control,), num_inference_steps=2, seed=7)
        )
    assert results[0].images[0].tobytes() == results[1].images[0].tobytes()
    assert any("white strokes on a transparent layer" in said for said in results[0].notices)
