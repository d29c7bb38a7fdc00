"""SDXL checkpoints in the formats of the field, with random weights: tiny, or of full size.

The names of the original layout are derived here from diffusers' by separate rules, so that tests
check the converters against an independent implementation.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from overpaint.models.family import Configs, parse_configs
from overpaint.models.files.clip_vocabulary import load_clip_tokenizer

State = dict[str, torch.Tensor]

UNET = "model.diffusion_model."
NAMES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.int64: "I64"}

WIDE: dict[str, Any] = {
    "block_out_channels": [320, 640, 640],
    "transformer_layers_per_block": [1, 3, 3],
    "attention_head_dim": [5, 10, 10],
    "norm_num_groups": 32,
    "cross_attention_dim": 16,
}
"""UNet config for a quarter of a billion parameters in tensors of up to 15 MB."""


def tiny_configs(*, refiner: bool = False, **unet: Any) -> Configs:
    """Make configs of a tiny SDXL or refiner with CLIP's full vocabulary; `unet` overrides keys."""
    encoder = {
        "vocab_size": 49408,
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "projection_dim": 12,
    }
    sdxl_unet = {
        "sample_size": 16,
        "in_channels": 4,
        "out_channels": 4,
        "layers_per_block": 2,
        "block_out_channels": [16, 32, 32],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": [1, 1, 2],
        "attention_head_dim": [1, 2, 2],
        "norm_num_groups": 8,
        "cross_attention_dim": 8 if refiner else 16,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 12 + 4 * (5 if refiner else 6),
    }
    vae = {
        "block_out_channels": [8, 8, 16, 16],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 2,
        "norm_num_groups": 4,
        "latent_channels": 4,
        "scaling_factor": 0.13025,
    }
    scheduler = {
        "_class_name": "EulerDiscreteScheduler",
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "prediction_type": "epsilon",
        "steps_offset": 1,
    }
    parts = {"unet": sdxl_unet | unet, "vae": vae, "scheduler": scheduler, "model_index": {}}
    names = ["text_encoder_2"] if refiner else ["text_encoder", "text_encoder_2"]
    return parse_configs(parts | dict.fromkeys(names, encoder))


def build(configs: Configs, device: str = "cpu") -> dict[str, torch.nn.Module]:
    """Build the modules of `configs` by part name; without weights on "meta"."""
    with torch.device(device):
        modules: dict[str, Any] = {
            "unet": UNet2DConditionModel.from_config(configs.unet),
            "vae": AutoencoderKL.from_config(configs.vae),
        }
        for part, config in configs.text_encoders.items():
            kind = CLIPTextModel if part == "text_encoder" else CLIPTextModelWithProjection
            modules[part] = kind(CLIPTextConfig.from_dict(config))
    return modules


def original_layout(configs: Configs, modules: Mapping[str, torch.nn.Module]) -> State:
    """Return the modules' tensors under the names of SDXL's original single-file layout."""
    state: State = {}
    layers = configs.unet["layers_per_block"]
    for name, tensor in modules["unet"].state_dict().items():
        state[UNET + _unet_key(name, layers, modules["unet"])] = tensor
    levels = len(configs.vae["block_out_channels"])
    for name, tensor in modules["vae"].state_dict().items():
        key = _vae_key(name, levels)
        is_convolution = ".attn_1." in key and tensor.ndim == 2
        state[f"first_stage_model.{key}"] = tensor[:, :, None, None] if is_convolution else tensor
    if (first := modules.get("text_encoder")) is not None:
        prefix = "conditioner.embedders.0.transformer.text_model."
        state |= {f"{prefix}{name}": tensor for name, tensor in first.state_dict().items()}
        state[f"{prefix}embeddings.position_ids"] = torch.arange(77)[None]
    prefix = f"conditioner.embedders.{len(configs.text_encoders) - 1}.model."
    second = _open_clip(modules["text_encoder_2"].state_dict())
    return state | {f"{prefix}{name}": tensor for name, tensor in second.items()}


def diffusers_layout(part: str, module: torch.nn.Module) -> State:
    """Return the tensors of a part under the names in published diffusers folders."""
    prefix = "text_model." if part == "text_encoder" else ""
    return {f"{prefix}{name}": tensor for name, tensor in module.state_dict().items()}


def write_folder(
    path: Path, configs: Configs, modules: Mapping[str, torch.nn.Module], dtype: torch.dtype
) -> Path:
    """Write a diffusers folder; tensors on the meta device become random numbers."""
    index: dict[str, Any] = {"_class_name": "StableDiffusionXLPipeline"}
    sections = {"unet": configs.unet, "vae": configs.vae, **configs.text_encoders}
    for part, config in sections.items():
        index[part] = ["library", "class"]
        _write_json(path / part / "config.json", config)
        stem = "model" if part in configs.text_encoders else "diffusion_pytorch_model"
        tensors = diffusers_layout(part, modules[part])
        write_safetensors(path / part / f"{stem}.safetensors", tensors, dtype)
    for part in configs.text_encoders:
        tokenizer = load_clip_tokenizer(part)
        tokenizer.save_pretrained(path / part.replace("text_encoder", "tokenizer"))
    _write_json(path / "scheduler" / "scheduler_config.json", configs.scheduler)
    _write_json(path / "model_index.json", configs.model_index | index)
    return path


def write_safetensors(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    dtype: torch.dtype,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write a safetensors file tensor by tensor.

    Floating-point tensors are converted; those on the meta device become random numbers of
    standard deviation 0.02.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    header: dict[str, Any] = {"__metadata__": dict(metadata or {})}
    end = 0
    for name, tensor in tensors.items():
        kind = dtype if tensor.is_floating_point() else tensor.dtype
        start, end = end, end + tensor.numel() * kind.itemsize
        header[name] = {
            "dtype": NAMES[kind],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    noise = (torch.randn(2**20, generator=torch.Generator().manual_seed(0)) * 0.02).to(dtype)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            for block in _blocks(tensor, noise):
                file.write(block.reshape(-1).view(torch.uint8).numpy().data)
    return path


def _blocks(tensor: torch.Tensor, noise: torch.Tensor) -> Iterable[torch.Tensor]:
    if not tensor.is_meta:
        yield (tensor.to(noise.dtype) if tensor.is_floating_point() else tensor).contiguous()
        return
    for start in range(0, tensor.numel(), len(noise)):
        yield noise[: min(len(noise), tensor.numel() - start)]


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dict(value)))


def _unet_key(name: str, layers: int, unet: torch.nn.Module) -> str:
    """Translate diffusers' name of a UNet tensor to the original layout."""
    for new, old in (
        ("conv_in.", "input_blocks.0.0."),
        ("time_embedding.linear_1.", "time_embed.0."),
        ("time_embedding.linear_2.", "time_embed.2."),
        ("add_embedding.linear_1.", "label_emb.0.0."),
        ("add_embedding.linear_2.", "label_emb.0.2."),
        ("conv_norm_out.", "out.0."),
        ("conv_out.", "out.2."),
        ("mid_block.attentions.0.", "middle_block.1."),
    ):
        if name.startswith(new):
            return old + name.removeprefix(new)
    if match := re.fullmatch(r"mid_block\.resnets\.(\d)\.(.*)", name):
        return f"middle_block.{2 * int(match[1])}.{_resnet(match[2])}"
    match = re.fullmatch(r"(down|up)_blocks\.(\d)\.(\w+)\.(\d)\.(.*)", name)
    assert match, name
    block, kind, layer, rest = int(match[2]), match[3], int(match[4]), match[5]
    first = block * (layers + 1) + (1 if match[1] == "down" else 0)
    side = "input_blocks" if match[1] == "down" else "output_blocks"
    if kind == "resnets":
        return f"{side}.{first + layer}.0.{_resnet(rest)}"
    if kind == "attentions":
        return f"{side}.{first + layer}.1.{rest}"
    if kind == "downsamplers":
        return f"{side}.{first + layers}.0.{rest.replace('conv.', 'op.')}"
    attends = hasattr(unet.get_submodule(f"up_blocks.{block}"), "attentions")
    return f"{side}.{first + layers}.{2 if attends else 1}.{rest}"


def _resnet(rest: str) -> str:
    table = {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "time_emb_proj": "emb_layers.1",
        "conv_shortcut": "skip_connection",
    }
    head, _, leaf = rest.partition(".")
    return f"{table[head]}.{leaf}"


def _vae_key(name: str, levels: int) -> str:
    """Translate diffusers' name of a VAE tensor to the original layout."""
    name = re.sub(r"up_blocks\.(\d)", lambda m: f"up.{levels - 1 - int(m[1])}", name)
    for new, old in (
        ("down_blocks.", "down."),
        ("mid_block.resnets.0.", "mid.block_1."),
        ("mid_block.resnets.1.", "mid.block_2."),
        ("mid_block.attentions.0.", "mid.attn_1."),
        (".resnets.", ".block."),
        (".downsamplers.0.", ".downsample."),
        (".upsamplers.0.", ".upsample."),
        ("conv_norm_out.", "norm_out."),
        ("conv_shortcut.", "nin_shortcut."),
        ("group_norm.", "norm."),
        ("to_q.", "q."),
        ("to_k.", "k."),
        ("to_v.", "v."),
        ("to_out.0.", "proj_out."),
    ):
        name = name.replace(new, old)
    return name


def _open_clip(state: Mapping[str, torch.Tensor]) -> State:
    """Rename and join the second text encoder's tensors as OpenCLIP does."""
    tensors: State = {"logit_scale": torch.tensor(4.6)}
    for name, tensor in state.items():
        name = name.removeprefix("text_model.")
        if name == "text_projection.weight":
            tensors["text_projection"] = tensor.T
            continue
        if match := re.fullmatch(r"(.*)\.self_attn\.q_proj\.(\w+)", name):
            start = f"text_model.{match[1]}.self_attn"
            joined = torch.cat([state[f"{start}.{x}_proj.{match[2]}"] for x in "qkv"])
            tensors[f"{_open_clip_key(match[1])}.attn.in_proj_{match[2]}"] = joined
        elif not re.search(r"\.[kv]_proj\.", name):
            tensors[_open_clip_key(name)] = tensor
    return tensors


def _open_clip_key(name: str) -> str:
    for new, old in (
        ("embeddings.token_embedding.", "token_embedding."),
        ("embeddings.position_embedding.weight", "positional_embedding"),
        ("final_layer_norm.", "ln_final."),
        ("encoder.layers.", "transformer.resblocks."),
        ("layer_norm", "ln_"),
        ("mlp.fc1.", "mlp.c_fc."),
        ("mlp.fc2.", "mlp.c_proj."),
        ("self_attn.", "attn."),
    ):
        name = name.replace(new, old)
    return name


def size_of(tensors: Iterable[torch.Tensor]) -> int:
    """Return the total number of elements."""
    return sum(math.prod(tensor.shape) for tensor in tensors)
