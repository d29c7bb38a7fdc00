"""Tests of presets: their fields, the LoRA of "turbo", and what the request keeps."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from overpaint.errors import RequestError
from overpaint.models.addons import AddonLoader
from overpaint.models.family import FAMILIES
from overpaint.models.library.library import Library
from overpaint.models.model import Model
from overpaint.models.presets import settle_request
from overpaint.painter import Painter
from overpaint.registry import PRESETS
from overpaint.request import Request
from overpaint.request.parts import Lora
from tests.models.test_lora import FORMATS, trained
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a LoRA of the UNet without a title."""
    path = tmp_path_factory.mktemp("loras") / "ink.safetensors"
    save_file(FORMATS["kohya"](trained("lora", 3)[0]), path)
    return path


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return Library(tmp_path / "home")


def add(library: Library, lora: Path, name: str, title: str, value: float = 1.0) -> None:
    """Add a LoRA with a title in its metadata."""
    path = lora.with_name(f"{name}.safetensors")
    state = {key: value * tensor for key, tensor in load_file(lora).items()}
    save_file(state, path, {"modelspec.title": title})
    library.add(path, name)


def settle(request: Request, library: Library, model: Model | None = None) -> Request:
    model = model or tiny_model()
    settled, addons, _ = settle_request(request, model, AddonLoader(model, library))
    assert [own.name for own in addons.adapters] == [own.name for own in settled.loras]
    return settled


def test_quality_is_the_default_and_sets_no_field(library: Library):
    request = Request(prompt="a fox", seed=1)
    assert request.preset == "quality"
    assert settle(request, library) == request


def test_fast_sets_the_fields_that_the_request_leaves_open(library: Library):
    settled = settle(Request(seed=1, preset="fast"), library)
    assert {name: getattr(settled, name) for name in PRESETS["fast"]} == PRESETS["fast"]
    own = settle(Request(seed=1, preset="fast", num_inference_steps=50), library)
    assert own.num_inference_steps == 50


def test_fast_keeps_the_steps_of_a_few_step_lora(library: Library, lora: Path):
    add(library, lora, "quick", "SDXL-Lightning 4-step")
    settled = settle(Request(seed=1, preset="fast", loras=(Lora(name="quick"),)), library)
    assert settled.num_inference_steps == 4


def test_turbo_paints_with_the_few_step_lora_of_the_library(library: Library, lora: Path):
    add(library, lora, "ink", "Ink")
    add(library, lora, "quick", "SDXL-Lightning 2-step", 2.0)
    painter = Painter(tiny_model(), library)
    result = painter.run(Request(prompt="a fox", seed=1, preset="turbo"))
    record = result.metadata[0]["request"]
    assert (record["num_inference_steps"], record["guidance_scale"]) == (2, 1.0)
    assert [own["name"] for own in record["loras"]] == ["quick"]
    assert list(result.metadata[0]["loras_sha256"]) == ["quick"]
    assert "quick is for few steps (SDXL-Lightning)" in result.notices[0]
    named = painter.run(Request(prompt="a fox", seed=1, loras=(Lora(name="quick"),)))
    assert named.images[0].tobytes() == result.images[0].tobytes()
    again = painter.run(Request(**record | {"loras": (Lora(name="quick"),)}))
    assert again.images[0].tobytes() == result.images[0].tobytes()


def test_turbo_keeps_other_loras_and_fields_of_the_request(library: Library, lora: Path):
    add(library, lora, "ink", "Ink")
    add(library, lora, "quick", "SDXL-Lightning 4-step", 2.0)
    request = Request(seed=1, preset="turbo", loras=(Lora(name="ink"),), num_inference_steps=6)
    settled = settle(request, library)
    assert [own.name for own in settled.loras] == ["ink", "quick"]
    assert settled.num_inference_steps == 6


def test_turbo_chooses_among_few_step_loras_by_kind_and_name(library: Library, lora: Path):
    names = {"a": "LCM", "b": "SDXL-Lightning 4-step", "c": "DMD2 b", "d": "DMD2 a"}
    for number, (name, title) in enumerate(names.items()):
        add(library, lora, name, title, 1.0 + number)
    settled = settle(Request(seed=1, preset="turbo"), library)
    assert [own.name for own in settled.loras] == ["c"]


@pytest.mark.parametrize("scale", [1.0, 0.0])
def test_turbo_adds_a_lora_unless_the_request_has_an_active_one(
    library: Library, lora: Path, scale: float
):
    add(library, lora, "a", "DMD2")
    add(library, lora, "b", "LCM", 2.0)
    request = Request(seed=1, preset="turbo", loras=(Lora(name="b", scale=scale),))
    settled = settle(request, library)
    assert [own.name for own in settled.loras] == (["b"] if scale else ["b", "a"])


def test_turbo_with_a_few_step_checkpoint_needs_no_lora(library: Library):
    model = replace(tiny_model(), name="sdxl-turbo")
    settled = settle(Request(seed=1, preset="turbo"), library, model)
    assert (settled.loras, settled.num_inference_steps) == ((), 4)


def test_turbo_without_a_few_step_lora_is_refused(library: Library, lora: Path):
    add(library, lora, "ink", "Ink")
    model = replace(tiny_model(), family=FAMILIES["sdxl"])  # the miniature has a few-step LoRA
    with pytest.raises(RequestError, match=r"preset.*few-step LoRA.*models add"):
        settle(Request(seed=1, preset="turbo"), library, model)


def test_unknown_preset_is_refused():
    values: dict[str, Any] = {"preset": "faster"}
    with pytest.raises(RequestError, match="preset"):
        Request(**values)
