"""The packaged miniature: the judge finds the prompt in its pictures.

Bounds here are loose, for a few pictures each; `python -m miniature measure` takes hundreds.
"""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import overpaint
from miniature import measure, measure_variants
from miniature.judge import Judge
from miniature.judge import load as load_judge
from overpaint.cli.main import main
from overpaint.models.checkpoint import load_model
from overpaint.models.library import catalog
from overpaint.models.model import Model
from overpaint.request import Request

ROOT = Path(__file__).parents[1]
GUIDANCE = 5.0


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model("miniature", device="cpu")


@pytest.fixture(scope="module")
def judge() -> Judge:
    return load_judge(ROOT / "miniature" / "judge.safetensors")


def test_base_model_is_at_most_24_mb() -> None:
    files = [path for path in catalog.resolve_model("miniature").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 24e6


@pytest.mark.parametrize("count", [8, pytest.param(16, marks=pytest.mark.slow)])
def test_prompted_pictures_show_the_prompt(model: Model, judge: Judge, count: int) -> None:
    figures, _ = measure.prompted(model, judge, count, GUIDANCE)
    shares = {figure.name: figure.value for figure in figures}
    assert shares["object shape and color"] >= 0.85
    assert shares["background"] >= 0.9
    assert shares["style"] >= 0.85
    assert shares["two objects, both right and in relation"] >= 0.7


def test_turbo_shows_the_prompt_in_four_calls_per_picture(model: Model, judge: Judge) -> None:
    scenes = measure.held_out_scenes(16, measure.FIRST_SEED)
    requests = [
        Request(prompt=measure.full_caption(scene), seed=i) for i, scene in enumerate(scenes)
    ]
    with measure_variants.counted_calls(model) as calls:
        painted = measure_variants.paint_preset(model, "turbo", requests, "turbo")
    assert sum(calls) == 4 * len(scenes)
    for figure in measure.read_prompted(judge, painted, scenes):
        assert figure.value >= 0.85, figure


def test_restyled_sketch_keeps_its_objects(model: Model, judge: Judge) -> None:
    figures, _ = measure.from_sketches(model, judge, 10, GUIDANCE)
    style, objects = (figure.value for figure in figures)
    assert style >= 0.8
    assert objects >= 0.7


def test_autoencoder_round_trip_keeps_the_picture(model: Model) -> None:
    assert measure.round_trip(model, 20).value >= 29.5


def test_tiny_decoder_keeps_the_picture(model: Model, judge: Judge) -> None:
    likeness, objects = (figure.value for figure in measure.tiny_decoding(model, judge, 20))
    assert likeness >= 25
    assert objects >= 0.9


def test_more_strength_keeps_less_of_the_picture() -> None:
    painter = overpaint.load("miniature", device="cpu")
    source = Image.fromarray(pixels(ROOT / "examples" / "house.png")).resize((128, 128))
    distances: list[float] = []
    for strength in (0.0, 0.3, 0.6, 1.0):
        (image,) = painter.edit(
            source, "neon sign of a pink fish", strength=strength, seed=1, num_inference_steps=12
        ).images
        distances.append(float(np.abs(np.asarray(image, float) - np.asarray(source, float)).mean()))
    assert distances[0] == 0
    assert distances == sorted(distances)
    assert distances[-1] > 3 * distances[1]


def test_edit_command_with_like_repeats_the_same_pixels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sketch, first, again = ROOT / "examples" / "boat.png", tmp_path / "a.png", tmp_path / "b.webp"
    prompt = "a watercolor painting of an orange boat"
    settings = ["--steps", "6", "--sampler", "euler_a", "-n", "2", "--seed", "5"]
    for arguments in (
        ["edit", str(sketch), prompt, *settings, "-o", str(first)],
        ["edit", str(sketch), "--like", str(tmp_path / "a-1.png"), "-o", str(tmp_path / "c.png")],
        ["edit", str(sketch), "--like", str(tmp_path / "a-1.png"), "-o", str(again)],
    ):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code in (0, None), capsys.readouterr().err
    assert np.array_equal(pixels(tmp_path / "a-1.png"), pixels(tmp_path / "c.png"))
    assert pixels(again).shape == (128, 128, 3)


def pixels(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))
