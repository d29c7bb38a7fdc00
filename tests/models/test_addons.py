"""Tests of add-ons: each is loaded once for its content, by any name, and again after a change."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from overpaint.diffusion.prompt import encode_prompt
from overpaint.models.addons import AddonLoader
from overpaint.models.library.library import Library
from overpaint.models.model import Model
from overpaint.request import Request
from tests.tiny import tiny_model

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


def encode(loader: AddonLoader, model: Model, name: str) -> torch.Tensor:
    """Encode a prompt with a LoRA."""
    addons = loader.load(Request(prompt="a cat", loras=({"name": name},)))  # pyright: ignore
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
