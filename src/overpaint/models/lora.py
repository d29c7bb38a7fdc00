"""Read LoRA files in all common namings.

| naming | example of a key |
|---|---|
| kohya, SGM | `lora_unet_input_blocks_4_1_proj_in.lora_down.weight`, `lora_te1_…`, `.alpha` |
| kohya, diffusers | `lora_unet_down_blocks_1_attentions_0_proj_in.lora_down.weight` |
| diffusers | `unet.down_blocks.1.attentions.0.proj_in.lora_A.weight`, `text_encoder.…` |
| diffusers, old | `unet.….attn1.processor.to_q_lora.down.weight` |
| PEFT | `base_model.model.down_blocks.….lora_A.default.weight` |

An error names each key that matches no layer.
"""

import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from overpaint.errors import CheckpointError
from overpaint.models.family import OTHER_MODELS_BY_WIDTH
from overpaint.models.files.digests import compute_sha256, compute_tensors_sha256
from overpaint.models.files.original_layout import to_original_name
from overpaint.models.files.safetensors_io import WeightsFile, open_weights, sample_keys
from overpaint.nn.lowrank import Dora, FullDelta, Loha, Lokr, LowRank, WeightDelta
from overpaint.nn.packed import list_weight_shapes

if TYPE_CHECKING:
    from overpaint.models.model import Model


LEAF_NAMES: dict[str, str] = {
    r"lora_down\.weight|lora_A(\.\w+)?\.weight|lora\.down\.weight|lora_linear_layer\.down\.weight"
    r"|lora_A": "down",
    r"lora_up\.weight|lora_B(\.\w+)?\.weight|lora\.up\.weight|lora_linear_layer\.up\.weight"
    r"|lora_B": "up",
    r"lora_mid\.weight": "mid",
    r"alpha": "alpha",
    r"dora_scale|lora_magnitude_vector(\.\w+)?(\.weight)?": "magnitude",
    r"(hada_w[12]_[ab]|hada_t[12]|lokr_w[12](_[ab])?|lokr_t2)": "",
    r"diff": "diff",
}
"""Patterns of key suffixes, and the names for them in this module; "" keeps the suffix."""

_LEAF = re.compile(r"(?P<stem>.+?)\.(?P<leaf>" + "|".join(f"(?:{p})" for p in LEAF_NAMES) + r")$")

FOREIGN_LORAS: tuple[tuple[str, str], ...] = (
    (r"double_blocks|single_transformer_blocks", "Flux"),
    (r"joint_blocks|^transformer\.transformer_blocks", "Stable Diffusion 3"),
    (r"^lora_te_|^lora_unet_.*_attn2_to_k", "Stable Diffusion 1.5 or 2"),
)
"""Patterns of keys that identify LoRAs for other models; the first match counts."""


@dataclass(frozen=True, eq=False)
class LoraWeights:
    """The changes of a LoRA file to a model's weights.

    Attributes:
        name: The name that the user gave.
        sha256: The digest of the file.
        tensors_sha256: The digest of the file without its header, which other programs use.
        changes: The change of each weight, by part ("unet", "text_encoder", "text_encoder_2") and
            module name.
        metadata: The metadata in the file's header.
        unused: Keys that match no layer, if they were allowed.
    """

    name: str
    sha256: str
    tensors_sha256: str
    changes: Mapping[str, Mapping[str, WeightDelta]]
    metadata: Mapping[str, str]
    unused: tuple[str, ...] = ()


def load_lora(name: str | PathLike[str], model: "Model", *, lenient: bool = False) -> LoraWeights:
    """Read a LoRA for a model.

    Args:
        name: The file.
        model: The model to change.
        lenient: Whether to allow keys that match no layer. `LoraWeights.unused` lists them.

    Raises:
        CheckpointError: The file is not a LoRA or is for another model. Or it is damaged: a number
            is not finite, half of a pair is missing, or a key matches no layer.
    """
    file = open_weights(Path(name))
    grouped, odd = _group_tensors(file)
    targets = _list_targets(model)
    known = {stem: leaves for stem, leaves in grouped.items() if stem in targets}
    lost = [f"{stem}.{leaf}" for stem in grouped if stem not in known for leaf in grouped[stem]]
    if not known:
        raise CheckpointError(f"{file.path}: {_describe_foreign(file)}")
    unused = (*odd, *lost)
    if unused and not lenient:
        raise CheckpointError(
            f"{file.path}: {len(unused)} keys match no layer of {model.name}: "
            f"{sample_keys(unused)}. Load the LoRA leniently to ignore them."
        )
    changes: dict[str, dict[str, WeightDelta]] = defaultdict(dict)
    alphas = _read_peft_alpha(file)
    for stem, leaves in known.items():
        part, module, shape = targets[stem]
        try:
            change = _make_change(stem, leaves, alphas)
        except (IndexError, RuntimeError, ValueError) as error:  # a tensor has too few axes
            raise CheckpointError(f"{file.path}: {stem} is damaged: {error}") from error
        _check_shape(stem, change, shape, file)
        changes[part][module] = change
    whole, inner = compute_sha256((file.path,)), compute_tensors_sha256(file.path, file.metadata)
    return LoraWeights(str(name), whole, inner, dict(changes), dict(file.metadata), unused)


def _group_tensors(file: WeightsFile) -> tuple[dict[str, dict[str, Tensor]], list[str]]:
    """Return the tensors by module and suffix, and the keys with unknown suffixes."""
    grouped: dict[str, dict[str, Tensor]] = defaultdict(dict)
    odd: list[str] = []
    for key, stored in file.tensors.items():
        plain = re.sub(r"\.processor\.to_(\w+)_lora\.", r".to_\1.lora.", key)
        plain = plain.replace(".to_out.lora.", ".to_out.0.lora.")
        if not (match := _LEAF.fullmatch(plain)):
            odd.append(key)
            continue
        if 0 in stored.shape:
            raise CheckpointError(f"{file.path}: {key} is empty; the file is damaged")
        tensor = stored.read()
        if tensor.dtype.itemsize == 1:
            tensor = tensor.half()  # torch does not compute in 8 bits
        if not tensor.isfinite().all():
            raise CheckpointError(
                f"{file.path}: {key} holds numbers that are not finite; the file is damaged"
            )
        leaf = match["leaf"]
        if leaf.startswith("lora_magnitude_vector"):
            tensor = tensor.flatten()  # PEFT's, of a convolution: [1, out, 1, 1]
        named = next(name for pattern, name in LEAF_NAMES.items() if re.fullmatch(pattern, leaf))
        grouped[match["stem"].removeprefix("base_model.model.")][named or leaf] = tensor
    return grouped, odd


def _list_targets(model: "Model") -> dict[str, tuple[str, str, torch.Size]]:
    """Map each possible name of a module in a file to its part, name and weight shape."""
    found: dict[str, tuple[str, str, torch.Size]] = {}
    unet: Any = model.unet
    layers = int(unet.config["layers_per_block"])
    attends = tuple(hasattr(block, "attentions") for block in unet.up_blocks)
    for name, shape in list_weight_shapes(unet).items():
        target = ("unet", name, shape)
        original = to_original_name(name, layers=layers, attends=attends)
        aliases = (
            name,
            f"unet.{name}",
            f"lora_unet_{_flatten_name(name)}",
            f"lora_unet_{_flatten_name(original)}",
        )
        found |= dict.fromkeys(aliases, target)
    for part, encoder in model.encoders_by_part.items():
        number = 2 if part.endswith("2") else 1
        for name, shape in list_weight_shapes(encoder.model).items():
            target = (part, name, shape)
            inner = name.removeprefix("text_model.")
            named = inner if inner.startswith("text_projection") else f"text_model.{inner}"
            # without "text_model." since transformers 5
            aliases = (
                f"{part}.{named}",
                f"{part}.{inner}",
                f"lora_te{number}_{_flatten_name(named)}",
            )
            found |= dict.fromkeys(aliases, target)
    return found


def _flatten_name(name: str) -> str:
    return name.replace(".", "_")


def _read_peft_alpha(file: WeightsFile) -> float | None:
    """Read α from PEFT's config in the metadata, which diffusers writes; None without it."""
    try:
        config: Any = json.loads(file.metadata.get("lora_adapter_metadata", "{}"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(config, dict):
        raise CheckpointError(f"{file.path}: lora_adapter_metadata is not a map of settings")
    named: dict[str, Any] = config
    values = [v for k, v in named.items() if k == "lora_alpha" or k.endswith(".lora_alpha")]
    if values and not (isinstance(values[0], int | float) and math.isfinite(values[0])):
        raise CheckpointError(f"{file.path}: lora_alpha is {str(values[0])[:40]}, not a number")
    return float(values[0]) if values else None


def _make_change(stem: str, leaves: Mapping[str, Tensor], alpha: float | None) -> WeightDelta:
    """Make the change of a module's weight from its tensors.

    Raises:
        CheckpointError: A tensor is missing.
    """
    alpha = leaves["alpha"].float().item() if "alpha" in leaves else alpha
    change = _make_plain_change(stem, leaves, alpha)
    if "magnitude" in leaves:
        return Dora(change, leaves["magnitude"])
    return change


def _make_plain_change(stem: str, leaves: Mapping[str, Tensor], alpha: float | None) -> WeightDelta:
    def take(*names: str) -> list[Tensor]:
        if missing := [name for name in names if name not in leaves]:
            raise CheckpointError(f"{stem} has no {missing[0]}; the file is damaged")
        return [leaves[name] for name in names]

    if "diff" in leaves:
        return FullDelta(leaves["diff"])
    if "down" in leaves or "up" in leaves:
        down, up = take("down", "up")
        rank = down.shape[0]
        if up.shape[1] != rank or rank > max(up.shape[0], down[0].numel()):
            raise CheckpointError(
                f"{stem} has rank {up.shape[1]} up and {rank} down, for "
                f"{down[0].numel()} inputs and {up.shape[0]} outputs; the file is damaged"
            )
        return LowRank(down, up, _alpha_over_rank(alpha, rank), leaves.get("mid"))
    if any(name.startswith("hada_") for name in leaves):
        names = [f"hada_w{i}_{x}" for i in (1, 2) for x in "ab"]
        first_b, first_a, second_b, second_a = take(*names)
        scale = _alpha_over_rank(alpha, first_a.shape[0])
        cores = (leaves.get(f"hada_t{i}") for i in (1, 2))
        one, two = zip(((first_b, first_a), (second_b, second_a)), cores, strict=True)
        return Loha((*one[0], one[1]), (*two[0], two[1]), scale)
    if any(name.startswith("lokr_") for name in leaves):
        return _make_kronecker(leaves, take, alpha)
    raise CheckpointError(f"{stem} has only {', '.join(leaves)}; the file is damaged")


def _make_kronecker(leaves: Mapping[str, Tensor], take: Any, alpha: float | None) -> Lokr:
    parts: list[tuple[Tensor, ...]] = []
    ranks: list[int] = []
    for i in (1, 2):
        if f"lokr_w{i}" in leaves:
            parts.append((leaves[f"lokr_w{i}"],))
            continue
        b, a = take(f"lokr_w{i}_a", f"lokr_w{i}_b")
        core = leaves.get("lokr_t2") if i == 2 else None
        parts.append((b, a) if core is None else (b, a, core))
        ranks.append(a.shape[0])
    return Lokr(parts[0], parts[1], _alpha_over_rank(alpha, ranks[-1]) if ranks else 1.0)


def _alpha_over_rank(alpha: float | None, rank: int) -> float:
    return 1.0 if alpha is None else alpha / rank


def _check_shape(stem: str, change: WeightDelta, shape: torch.Size, file: WeightsFile) -> None:
    """Raise CheckpointError unless a change fits the shape of its weight."""
    try:
        change.to_dense(torch.empty(shape, device="meta"))
    except (IndexError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{file.path}: {stem} does not fit a weight of {list(shape)}: {error}. "
            f"{_describe_foreign(file)}"
        ) from error


def _describe_foreign(file: WeightsFile) -> str:
    """Describe a file that is not a LoRA for this model."""
    widths = {
        stored.shape[1]
        for key, stored in file.tensors.items()
        if stored.ndim > 1 and re.search(r"attn2.to_k.*(lora_down|lora_A|lora\.down)", key)
    }
    for width in widths:
        if width in OTHER_MODELS_BY_WIDTH:
            return f"this is a LoRA for {OTHER_MODELS_BY_WIDTH[width]}; Overpaint runs SDXL"
        if width == 2048:
            return "this is a LoRA for SDXL, whose prompts are 2048 wide"
    for pattern, what in FOREIGN_LORAS:
        if any(re.search(pattern, key) for key in file.tensors):
            return f"this is a LoRA for {what}; Overpaint runs SDXL"
    keys = sample_keys(file.tensors) or "none"
    return f"this is not a LoRA that Overpaint knows; its keys are {keys}"


def get_part(model: "Model", part: str) -> nn.Module:
    """Return the module of a model part."""
    if part == "unet":
        return model.unet
    return model.encoders_by_part[part].model
