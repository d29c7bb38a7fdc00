"""Tests of add-ons: each is loaded once for its content, by any name, and again after a change."""

import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from overpaint.diffusion.planner import plan
from overpaint.diffusion.prompt import encode_prompt
from overpaint.imaging import codec
from overpaint.models.addons import KEPT_ADDONS, AddonLoader
from overpaint.models.controlnet import ControlNet
from overpaint.models.library.library import Library
from overpaint.models.lora import LoraWeights
from overpaint.models.model import Model
from overpaint.request import Request
from overpaint.request.fields import MAX_CONTROLS, MAX_EMBEDDINGS, MAX_LORAS
from tests.request.test_second_size_and_colors import colored
from tests.tiny import tiny_model
from tests.tiny_control import tiny_net, write

LAYER = "base_model.model.text_model.encoder.layers.0.self_attn.q_proj"


def write_peft(folder: Path, alpha: float) -> Path:
    """Write a PEFT adapter of the first text encoder; its weights do not depend on α."""
    folder.mkdir(parents=True, exist_ok=True)
    random = torch.Generator().manual_seed(0)
    state = {
        f"{LAYER}.lora_A.weight": torch.randn(2, 32, generator=random),
        f"{LAYER}.lora_B.weight": torch.randn(32, 2, generator=random),
    }
    save_file(state, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"lora_alpha": alpha, "r": 2}))
    return folder


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model()


def make_request(**fields: Any) -> Request:
    return Request.model_validate({"prompt": "a cat", **fields})


def encode(loader: AddonLoader, model: Model, name: str) -> torch.Tensor:
    """Encode a prompt with a LoRA."""
    addons = loader.load(make_request(loras=[{"name": name}]))
    return encode_prompt(model, "a cat", adapters=addons.adapters).tokens


def test_lora_of_a_changed_config_paints_with_the_new_strength(
    model: Model, tmp_path: Path
) -> None:
    write_peft(tmp_path / "loras" / "weak", 1)
    write_peft(tmp_path / "loras" / "strong", 9)
    loader = AddonLoader(model, Library(tmp_path / "home", [tmp_path / "loras"]))
    weak, strong = encode(loader, model, "weak"), encode(loader, model, "strong")
    assert not torch.equal(weak, strong)
    write_peft(tmp_path / "loras" / "weak", 9)
    assert torch.equal(encode(loader, model, "weak"), strong)


def write_net(path: Path) -> Path:
    """Write a random ControlNet for the tiny model."""
    path.parent.mkdir(exist_ok=True)
    return write(tiny_net("small"), path)


def test_lora_is_in_memory_once_for_all_its_names(model: Model, tmp_path: Path) -> None:
    root = tmp_path / "loras"
    folder = write_peft(root / "Ink", 1)
    library = Library(tmp_path / "home", [root], paths=True)
    loader = AddonLoader(model, library)
    digest = library.find("Ink", "lora").sha256
    names = ("Ink", "ink", "INK", digest[:10], digest, str(folder))
    adapters = loader.load(make_request(loras=[{"name": name} for name in names])).adapters
    assert len({id(adapter.lora) for adapter in adapters}) == 1
    assert [adapter.name for adapter in adapters] == list(names)
    assert len(set(adapters)) == 1  # rows with other names of a LoRA share a batch


def test_embedding_is_in_memory_once_for_all_its_names(model: Model, tmp_path: Path) -> None:
    root = tmp_path / "embeddings"
    root.mkdir()
    save_file({"clip_l": torch.ones(2, 32), "clip_g": torch.ones(2, 48)}, root / "Toy.safetensors")
    loader = AddonLoader(model, Library(tmp_path / "home", [root]))
    prompt = "<embedding:Toy> <embedding:toy> <embedding:TOY>"
    found = loader.load(make_request(prompt=prompt)).embeddings
    assert [embedding.name for embedding in found] == ["Toy", "toy", "TOY"]
    assert len({id(embedding.vectors) for embedding in found}) == 1


def test_controlnet_is_in_memory_once_until_its_file_changes(model: Model, tmp_path: Path) -> None:
    path = write_net(tmp_path / "nets" / "Edges.safetensors")
    loader = AddonLoader(model, Library(tmp_path / "home", [tmp_path / "nets"], paths=True))
    names = ("Edges", "edges", str(path), str(path.parent / ".." / "nets" / path.name))

    def load(*names: str) -> list[ControlNet | None]:
        control = {"kind": "canny", "image": colored("red")}
        return list(loader.load(make_request(controls=[control | {"net": n} for n in names])).nets)

    named, folded, by_path, around = load(*names)
    assert named is folded
    assert by_path is around
    write_net(path)
    assert load(str(path))[0] is not by_path


def test_note_on_the_mask_of_a_control_says_where_the_control_acts(
    model: Model, tmp_path: Path
) -> None:
    path = write_net(tmp_path / "nets" / "edges.safetensors")
    clear = Image.new("RGBA", (64, 64), (0, 0, 0, 255))
    clear.paste((0, 0, 0, 0), (0, 0, 32, 64))
    control = {"kind": "canny", "image": colored("red"), "mask": codec.read_picture(clear)}
    request = make_request(controls=[control | {"net": str(path)}], width=64, height=64)
    addons = AddonLoader(model, Library(tmp_path / "home", paths=True)).load(request)
    notices = plan(request, model, addons).notices
    assert (
        "the mask of controls.0 has transparency: the ControlNet acts on its transparent part, "
        "50% of the picture." in notices
    )
    assert not any("repaint" in notice for notice in notices)


def test_addons_that_were_not_used_for_longest_leave_memory(model: Model, tmp_path: Path) -> None:
    for number in range(3):
        write_peft(tmp_path / "loras" / f"lora{number}", number + 1)
    kept = dict.fromkeys(KEPT_ADDONS, 2)
    loader = AddonLoader(model, Library(tmp_path / "home", [tmp_path / "loras"]), kept)

    def load(number: int) -> weakref.ref[LoraWeights]:
        addons = loader.load(make_request(loras=[{"name": f"lora{number}"}]))
        return weakref.ref(addons.adapters[0].lora)

    first, second = load(0), load(1)
    assert load(0)() is first()
    load(2)
    assert first() is not None
    assert second() is None


def test_kept_addons_suffice_for_the_largest_request() -> None:
    assert KEPT_ADDONS["lora"] >= MAX_LORAS
    assert KEPT_ADDONS["embedding"] >= MAX_EMBEDDINGS
    assert min(KEPT_ADDONS["net"], KEPT_ADDONS["estimator"]) >= MAX_CONTROLS
