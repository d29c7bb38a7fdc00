"""Control nets from files: what a file is, by its keys, and the module that it becomes.

| kind | known by |
|---|---|
| ControlNet: full, mid, small | `controlnet_cond_embedding.*`, originally `input_hint_block.*` |
| union net (six types) and ProMax (eight) | the same, and `task_embedding` |
| Control-LoRA | `lora_controlnet`: low-rank changes to a copy of the UNet's encoder |
| T2I-Adapter | `adapter.*`, or the original `body.*` |
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from diffusers.models.adapter import T2IAdapter
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.controlnets.controlnet_union import ControlNetUnionModel
from torch import Tensor, nn

from overpaint.errors import CheckpointError
from overpaint.models.adapters import get_adapter_merger
from overpaint.models.files import weight_variants
from overpaint.models.files.digests import compute_sha256
from overpaint.models.files.original_layout import to_original_name
from overpaint.models.files.safetensors_io import LazyTensor, fill_module, open_weights, sample_keys
from overpaint.models.library import catalog
from overpaint.nn.blocks import install_blocks
from overpaint.nn.packed import pack_network, unpacked_state
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
"""What a control net's config has in common with that of its UNet."""

FUSER_HEADS = 8
"""Of a union net's fuser, which its weights do not tell: 8 in all that are published."""


@dataclass(frozen=True, eq=False)
class ControlNet:
    """A control net on a device.

    Attributes:
        name: as the user gave it.
        sha256: of its weights.
        kind: how it is run.
        module: what is run at every step; an adapter's, once for a hint.
        embedding: what turns hints into the first features, taken out of the module so that it is
            run once for a hint; an adapter has none.
        types: control types that a union net knows; 0 for others.
    """

    name: str
    sha256: str
    kind: ControlNetKind
    module: Any
    embedding: nn.Module | None
    types: int = 0

    @torch.inference_mode()
    def extract_features(self, hint: Tensor) -> tuple[Tensor, ...]:
        """The features of a hint [1, 3, H, W] in 0..1: they are the same at every step.

        Returns:
            An adapter's at each level, in the module's dtype; else one, of the latent's size.
        """
        seen = hint.to(self.module.device, self.module.dtype)
        if self.embedding is None:
            return tuple(self.module(seen))
        return (self.embedding(seen),)


def load_controlnet(name: str | PathLike[str], model: "Model") -> ControlNet:
    """Load a control net for a model, on its device and in its dtype.

    Args:
        name: a .safetensors file, a diffusers folder, or a name of the catalogue.
        model: it is to steer.

    Raises:
        ModelNotFoundError: no such net.
        CheckpointError: it is none, of another family, or damaged.
    """
    path = catalog.resolve_controlnet(str(name))
    file = _find_weights(path)
    tensors: Tensors = open_weights(file).tensors
    try:
        module, kind = _build_module(tensors, model)
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from error
    embedding: nn.Module | None = None
    types = 0
    if kind != "adapter":
        install_blocks(module)
        pack_network(module.down_blocks)
        pack_network(module.mid_block)
        embedding = module.controlnet_cond_embedding
        module.controlnet_cond_embedding = nn.Identity()
    if isinstance(module, ControlNetUnionModel):
        isolate_rows(module)
        types = int(module.config["num_control_type"])
    return ControlNet(str(name), compute_sha256((file,)), kind, module, embedding, types)


def _find_weights(path: Path) -> Path:
    """The file of a net's weights: itself, or the one in its folder."""
    if path.is_file():
        return path
    names = weight_variants.choose_weight_files([entry.name for entry in path.iterdir()], half=True)
    if len(names) > 1:
        raise CheckpointError(f"{path}: a control net in {len(names)} shards; give one file")
    return path / names[0]


def _build_module(tensors: Tensors, model: "Model") -> tuple[Any, ControlNetKind]:
    """The module that the tensors make, for a model."""
    if any(re.match(r"(adapter\.)?body\.\d", key) for key in tensors):
        return _build_adapter(tensors, model), "adapter"
    if "lora_controlnet" in tensors:
        return _build_control_lora(tensors, model), "controlnet"
    prefix = "control_model."
    plain = {key.removeprefix(prefix): stored for key, stored in tensors.items()}
    if "input_hint_block.0.weight" not in plain and f"{HINT_EMBEDDING}.conv_in.weight" not in plain:
        raise CheckpointError(
            f"this is no control net that Overpaint knows; its keys are {sample_keys(tensors)}"
        )
    original = "input_hint_block.0.weight" in plain
    time = "label_emb.0.0.weight" if original else "add_embedding.linear_1.weight"
    if time not in plain:
        raise CheckpointError(
            "a control net without size ids, for Stable Diffusion 1.5 or 2; Overpaint runs SDXL's"
        )
    union = "task_embedding" in plain
    config = _infer_original_config(plain, model) if original else _infer_config(plain, model)
    kind = ControlNetUnionModel if union else ControlNetModel
    with torch.device("meta"):
        module: Any = kind(**config)
    if original:
        plain = _rename_tensors(plain, module)
    _fill(module, plain, model)
    return module, "union" if union else "controlnet"


def _fill(module: nn.Module, tensors: Tensors, model: "Model") -> None:
    fill_module(
        module,
        tensors,
        part="control net",
        device=model.device,
        dtype=model.dtype,
        channels_last=model.device.type in ("cpu", "cuda"),
    )


def _rename_tensors(plain: Tensors, module: Any) -> dict[str, LazyTensor]:
    """Tensors of the original layout by diffusers' names; those that belong nowhere keep theirs."""
    layers = int(module.config["layers_per_block"])
    names = {to_original_name(name, layers=layers): name for name in module.state_dict()}
    return {names.get(key, key): stored for key, stored in plain.items()}


def _infer_config(plain: Mapping[str, Any], model: "Model") -> dict[str, Any]:
    """A control net's config, from its keys and the UNet that it is for."""
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
    last = depths[-1] if middle is None else middle  # the middle is as deep as the last block
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
    """As `_config`, of the original layout: its attention is told by other names."""
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
    """How many transformer blocks an attention has; None where there is no attention."""
    if f"{stem}.norm.weight" not in plain:
        return None
    return _count_matches(plain, re.escape(stem) + r"\.transformer_blocks\.(\d+)\.")


def _count_matches(plain: Mapping[str, Any], pattern: str) -> int:
    found = (re.match(pattern, key) for key in plain)
    return max((int(match[1]) + 1 for match in found if match), default=0)


def _build_adapter(tensors: Tensors, model: "Model") -> Any:
    named = {f"adapter.{key.removeprefix('adapter.')}": stored for key, stored in tensors.items()}
    if (first := named.get("adapter.conv_in.weight")) is None:
        raise CheckpointError("a T2I-Adapter without conv_in; it is damaged")
    factor = round((first.shape[1] / 3) ** 0.5)
    if factor != 2 * model.vae_factor:
        raise CheckpointError(
            f"a T2I-Adapter that shrinks hints {factor}-fold, for Stable Diffusion 1.5; "
            "Overpaint runs SDXL's"
        )
    channels = [
        named[f"adapter.body.{level}.resnets.0.block1.weight"].shape[0]
        for level in range(_count_matches(named, r"adapter\.body\.(\d+)\."))
    ]
    depth = _count_matches(named, r"adapter\.body\.0\.resnets\.(\d+)\.")
    with torch.device("meta"):
        module = T2IAdapter(3, channels, depth, factor, "full_adapter_xl")
    _fill(module, named, model)
    return module


def _build_control_lora(tensors: Tensors, model: "Model") -> Any:
    """A ControlNet of the UNet's own encoder, changed as the file says: W + up · down."""
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
    )  # or a LoRA of the request before would stay in the copy
    base = unpacked_state(model.unet)
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
            value = base[name].float()
            if name == "conv_in.weight":  # an inpainting UNet sees more than the latent
                value = value[:, : expected.shape[1]]
            if changes[0] in plain:
                up, down = (plain[key].read().float().flatten(1) for key in changes)
                value = value + (up.to(value.device) @ down.to(value.device)).view_as(value)
                unused.difference_update(changes)
        else:
            raise CheckpointError(f"a Control-LoRA without {original}; it is damaged")
        if value.shape != expected.shape:
            raise CheckpointError(
                f"{original} is {list(value.shape)}, expected {list(expected.shape)}: "
                "a Control-LoRA for another UNet"
            )
        state[name] = value.to(model.device, model.dtype)
    if unused:
        raise CheckpointError(
            f"{len(unused)} keys that belong nowhere: {sample_keys(sorted(unused))}"
        )
    module.load_state_dict(state, assign=True)
    return module.eval().requires_grad_(False)
