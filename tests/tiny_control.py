"""Random ControlNets for `tiny_model()` in all supported formats."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers.models.adapter import T2IAdapter
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.controlnets.controlnet_union import ControlNetUnionModel
from safetensors.torch import save_file
from torch import Tensor, nn

from overpaint.models.files.original_layout import to_original_name
from tests.tiny import UNET, tiny_model

HINT_CHANNELS = (8, 16, 16, 16)
SHARED = (
    *("block_out_channels", "layers_per_block", "norm_num_groups", "attention_head_dim"),
    *("use_linear_projection", "cross_attention_dim", "addition_embed_type"),
    *("addition_time_embed_dim", "projection_class_embeddings_input_dim"),
)
FULL: dict[str, Any] = {
    **{key: UNET[key] for key in SHARED},
    "down_block_types": UNET["down_block_types"],
    "transformer_layers_per_block": UNET["transformer_layers_per_block"],
    "conditioning_embedding_out_channels": HINT_CHANNELS,
}
SMALL = {
    **FULL,
    "down_block_types": ("DownBlock2D", "DownBlock2D"),
    "transformer_layers_per_block": (0, 0),
    "mid_block_type": "UNetMidBlock2D",
}
UNION = {**FULL, "num_trans_channel": 32, "num_trans_head": 8, "num_proj_channel": 32}
NETS: dict[str, tuple[Any, dict[str, Any]]] = {
    "full": (ControlNetModel, FULL),
    "mid": (ControlNetModel, {**FULL, "transformer_layers_per_block": (0, 0)}),
    "small": (ControlNetModel, SMALL),
    "union": (ControlNetUnionModel, {**UNION, "num_control_type": 6}),
    "promax": (ControlNetUnionModel, {**UNION, "num_control_type": 8}),
}
"""Configs of the networks that run at each step, for diffusers."""


def tiny_net(kind: str = "full", seed: int = 5) -> Any:
    """Make a random ControlNet whose zero convolutions are not zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made, config = NETS[kind]
        net: Any = made(**config)
        zeroed = ("controlnet_", "spatial_ch_projs")
        for name, parameter in net.named_parameters():
            if name.startswith(zeroed) and not parameter.any():
                nn.init.normal_(parameter, std=0.2)
    return net.eval().requires_grad_(False)


def tiny_adapter(seed: int = 6) -> T2IAdapter:
    """Make a random T2I-Adapter."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapter = T2IAdapter(3, list(UNET["block_out_channels"]), 2, 16, "full_adapter_xl")
    return adapter.eval().requires_grad_(False)


def write(net: nn.Module, path: Path, layout: str = "diffusers") -> Path:
    """Write a ControlNet's weights in diffusers' layout or the original layout."""
    state = net.state_dict()
    if layout == "original":
        layers = int(UNET["layers_per_block"])
        state = {f"control_model.{to_original_name(k, layers=layers)}": v for k, v in state.items()}
    save_file({k: v.contiguous() for k, v in state.items()}, path)
    return path


def write_folder(net: Any, path: Path) -> Path:
    """Write a ControlNet as a diffusers folder."""
    net.save_pretrained(path)
    assert json.loads((path / "config.json").read_text())
    return path


def write_control_lora(path: Path, seed: int = 7, rank: int = 4) -> tuple[Path, ControlNetModel]:
    """Write a random Control-LoRA in Stability's format; return the equivalent ControlNet."""
    net = tiny_net("full", seed)
    unet = tiny_model(overpaint_blocks=False).unet.state_dict()
    layers = int(UNET["layers_per_block"])
    draw = torch.Generator().manual_seed(seed)
    stored: dict[str, Tensor] = {"lora_controlnet": torch.zeros(0)}
    state = net.state_dict()
    for name, tensor in state.items():
        original = to_original_name(name, layers=layers)
        if name not in unet:
            stored[original] = tensor
        elif tensor.ndim < 2 and "norm" not in name:
            stored[original] = unet[name] + 0.05 * torch.randn(tensor.shape, generator=draw)
            state[name] = stored[original]
        elif tensor.ndim < 2:
            state[name] = unet[name]
        else:
            stem = original.removesuffix(".weight")
            inner = tensor.shape[1:]
            down = torch.randn(rank, *inner, generator=draw) / inner.numel() ** 0.5
            up = 0.1 * torch.randn(len(tensor), rank, *(1 for _ in inner[1:]), generator=draw)
            stored |= {f"{stem}.up": up, f"{stem}.down": down}
            state[name] = unet[name] + (up.flatten(1) @ down.flatten(1)).view_as(tensor)
    net.load_state_dict(state)
    save_file({k: v.contiguous() for k, v in stored.items()}, path)
    return path, net
