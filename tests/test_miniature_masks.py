"""The second networks that ship with the miniature, and masks and stages from end to end.

Bounds here are loose, for a few pictures each; `python -m miniature measure-masks` takes hundreds.
"""

import gc
import weakref
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import overpaint
from miniature import measure_masks
from miniature.judge import load as load_judge
from overpaint.cli.main import main
from overpaint.errors import ModelError, ModelNotFoundError
from overpaint.imaging import codec
from overpaint.models.checkpoint import load_model
from overpaint.models.library import catalog
from overpaint.models.model import Model
from overpaint.request_options import RequestOptions

ROOT = Path(__file__).parents[1]
HOUSE = ROOT / "examples" / "house.png"


@pytest.fixture(scope="module")
def painter() -> overpaint.Painter:
    return overpaint.load("miniature", device="cpu")


@pytest.fixture(scope="module")
def inpainter() -> Model:
    return load_model("miniature-inpaint", device="cpu")


def test_all_that_ships_is_at_most_48_mb():
    folder = catalog.resolve_model("miniature").parent
    files = [path for path in folder.glob("miniature*/**/*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 48e6


# What the second networks are for


def test_one_object_becomes_another_and_the_rest_stays(inpainter: Model):
    judge = load_judge(ROOT / "miniature" / "judge.safetensors")
    (right, same), _ = measure_masks.replaced(inpainter, judge, 12)
    assert same.value == 1
    assert right.value >= 0.75


def test_an_object_is_removed(inpainter: Model):
    assert measure_masks.removed(inpainter, 12)[0].value >= 0.65


def test_the_background_goes_on_beyond_the_picture(inpainter: Model):
    assert measure_masks.extended(inpainter, 12)[0].value <= 6


def test_the_refiner_draws_edges_at_least_as_fine(painter: overpaint.Painter):
    refiner = load_model("miniature-refiner", device="cpu")
    (alone, together), _ = measure_masks.refined(painter.model, refiner, 16)
    assert together.value > alone.value - 0.02


def test_a_soft_mask_changes_softly(painter: overpaint.Painter):
    change, _ = measure_masks.softened(painter.model, 12)
    quarters = np.reshape(change, (4, 2)).mean(1).tolist()
    assert quarters == sorted(quarters)
    assert change[0] < change[-1] / 4


# From end to end


def pixels(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("size", [(128, 128), (203, 117), (96, 301)])
@pytest.mark.parametrize("model", ["miniature", "miniature-inpaint"])
def test_what_the_mask_keeps_is_the_same_to_the_bit_in_files(
    size: tuple[int, int], model: str, tmp_path: Path
):
    source = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), np.uint8)
    mask = np.zeros((size[1], size[0]), np.uint8)
    mask[20:60, 30:75] = 255
    Image.fromarray(source).save(tmp_path / "source.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    arguments = [str(tmp_path / "source.png"), "a red house", "--mask", str(tmp_path / "mask.png")]
    with pytest.raises(SystemExit) as end:
        main(["edit", *arguments, "-m", model, "--steps", "2", "-o", str(tmp_path / "out.png")])
    assert end.value.code in (0, None)
    painted = pixels(tmp_path / "out.png")
    assert np.array_equal(painted[mask == 0], source[mask == 0])
    assert (painted[mask > 0] != source[mask > 0]).mean() > 0.5


def test_a_black_mask_returns_the_picture_and_says_so(painter: overpaint.Painter):
    source = Image.open(HOUSE).convert("RGB")
    result = painter.edit(source, "a", mask=codec.read_picture(Image.new("L", source.size)))
    assert any("nothing to paint" in notice for notice in result.notices)
    assert np.array_equal(np.asarray(result.images[0]), np.asarray(source))


def test_a_white_mask_paints_everything(painter: overpaint.Painter):
    source = Image.open(HOUSE).convert("RGB").resize((128, 128))
    white = codec.read_picture(Image.new("L", source.size, 255))
    asked: RequestOptions = {"strength": 0.7, "num_inference_steps": 4, "seed": 3}
    over_white: RequestOptions = {**asked, "mask": white, "fill": "original"}
    masked = painter.edit(source, "a neon sign of a moon", **over_white)
    plain = painter.edit(source, "a neon sign of a moon", **asked)
    assert np.array_equal(np.asarray(masked.images[0]), np.asarray(plain.images[0]))


def test_a_refiner_goes_behind_a_mask_and_keeps_what_it_keeps(painter: overpaint.Painter):
    source = Image.open(HOUSE).convert("RGB").resize((128, 128))
    result = painter.edit(
        source,
        "a yellow star",
        mask_from="box:40,40,90,90",
        refiner="miniature-refiner",
        high_noise_frac=0.5,
        num_inference_steps=6,
    )
    changed = np.asarray(result.images[0]) != np.asarray(source)
    changed[40:90, 40:90] = False
    assert not changed.any()
    assert result.metadata[0]["refiner"]["name"] == "miniature-refiner"


def test_a_refiner_that_is_not_there_is_named(painter: overpaint.Painter, tmp_path: Path):
    missing = str(tmp_path / "refiner")
    with pytest.raises(ModelNotFoundError, match="no such file or folder"):
        painter.create("a house", refiner=missing)


def test_a_refiner_cannot_paint_alone():
    with pytest.raises(ModelError, match="cannot paint by itself"):
        overpaint.load("miniature-refiner", device="cpu").create("a house")


def test_an_inpainting_model_is_no_refiner(painter: overpaint.Painter):
    with pytest.raises(ModelError, match="is an inpainting model, not a refiner"):
        painter.create("a house", refiner="miniature-inpaint")


def test_one_refiner_is_in_memory_beside_those_in_use():
    """Clients of a server may name many, each as large as a model, and each many times."""
    addon_loader = overpaint.load("miniature", device="cpu").addon_loader

    def named(name: str) -> Model:
        found = addon_loader.load(overpaint.Request(refiner=name)).refiner
        assert found is not None
        return found

    used = named("miniature-refiner")
    named("miniature")
    assert named("miniature-refiner") is used
    with pytest.raises(ModelError):
        named("miniature-inpaint")
    unused = weakref.ref(used)
    del used
    gc.collect()
    assert unused()
    named("miniature")
    gc.collect()
    assert unused() is None


def test_an_inpainting_model_paints_without_a_mask():
    (image,) = overpaint.load("miniature-inpaint", device="cpu").create("a red house").images
    assert np.asarray(image).std() > 10
