"""Load ControlNets and related networks; the keys of a file identify its kind.

| kind | keys |
|---|---|
| ControlNet: full, mid, small | `controlnet_cond_embedding.*`, originally `input_hint_block.*` |
| union net (six types) and ProMax (eight) | those of a ControlNet, and `task_embedding` |
| Control-LoRA | `lora_controlnet`: low-rank changes to a copy of the UNet's encoder |
| T2I-Adapter | `adapter.*`, or the original `body.*` |
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from diffusers.models.adapter import T2IAdapter
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.controlnets.controlnet_union import ControlNetUnionModel
from torch import Tensor, nn

from overpaint.errors import CheckpointError
from overpaint.models.adapters import get_adapter_merger
from overpaint.models.files import weight_variants
from overpaint.models.files.digests import compute_sha256
from overpaint.models.files.lazy_tensor import LazyTensor
from overpaint.models.files.original_layout import to_original_name
from overpaint.models.files.safetensors_io import open_weights, sample_keys
from overpaint.models.library import catalog
from overpaint.models.placement import place_weights
from overpaint.nn.blocks import install_blocks
from overpaint.nn.packed import pack_network
from overpaint.nn.union_fuser import isolate_rows

if TYPE_CHECKING:
    from overpaint.models.model import Model

Tensors = Mapping[str, LazyTensor]
ControlNetKind = Literal["controlnet", "union", "adapter"]

HINT_EMBEDDING = "controlnet_cond_embedding"
SHARED_CONFIG_KEYS = (
    *("block_out_channels", "layers_per_block", "norm_num_groups", "attention_head_dim"),
    *("use_linear_projection", "cross_attention_dim", "addition_embed_type"),
    *("addition_time_embed_dim", "projection_class_embeddings_input_dim"),
)
"""Config keys that a ControlNet shares with its UNet."""

FUSER_HEADS = 8
"""Attention heads in a union net's fuser: 8 in all published ones; weights do not show it."""


@dataclass(frozen=True, eq=False)
class ControlNet:
    """A ControlNet on a device.

    Attributes:
        name: The name that the user gave.
        sha256: The digest of its weights.
        kind: The kind of network.
        module: The network that runs at each step. A T2I-Adapter runs once per control image.
        embedding: The layers that turn a control image into features, separated from the module so
            that they run once per image. None for a T2I-Adapter.
        device: The device on which it runs.
        types: The number of control types of a union net; 0 for other kinds.
    """

    name: str
    sha256: str
    kind: ControlNetKind
    module: Any
    embedding: nn.Module | None
    device: torch.device
    types: int = 0

    @torch.inference_mode()
    def extract_features(self, hint: Tensor) -> tuple[Tensor, ...]:
        """Compute the features of a control image [1, 3, H, W] in 0..1, which all steps share.

        Returns:
            For a T2I-Adapter, features of each level. For other kinds, one tensor of the latent's
            size. Both have the module's dtype.
        """
        seen = hint.to(self.device, self.module.dtype)
        if self.embedding is None:
            return tuple(self.module(seen))
        return (self.embedding(seen),)


def load_controlnet(name: str | PathLike[str], model: "Model") -> ControlNet:
    """Load a ControlNet for a model, on the model's device and in its dtype.

    Args:
        name: A .safetensors file, a diffusers folder, or a name in the catalog.
        model: The model to control.

    Raises:
        ModelNotFoundError: The name is unknown.
        CheckpointError: The file is not a ControlNet, is for another family, or is damaged.
    """
    path = catalog.resolve_controlnet(str(name))
    file = _find_weights(path)
    tensors: Tensors = open_weights(file).tensors
    try:
        module, kind = _build_module(tensors, model)
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from error
    except (IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
        # Its shapes give the sizes of the module: there may be too few axes, or zeros.
        raise CheckpointError(f"{file}: its tensors fit no ControlNet: {error!r}") from error
    embedding: nn.Module | None = None
    types = 0
    if kind != "adapter":
        if model.device_memory is None:
            pack_network(module.down_blocks)
            pack_network(module.mid_block)
        embedding = cast(nn.Module, module.controlnet_cond_embedding)
        module.controlnet_cond_embedding = nn.Identity()
    if isinstance(module, ControlNetUnionModel):
        types = int(module.config["num_control_type"])
    sha256 = compute_sha256((file,))
    return ControlNet(str(name), sha256, kind, module, embedding, model.device, types)


def _find_weights(path: Path) -> Path:
    """Return the weight file at a path: the path itself, or the only one in the folder."""
    if path.is_file():
        return path
    names = weight_variants.choose_weight_files([entry.name for entry in path.iterdir()], half=True)
    if len(names) > 1:
        raise CheckpointError(
            f"{path} holds a ControlNet in {len(names)} shards; give a single file"
        )
    return path / names[0]


def _build_module(tensors: Tensors, model: "Model") -> tuple[Any, ControlNetKind]:
    """Build the module of a file's tensors, and return its kind."""
    if any(re.match(r"(adapter\.)?body\.\d", key) for key in tensors):
        return _build_adapter(tensors, model), "adapter"
    if "lora_controlnet" in tensors:
        return _build_control_lora(tensors, model), "controlnet"
    prefix = "control_model."
    plain = {key.removeprefix(prefix): stored for key, stored in tensors.items()}
    if "input_hint_block.0.weight" not in plain and f"{HINT_EMBEDDING}.conv_in.weight" not in plain:
        raise CheckpointError(
            f"This is not a ControlNet that Overpaint knows; its keys are {sample_keys(tensors)}"
        )
    original = "input_hint_block.0.weight" in plain
    time = "label_emb.0.0.weight" if original else "add_embedding.linear_1.weight"
    if time not in plain:
        raise CheckpointError(
            "This ControlNet has no size ids: it is for Stable Diffusion 1.5 or 2; "
            "Overpaint runs SDXL"
        )
    union = "task_embedding" in plain
    config = _infer_original_config(plain, model) if original else _infer_config(plain, model)
    kind = ControlNetUnionModel if union else ControlNetModel
    with torch.device("meta"):
        module: Any = kind(**config)
    if original:
        plain = _rename_tensors(plain, module)
    install_blocks(module)
    if union:
        isolate_rows(module)
    _place(module, plain, model)
    return module, "union" if union else "controlnet"


def _place(module: nn.Module, tensors: Tensors, model: "Model") -> None:
    place_weights(
        module,
        tensors,
        part="ControlNet",
        work="step",
        device=model.device,
        dtype=model.dtype,
        memory=model.device_memory,
    )


def _rename_tensors(plain: Tensors, module: Any) -> dict[str, LazyTensor]:
    """Rename tensors of the original layout to diffusers' names; unknown keys keep their names."""
    layers = int(module.config["layers_per_block"])
    names = {to_original_name(name, layers=layers): name for name in module.state_dict()}
    return {names.get(key, key): stored for key, stored in plain.items()}


def _infer_config(plain: Mapping[str, Any], model: "Model") -> dict[str, Any]:
    """Infer a ControlNet's config from its keys and the model's UNet."""
    unet: Any = model.unet.config
    config = {key: unet[key] for key in SHARED_CONFIG_KEYS}
    levels = len(config["block_out_channels"])
    depths = [
        _count_transformer_blocks(plain, f"down_blocks.{level}.attentions.0")
        for level in range(levels)
    ]
    config["down_block_types"] = tuple(
        "DownBlock2D" if depth is None else "CrossAttnDownBlock2D" for depth in depths
    )
    middle = _count_transformer_blocks(plain, "mid_block.attentions.0")
    last = depths[-1] if middle is None else middle  # the mid block is as deep as the last block
    config["transformer_layers_per_block"] = [depth or 0 for depth in (*depths[:-1], last)]
    if "task_embedding" in plain:
        types, width = plain["task_embedding"].shape
        config |= {
            "num_control_type": types,
            "num_trans_channel": width,
            "num_trans_head": FUSER_HEADS,
            "num_trans_layer": _count_matches(plain, r"transformer_layes\.(\d+)\."),
            "num_proj_channel": plain["spatial_ch_projs.weight"].shape[0],
        }
    elif middle is None:
        config["mid_block_type"] = "UNetMidBlock2D"
    steps = _count_matches(plain, rf"{HINT_EMBEDDING}\.blocks\.(\d+)\.")
    first = plain[f"{HINT_EMBEDDING}.conv_in.weight"].shape[0]
    widths = (plain[f"{HINT_EMBEDDING}.blocks.{i}.weight"].shape[0] for i in range(1, steps, 2))
    return config | {"conditioning_embedding_out_channels": (first, *widths)}


def _infer_original_config(plain: Mapping[str, Any], model: "Model") -> dict[str, Any]:
    """Infer a ControlNet's config from keys in the original layout."""
    layers = int(model.unet.config["layers_per_block"])
    levels = len(model.unet.config["block_out_channels"])
    names = {
        to_original_name(f"{stem}.attentions.0", layers=layers): f"{stem}.attentions.0"
        for stem in (*(f"down_blocks.{level}" for level in range(levels)), "mid_block")
    }
    known: dict[str, Any] = {}
    for key, stored in plain.items():
        if match := re.match(r"input_hint_block\.(\d+)\.(\w+)", key):
            number = int(match[1])
            place = "conv_in" if number == 0 else f"blocks.{number // 2 - 1}"
            if number != 14:
                known[f"{HINT_EMBEDDING}.{place}.{match[2]}"] = stored
        for original, name in names.items():
            if key.startswith(f"{original}."):
                known[name + key.removeprefix(original)] = stored
    return _infer_config(known, model)


def _count_transformer_blocks(plain: Mapping[str, Any], stem: str) -> int | None:
    """Count the transformer blocks of an attention; return None without attention."""
    if f"{stem}.norm.weight" not in plain:
        return None
    return _count_matches(plain, re.escape(stem) + r"\.transformer_blocks\.(\d+)\.")


def _count_matches(plain: Mapping[str, Any], pattern: str) -> int:
    found = (re.match(pattern, key) for key in plain)
    return max((int(match[1]) + 1 for match in found if match), default=0)


def _build_adapter(tensors: Tensors, model: "Model") -> Any:
    named = {f"adapter.{key.removeprefix('adapter.')}": stored for key, stored in tensors.items()}
    if (first := named.get("adapter.conv_in.weight")) is None:
        raise CheckpointError("This T2I-Adapter has no conv_in; the file is damaged")
    factor = round((first.shape[1] / 3) ** 0.5)
    if factor != 2 * model.vae_factor:
        raise CheckpointError(
            f"This T2I-Adapter shrinks control images {factor}-fold: it is for "
            "Stable Diffusion 1.5; Overpaint runs SDXL"
        )
    channels = [
        named[f"adapter.body.{level}.resnets.0.block1.weight"].shape[0]
        for level in range(_count_matches(named, r"adapter\.body\.(\d+)\."))
    ]
    depth = _count_matches(named, r"adapter\.body\.0\.resnets\.(\d+)\.")
    with torch.device("meta"):
        module = T2IAdapter(3, channels, depth, factor, "full_adapter_xl")
    _place(module, named, model)
    return module


def _build_control_lora(tensors: Tensors, model: "Model") -> Any:
    """Build a ControlNet from a copy of the UNet's encoder: each weight becomes W + up · down."""
    plain = {key: stored for key, stored in tensors.items() if key != "lora_controlnet"}
    unet: Any = model.unet.config
    layers = int(unet["layers_per_block"])
    hint = {key: plain[key] for key in plain if key.startswith("input_hint_block.")}
    widths = _infer_original_config(hint, model)["conditioning_embedding_out_channels"]
    config = {key: unet[key] for key in SHARED_CONFIG_KEYS}
    config |= {key: unet[key] for key in ("down_block_types", "transformer_layers_per_block")}
    with torch.device("meta"):
        module: Any = ControlNetModel(**config, conditioning_embedding_out_channels=widths)
    get_adapter_merger(model).use(
        "unet", ()
    )  # the copy must not contain LoRAs of an earlier request
    base = model.list_unet_weights()
    state: dict[str, Tensor] = {}
    unused = set(plain)
    for name, expected in module.state_dict().items():
        original = to_original_name(name, layers=layers)
        stem = original.removesuffix(".weight")
        changes = f"{stem}.up", f"{stem}.down"
        if original in plain:
            value = plain[original].read().float()
            unused.discard(original)
        elif name in base:
            value = base[name]().float()
            if name == "conv_in.weight":  # an inpainting UNet has more input channels
                value = value[:, : expected.shape[1]]
            if changes[0] in plain:
                up, down = (plain[key].read().float().flatten(1) for key in changes)
                value = value + (up.to(value.device) @ down.to(value.device)).view_as(value)
                unused.difference_update(changes)
        else:
            raise CheckpointError(f"This Control-LoRA has no {original}; the file is damaged")
        if value.shape != expected.shape:
            raise CheckpointError(
                f"This Control-LoRA is for another UNet: {original} is {list(value.shape)}, "
                f"expected is {list(expected.shape)}"
            )
        state[name] = value.to("cpu" if model.device_memory else model.device, model.dtype)
    if unused:
        raise CheckpointError(f"{len(unused)} keys match no layer: {sample_keys(sorted(unused))}")
    install_blocks(module)
    module.load_state_dict(state, assign=True)
    module.eval().requires_grad_(False)
    if model.device_memory:
        model.device_memory.hold(module, "step")
    return module
