"""A LoRA file that diffusers writes has the same effect here as in diffusers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import (
    StableDiffusionXLPipeline,
)
from peft import LoraConfig, get_peft_model_state_dict
from safetensors import safe_open

from overpaint.models.adapters import Adapter, AdapterMerger
from overpaint.models.lora import get_part, load_lora
from overpaint.nn.packed import unpacked_state
from tests.tiny import tiny_model, tiny_pipeline

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

TARGETS = r".*attn1\.to_(q|out\.0)|.*ff\.net\.2"
CONFIGS: dict[str, dict[str, Any]] = {
    "unet": {
        "r": 4,
        "lora_alpha": 6,
        "alpha_pattern": {"attn1.to_q": 1},
        "target_modules": TARGETS,
    },
    "text_encoder": {"r": 2, "lora_alpha": 16, "target_modules": ["q_proj", "fc1"]},
    "text_encoder_2": {
        "r": 2,
        "lora_alpha": 1,
        "use_rslora": True,
        "rank_pattern": {"fc1": 4},
        "target_modules": ["q_proj", "fc1"],
    },
}
"""A different strength for each part, as trainers can choose."""


def write_lora(folder: Path, *, with_metadata: bool) -> Path:
    """Write a LoRA of all parts with diffusers."""
    pipeline = tiny_pipeline(tiny_model(overpaint_blocks=False))
    options: dict[str, Any] = {}
    torch.manual_seed(1)
    for part, config in CONFIGS.items():
        module: Any = getattr(pipeline, part)
        module.add_adapter(LoraConfig(**config))
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.data = torch.randn(parameter.shape) * 0.2
        options[f"{part}_lora_layers"] = get_peft_model_state_dict(module)
        if with_metadata:
            options[f"{part}_lora_adapter_metadata"] = module.peft_config["default"].to_dict()
    StableDiffusionXLPipeline.save_lora_weights(folder, **options)
    [path] = folder.glob("*.safetensors")
    return path


@pytest.mark.parametrize("with_metadata", [True, False])
def test_lora_of_diffusers_equals_diffusers(with_metadata: bool, tmp_path: Path) -> None:
    path = write_lora(tmp_path, with_metadata=with_metadata)
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
    assert (
        "text_encoder.lora_alpha" in json.loads(metadata.get("lora_adapter_metadata", "{}"))
    ) is (with_metadata)
    pipeline: Any = tiny_pipeline(tiny_model(overpaint_blocks=False))
    pipeline.load_lora_weights(path)
    pipeline.fuse_lora(components=list(CONFIGS))
    model = tiny_model()
    lora = load_lora(path, model)
    merger = AdapterMerger(model)
    for part in CONFIGS:
        merger.use(part, (Adapter(lora),))
        mine = unpacked_state(get_part(model, part))
        before = unpacked_state(get_part(tiny_model(), part))
        fused: dict[str, torch.Tensor] = getattr(pipeline, part).state_dict()
        changed = 0
        for name, weight in mine.items():
            key = name if name in fused else name.replace(".weight", ".base_layer.weight")
            key = key if key in fused else name.replace(".bias", ".base_layer.bias")
            torch.testing.assert_close(weight, fused[key], atol=1e-5, rtol=1e-5)
            changed += not torch.equal(weight, before[name])
        assert changed == len(lora.changes[part])
