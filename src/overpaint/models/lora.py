"""Read LoRA files in all common namings.

| naming | example of a key |
|---|---|
| kohya, SGM | `lora_unet_input_blocks_4_1_proj_in.lora_down.weight`, `lora_te1_…`, `.alpha` |
| kohya, diffusers | `lora_unet_down_blocks_1_attentions_0_proj_in.lora_down.weight` |
| OneTrainer | `lora_unet.down_blocks.1.…`, `unet.input_blocks.4.1.…`, `clip_l.…` |
| diffusers | `unet.down_blocks.1.attentions.0.proj_in.lora_A.weight`, `text_encoder.…` |
| diffusers, old | `unet.….attn1.processor.to_q_lora.down.weight` |
| cog-sdxl | `down_blocks.1.….attn1.processor.to_q_lora.down.weight` |
| ComfyUI | `diffusion_model.input_blocks.4.1.….lora_up.weight`, `text_encoders.clip_l.…` |
| PEFT | `base_model.model.down_blocks.….lora_A.default.weight` |

An error names each key that matches no layer.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from overpaint.errors import CheckpointError
from overpaint.models.family import OTHER_MODELS_BY_WIDTH
from overpaint.models.files.lazy_tensor import LazyTensor
from overpaint.models.files.lora import keys as lora_keys
from overpaint.models.files.lora import tensors as lora_tensors
from overpaint.models.files.lora.file import open_lora
from overpaint.models.files.lora.peft_config import PeftConfig, read_peft_configs
from overpaint.models.files.lora.peft_folder import compute_lora_digests
from overpaint.models.files.original_layout import to_original_name
from overpaint.models.files.safetensors_io import WeightsFile, sample_keys
from overpaint.nn.lowrank import WeightDelta
from overpaint.nn.packed import list_vector_shapes, list_weight_shapes

if TYPE_CHECKING:
    from overpaint.models.model import Model

FOREIGN_LORAS: tuple[tuple[str, str], ...] = (
    (r"double_blocks|single_transformer_blocks", "Flux"),
    (r"joint_blocks|^transformer\.transformer_blocks", "Stable Diffusion 3"),
    (r"^lora_te_|^lora_unet_.*_attn2_to_k", "Stable Diffusion 1.5 or 2"),
)
"""Patterns of keys that identify LoRAs for other models; the first match counts."""

Shapes = Mapping[str, torch.Size]


@dataclass(frozen=True)
class Target:
    """A module that a LoRA can change.

    Attributes:
        part: "unet", "text_encoder" or "text_encoder_2".
        module: Its name.
        weight: The name of its weight among the changes.
        shapes: The shapes of its weight and bias by their names among the changes.
    """

    part: str
    module: str
    weight: str
    shapes: Shapes

    @property
    def bias(self) -> str:
        """The name of its bias among the changes; the module can lack it."""
        return f"{self.module}.bias"


@dataclass(frozen=True, eq=False)
class LoraWeights:
    """The changes of a LoRA file to a model's weights.

    Attributes:
        name: The name that the user gave.
        sha256: The digest of the file, or of the configs and weights of a PEFT folder.
        tensors_sha256: The digest of the file without its header, which other programs use.
        changes: The change of each weight, by part ("unet", "text_encoder", "text_encoder_2") and
            module name. Biases and the weights of norms have the names of
            `packed.list_vector_shapes`.
        metadata: The metadata in the file's header.
        unused: Keys that match no layer, if they were allowed.
        file: The name of the file that the user added or has.
    """

    name: str
    sha256: str
    tensors_sha256: str
    changes: Mapping[str, Mapping[str, WeightDelta]]
    metadata: Mapping[str, str]
    unused: tuple[str, ...] = ()
    file: str = ""


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
    file = open_lora(Path(name))
    keys = {key: lora_keys.split_lora_key(key) for key in file.tensors}
    bundled = [key for key in keys if lora_keys.split_bundled_key(key)]
    targets = _list_targets(model)
    grouped: dict[str, dict[str, str]] = defaultdict(dict)
    for key, split in keys.items():
        if (
            split is not None
            and lora_keys.flatten_name(split[0]) in targets
            and _is_role(key, split[1], keys)
        ):
            grouped[split[0]].setdefault(split[1], key)
    if not grouped:
        raise CheckpointError(f"{file.path}: {_describe_foreign(file)}")
    used = {key for roles in grouped.values() for key in roles.values()}
    unused = tuple(key for key in keys if key not in used and key not in bundled)
    if unused and not lenient:
        raise CheckpointError(f"{file.path}: {_describe_unused(unused, model.name)}")
    configs = read_peft_configs(file.metadata, file.path)
    changes: dict[str, dict[str, WeightDelta]] = defaultdict(dict)
    for stem, roles in grouped.items():
        tensors = {role: _read_finite(file, key) for role, key in roles.items()}
        candidates = targets[lora_keys.flatten_name(stem)]
        try:
            made = _make_changes(stem, tensors, candidates, configs, file)
        except (IndexError, RuntimeError, ValueError) as error:  # a tensor has too few axes
            raise CheckpointError(f"{file.path}: {stem} is damaged: {error}") from error
        for part, module, change in made:
            if module in changes[part]:
                raise CheckpointError(
                    f"{file.path} changes {module} of the {part} twice, under two names; the file "
                    "is damaged"
                )
            changes[part][module] = change
    whole, inner = compute_lora_digests(file.path, file.metadata)
    return LoraWeights(str(name), whole, inner, dict(changes), dict(file.metadata), unused)


def _is_role(key: str, role: str, keys: Mapping[str, object]) -> bool:
    """Return whether a key has its role; `.weight` alone is IA3's only beside `.on_input`."""
    return role != "factors" or f"{key.removesuffix('.weight')}.on_input" in keys


def _read_finite(file: WeightsFile, key: str) -> Tensor:
    stored: LazyTensor = file.tensors[key]
    if 0 in stored.shape:
        raise CheckpointError(f"{file.path}: {key} is empty; the file is damaged")
    tensor = stored.read()
    if tensor.dtype.itemsize == 1 and tensor.is_floating_point():
        tensor = tensor.half()  # torch does not compute in 8 bits
    if not tensor.is_floating_point() and tensor.numel() > 1:  # an alpha can be a whole number
        raise CheckpointError(
            f"{file.path}: {key} holds whole numbers ({tensor.dtype}), which need a scale; give a "
            "file with floating-point numbers"
        )
    if not tensor.isfinite().all():
        raise CheckpointError(
            f"{file.path}: {key} holds numbers that are not finite; the file is damaged"
        )
    if "lora_magnitude_vector" in key:
        tensor = tensor.flatten()  # PEFT's, of a convolution: [1, out, 1, 1]
    return tensor


def _list_targets(model: "Model") -> dict[str, list[Target]]:
    """Map each flat name of a module in a file to the modules that it can mean."""
    found: dict[str, list[Target]] = defaultdict(list)
    unet: Any = model.unet
    layers = int(unet.config["layers_per_block"])
    attends = tuple(hasattr(block, "attentions") for block in unet.up_blocks)
    for target in _list_modules("unet", unet):
        original = to_original_name(target.module, layers=layers, attends=attends)
        for alias in lora_keys.list_unet_aliases(target.module, original):
            found[alias].append(target)
    for part, encoder in model.encoders_by_part.items():
        number = 2 if part.endswith("2") else 1
        for target in _list_modules(part, encoder.model):
            for alias in lora_keys.list_encoder_aliases(target.module, number):
                found[alias].append(target)
    return found


def _list_modules(part: str, network: nn.Module) -> Iterator[Target]:
    """Yield the modules of a network that have a weight."""
    weights, vectors = list_weight_shapes(network), list_vector_shapes(network)
    norms = [name.removesuffix(".weight") for name in vectors if name.endswith(".weight")]
    for name in (*weights, *norms):
        weight = name if name in weights else f"{name}.weight"
        shapes = {weight: weights.get(weight) or vectors[weight]}
        if f"{name}.bias" in vectors:
            shapes[f"{name}.bias"] = vectors[f"{name}.bias"]
        yield Target(part, name, weight, shapes)


def _make_changes(
    stem: str,
    tensors: Mapping[str, Tensor],
    candidates: Iterable[Target],
    configs: Mapping[str, PeftConfig],
    file: WeightsFile,
) -> list[tuple[str, str, WeightDelta]]:
    """Return the changes of a module as part, name and change.

    A file of PEFT does not say which text encoder it is for: the first candidate counts into which
    the changes fit.
    """
    faults: list[CheckpointError] = []
    for target in candidates:
        config = configs.get(target.part) or configs.get("") or PeftConfig()
        default = partial(config.get_scale, _name_in_peft(target))
        scale = lora_tensors.make_scale(tensors, default)
        try:
            made = {
                target.weight: lora_tensors.make_weight_change(stem, tensors, scale),
                target.bias: lora_tensors.make_bias_change(stem, tensors, scale),
            }
        except CheckpointError as error:
            raise CheckpointError(f"{file.path}: {error}") from error
        try:
            return [
                (target.part, name, _check_shape(stem, change, target.shapes.get(name), file))
                for name, change in made.items()
                if change is not None
            ]
        except CheckpointError as error:
            faults.append(error)
    raise faults[0]


def _name_in_peft(target: Target) -> str:
    """Return the module's name that the patterns of PEFT's config are for."""
    if target.part == "unet" or target.module.startswith(("text_model.", "text_projection")):
        return target.module
    return f"text_model.{target.module}"  # transformers 5 leaves it out


def _check_shape(
    stem: str, change: WeightDelta, shape: torch.Size | None, file: WeightsFile
) -> WeightDelta:
    """Return a change.

    Raises:
        CheckpointError: It does not fit the shape of its weight, or the module has no such weight.
    """
    if shape is None:
        raise CheckpointError(f"{file.path}: {stem} has no bias, but the LoRA changes it")
    try:
        change.to_dense(torch.empty(shape, device="meta"))
    except (ValueError, RuntimeError, IndexError) as error:
        raise CheckpointError(
            f"{file.path}: {stem} does not fit a weight of {list(shape)}: {error}. "
            f"{_describe_foreign(file)}"
        ) from error
    return change


def _describe_unused(unused: tuple[str, ...], model: str) -> str:
    if what := lora_keys.describe_foreign_adapter(unused):
        return f"this is, at least in part, {what}, which Overpaint cannot read"
    return (
        f"{len(unused)} keys match no layer of {model}: {sample_keys(unused)}. "
        "Load the LoRA leniently to ignore them."
    )


def _describe_foreign(file: WeightsFile) -> str:
    """Describe a file that is not a LoRA for this model."""
    if what := lora_keys.describe_foreign_adapter(file.tensors):
        return f"this is {what}, which Overpaint cannot read"
    widths = {
        stored.shape[1]
        for key, stored in file.tensors.items()
        if stored.ndim > 1 and _reads_prompt(key)
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


def _reads_prompt(key: str) -> bool:
    """Return whether a key is that of a factor whose width is the width of prompts."""
    layer = re.search(r"attn2.to_k", key)
    # One pattern for both would search the rest of a long key again after each layer's name.
    return bool(layer and re.search(r"lora_down|lora_A|lora\.down", key[layer.end() :]))


def get_part(model: "Model", part: str) -> nn.Module:
    """Return the module of a model part."""
    if part == "unet":
        return model.unet
    return model.encoders_by_part[part].model
