"""Tests of SDXL base and refiner at full size, with random weights."""

from pathlib import Path

import pytest
import torch

from overpaint.models.checkpoint import load_model
from overpaint.models.family import shipped_configs
from overpaint.models.model import Model
from tests.models import original
from tests.models.original import write_folder, write_safetensors

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ["sdxl", "sdxl-refiner"])
@pytest.mark.parametrize("layout", ["single", "folder"])
def test_full_size_model_loads_strictly_and_runs_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, layout: str
):
    monkeypatch.setenv("HOME", str(tmp_path))  # where digests are remembered
    configs = shipped_configs(name)
    modules = original.build(configs, "meta")
    if layout == "single":
        state = original.original_layout(configs, modules)
        path = write_safetensors(tmp_path / f"{name}.safetensors", state, torch.bfloat16)
    else:
        path = write_folder(tmp_path / name, configs, modules, torch.bfloat16)
    try:
        model = load_model(path, device="cpu", dtype="bf16")
        assert (model.family.name, model.native_size) == (name, 1024)
        assert model.dtype == torch.bfloat16
        check_step(model)
    finally:
        for file in tmp_path.rglob("*.safetensors"):
            file.unlink()


@torch.inference_mode()
def check_step(model: Model) -> None:
    """Encode a prompt and run the UNet on a small latent; check shapes and finite values."""
    tokens: list[torch.Tensor] = []
    pooled = None
    for encoder in model.text_encoders:
        text = encoder.tokenizer("a cat", padding="max_length", return_tensors="pt")
        output = encoder.model(text.input_ids, output_hidden_states=True)
        tokens.append(output.hidden_states[-2])
        pooled = output[0]
    width = 2048 if len(tokens) == 2 else 1280
    context = torch.cat(tokens, dim=-1)
    assert context.shape == (1, 77, width)
    assert pooled is not None
    assert pooled.shape == (1, 1280)
    ids = torch.zeros(1, 6 if len(tokens) == 2 else 5, dtype=model.dtype)
    noise = torch.randn(1, 4, 32, 32, dtype=model.dtype)
    sample = model.unet(
        noise,
        torch.tensor([500.0]),
        encoder_hidden_states=context,
        added_cond_kwargs={"text_embeds": pooled, "time_ids": ids},
        return_dict=False,
    )[0]
    assert sample.shape == noise.shape
    assert sample.isfinite().all()
