"""The effect on pictures of the ControlNets, LoRAs and the embedding of the miniature.

Bounds here are loose, for a few pictures each; `python -m miniature measure-control` and
`measure-concepts` take hundreds.
"""

from pathlib import Path

import numpy as np
import pytest

import overpaint
from miniature import measure_concepts, measure_control, reader
from miniature.reader import Reader
from overpaint.cli.main import main
from overpaint.models.adapters import Adapter
from overpaint.models.controlnet import load_controlnet
from overpaint.models.embedding import load_embedding
from overpaint.models.library import index
from overpaint.models.library.library import list_shipped
from overpaint.models.lora import load_lora
from overpaint.models.model import Model
from overpaint.provenance import metadata
from overpaint.request.options import RequestOptions
from overpaint.request.parts import Lora

ROOT = Path(__file__).parents[1]
HOUSE = ROOT / "examples" / "house.png"
# Pictures and steps: of `make test`, and of `make test-slow`.
SIZES = [(4, 10), pytest.param(8, 20, marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def painter() -> overpaint.Painter:
    return overpaint.load("miniature", device="cpu", dtype="fp32")


@pytest.fixture(scope="module")
def model(painter: overpaint.Painter) -> Model:
    return painter.model


@pytest.fixture(scope="module")
def read() -> Reader:
    return reader.load(ROOT / "miniature" / "reader.safetensors")


def find_packaged(kind: str) -> dict[str, Path]:
    """Return the packaged files of a kind, by the name in the report cards."""
    packaged = index.list_packaged(kind)
    return {name.removeprefix("miniature-"): path for name, path in packaged.items()}


@pytest.mark.parametrize(("count", "steps"), SIZES)
def test_pictures_follow_hints_of_each_kind(
    model: Model, read: Reader, tmp_path: Path, count: int, steps: int
) -> None:
    nets = {name: load_controlnet(path, model) for name, path in find_packaged("control").items()}
    figures, _ = measure_control.followed(model, read, nets, count, tmp_path, steps)
    values = {figure.name: figure.value for figure in figures}
    without = values.pop("IoU without a hint")
    assert len(values) == 14
    for name, value in values.items():
        assert value > (max(0.5, without + 0.2) if name.startswith("IoU") else 0.6), name
    assert (tmp_path / "followed.png").exists()


@pytest.mark.parametrize(("count", "steps"), SIZES)
def test_loras_and_embedding_bring_their_concept(
    model: Model, read: Reader, count: int, steps: int
) -> None:
    loras = {name: Adapter(load_lora(path, model)) for name, path in find_packaged("lora").items()}
    toy = load_embedding(find_packaged("embedding")["toy"], "toy", model)
    card = measure_concepts.measured(model, read, loras, toy, count, steps)
    values = {figure.name: figure.value for figure in card.figures}
    for name, value in values.items():
        if "identical" in name:
            assert value == 1
        elif "without" not in name:
            assert value >= 0.6, name
    for name, without in {"comic": 0.25, "sticker": 0.25, "bird": 0.5}.items():
        assert values[f"{name}, without the LoRA"] <= without
    assert values["toy"] > values["toy, without the word"] + 0.4


def test_packaged_addons_are_described() -> None:
    entries = {entry.name: entry for entry in list_shipped()}
    assert entries.keys() == {
        *(f"miniature-{name}" for name in ("canny", "depth", "segmentation", "softedge", "union")),
        *(f"miniature-{name}" for name in ("comic", "sticker", "bird", "few-step", "toy", "tiny")),
    }
    kinds = {"control", "lora", "embedding", "decoder"}
    assert {entry.kind for entry in entries.values()} == kinds
    assert all(entry.license for entry in entries.values())
    assert entries["miniature-comic"].trigger_words == ("comic",)


def test_lora_tag_in_the_prompt_equals_the_field(painter: overpaint.Painter) -> None:
    options: RequestOptions = {"seed": 5, "num_inference_steps": 4}
    lora = Lora(name="miniature-sticker", scale=0.7, text_scale=0.7)
    tagged = painter.create("a sticker of a red cup <lora:miniature-sticker:0.7>", **options)
    with_lora: RequestOptions = {**options, "loras": (lora,)}
    named = painter.create("a sticker of a red cup ", **with_lora)
    plain = painter.create("a sticker of a red cup ", **options)
    assert np.array_equal(np.asarray(tagged.images[0]), np.asarray(named.images[0]))
    assert not np.array_equal(np.asarray(tagged.images[0]), np.asarray(plain.images[0]))


def test_create_command_with_control_and_lora_records_both(tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    arguments = ["--control", f"canny={HOUSE}:0.8:0-0.7", "--lora", "miniature-comic:0.9"]
    with pytest.raises(SystemExit) as end:
        main(["create", "a comic of a blue house", *arguments, "--steps", "3", "-o", str(out)])
    assert end.value.code in (0, None)
    record = metadata.read_settings(out).record
    assert record is not None
    assert record["request"]["controls"][0]["scale"] == 0.8
    ships = {entry.name: entry.sha256 for entry in list_shipped()}
    assert record["loras_sha256"]["miniature-comic"]["file"] == ships["miniature-comic"]
    assert list(record["nets_sha256"]) == ["miniature-canny"]
