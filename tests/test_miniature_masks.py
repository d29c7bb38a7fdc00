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
from overpaint.request.options import RequestOptions

ROOT = Path(__file__).parents[1]
HOUSE = ROOT / "examples" / "house.png"
# Pictures and steps: of `make test`, and of `make test-slow`.
SIZES = [(6, 10), pytest.param(16, 30, marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def painter() -> overpaint.Painter:
    return overpaint.load("miniature", device="cpu")


@pytest.fixture(scope="module")
def inpainter() -> Model:
    return load_model("miniature-inpaint", device="cpu")


def test_packaged_models_are_at_most_58_mb():
    folder = catalog.resolve_model("miniature").parent
    files = [path for path in folder.glob("miniature*/**/*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 58e6


# The inpainting model and the refiner


@pytest.mark.parametrize(("count", "steps"), SIZES)
def test_inpainting_replaces_one_object_and_keeps_the_rest(
    inpainter: Model, count: int, steps: int
):
    judge = load_judge(ROOT / "miniature" / "judge.safetensors")
    (right, same), _ = measure_masks.replaced(inpainter, judge, count, steps)
    assert same.value == 1
    assert right.value >= 0.75


@pytest.mark.parametrize(("count", "steps"), SIZES)
def test_inpainting_removes_an_object(inpainter: Model, count: int, steps: int):
    assert measure_masks.removed(inpainter, count, steps)[0].value >= 0.65


@pytest.mark.parametrize(("count", "steps"), SIZES)
def test_extending_continues_the_background(inpainter: Model, count: int, steps: int):
    assert measure_masks.extended(inpainter, count, steps)[0].value <= 6


@pytest.mark.parametrize(("count", "steps"), SIZES)
def test_refiner_draws_edges_at_least_as_fine(painter: overpaint.Painter, count: int, steps: int):
    refiner = load_model("miniature-refiner", device="cpu")
    (alone, together), _ = measure_masks.refined(painter.model, refiner, count, steps)
    assert together.value > alone.value - 0.02


@pytest.mark.parametrize(("count", "steps"), SIZES)
def test_soft_mask_changes_gradually(painter: overpaint.Painter, count: int, steps: int):
    change, _ = measure_masks.softened(painter.model, count, steps)
    quarters = np.reshape(change, (4, 2)).mean(1).tolist()
    assert quarters == sorted(quarters)
    assert change[0] < change[-1] / 4


# From end to end


def pixels(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("size", [(128, 128), (203, 117), (96, 301)])
@pytest.mark.parametrize("model", ["miniature", "miniature-inpaint"])
def test_edit_command_with_mask_keeps_unmasked_pixels_exactly(
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


def test_black_mask_returns_the_picture_with_a_notice(painter: overpaint.Painter):
    source = Image.open(HOUSE).convert("RGB")
    result = painter.edit(source, "a", mask=codec.read_picture(Image.new("L", source.size)))
    assert any("nothing to paint" in notice for notice in result.notices)
    assert np.array_equal(np.asarray(result.images[0]), np.asarray(source))


def test_white_mask_equals_an_edit_without_mask(painter: overpaint.Painter):
    source = Image.open(HOUSE).convert("RGB").resize((128, 128))
    white = codec.read_picture(Image.new("L", source.size, 255))
    options: RequestOptions = {"strength": 0.7, "num_inference_steps": 4, "seed": 3}
    over_white: RequestOptions = {**options, "mask": white, "fill": "original"}
    masked = painter.edit(source, "a neon sign of a moon", **over_white)
    plain = painter.edit(source, "a neon sign of a moon", **options)
    assert np.array_equal(np.asarray(masked.images[0]), np.asarray(plain.images[0]))


def test_refiner_with_mask_keeps_unmasked_pixels(painter: overpaint.Painter):
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


def test_missing_refiner_is_refused(painter: overpaint.Painter, tmp_path: Path):
    missing = str(tmp_path / "refiner")
    with pytest.raises(ModelNotFoundError, match="There is no file or folder"):
        painter.create("a house", refiner=missing)


def test_refiner_as_base_model_is_refused():
    with pytest.raises(ModelError, match="cannot paint by itself"):
        overpaint.load("miniature-refiner", device="cpu").create("a house")


def test_inpainting_model_as_refiner_is_refused(painter: overpaint.Painter):
    with pytest.raises(ModelError, match="is an inpainting model, not a refiner"):
        painter.create("a house", refiner="miniature-inpaint")


def test_addon_loader_keeps_the_last_refiner_and_those_in_use():
    """Clients of a server may name many, each as large as a model, and each many times."""
    addon_loader = overpaint.load("miniature", device="cpu").addon_loader

    def load_refiner(name: str) -> Model:
        refiner = addon_loader.load(overpaint.Request(refiner=name)).refiner
        assert refiner is not None
        return refiner

    used = load_refiner("miniature-refiner")
    load_refiner("miniature")
    assert load_refiner("miniature-refiner") is used
    with pytest.raises(ModelError):
        load_refiner("miniature-inpaint")
    unused = weakref.ref(used)
    del used
    gc.collect()
    assert unused()
    load_refiner("miniature")
    gc.collect()
    assert unused() is None


def test_inpainting_model_without_mask_paints_a_picture():
    (image,) = overpaint.load("miniature-inpaint", device="cpu").create("a red house").images
    assert np.asarray(image).std() > 10
