"""Parts of SDXL in files: the keys of each part, and their conversion to the modules' names.

A part is in a whole checkpoint, under a prefix, or alone in a file.

| part | prefix in a checkpoint | layouts |
|---|---|---|
| unet | `model.diffusion_model.` | the original one, or diffusers' |
| vae | `first_stage_model.` | the original one, or diffusers' |
| text_encoder | `conditioner.embedders.0.transformer.` | transformers' |
| text_encoder_2 | `conditioner.embedders.1.model.`, of the refiner `….0.model.` | OpenCLIP's, or
transformers' |
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from diffusers.loaders import single_file_utils

from overpaint.errors import CheckpointError
from overpaint.models.files import key_patterns
from overpaint.models.files.key_patterns import PART_PREFIXES, UNET
from overpaint.models.files.lazy_tensor import LazyTensor
from overpaint.models.files.part_names import PART_NAMES
from overpaint.models.files.safetensors_io import WeightsFile, sample_keys

LONE_PART_KEYS = {
    "unet": key_patterns.UNET_KEYS,
    "vae": key_patterns.VAE_KEYS,
    "text_encoder": key_patterns.TEXT_ENCODER_KEYS,
}
"""Patterns of keys by the kind of a part that is alone in a file."""

LONE_PART_PREFIXES = re.compile(r"^(unet|vae)\.")
"""Prefixes of some files with one part, besides those in checkpoints."""

LEFT_OUT = {
    "unet": r"v_pred|ztsnr",
    "vae": r"loss\..*|model_ema\..*",
    "text_encoder": r"(.*\.)?position_ids|logit_scale|text_projection(\.weight)?",
    "text_encoder_2": r"(.*\.)?position_ids|logit_scale",
}
"""Patterns of keys that files with one part have and Overpaint does not use: the losses and
averages of training, CLIP's contrastive training, and marks that `read_noise_config` reads."""

OLD_ATTENTION_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

Parts = dict[str, dict[str, LazyTensor]]


def find_lone_part(keys: Iterable[str]) -> str | None:
    """Return "unet", "vae" or "text_encoder" for a file that has this part alone."""
    listed = list(keys)
    for kind, pattern in LONE_PART_KEYS.items():
        if any(re.search(pattern, key) for key in listed):
            return kind
    return None


def take_part(weights: WeightsFile, part: str) -> dict[str, LazyTensor]:
    """Return the tensors of a part from its own file, or from a whole checkpoint.

    Args:
        weights: The file.
        part: "unet", "vae", "text_encoder" or "text_encoder_2".

    Returns:
        The tensors under the names of the part's module.

    Raises:
        CheckpointError: The file does not have the part.
    """
    for prefix in PART_PREFIXES[part]:
        inside = {k: v for k, v in weights.tensors.items() if k.startswith(prefix)}
        if inside:
            return convert_part(part, _strip(inside, prefix, part), weights)
    kind = find_lone_part(weights.tensors)
    if kind != part.removesuffix("_2"):
        what = f"a {PART_NAMES[kind]}" if kind in ("unet", "vae") else "something else"
        raise CheckpointError(
            f"{weights.path} is not a {PART_NAMES[part]} but {what}; its keys are "
            f"{sample_keys(weights.tensors, 3) or 'none'}"
        )
    lone = {LONE_PART_PREFIXES.sub("", key): own for key, own in weights.tensors.items()}
    return convert_part(part, _strip(lone, "", part), weights)


def _strip(tensors: Mapping[str, LazyTensor], prefix: str, part: str) -> dict[str, LazyTensor]:
    """Return the tensors without their prefix, and without those that are not used."""
    plain = {key.removeprefix(prefix): own for key, own in tensors.items()}
    return {key: own for key, own in plain.items() if not re.fullmatch(LEFT_OUT[part], key)}


def convert_part(
    part: str, tensors: Mapping[str, LazyTensor], weights: WeightsFile
) -> dict[str, LazyTensor]:
    """Rename the tensors of a part to the names of its module in diffusers or transformers.

    Args:
        part: "unet", "vae", "text_encoder" or "text_encoder_2".
        tensors: The tensors without the prefix of a checkpoint.
        weights: Their file, for messages.

    Raises:
        CheckpointError: A key belongs to nothing in the part, or the conversion needs a missing
            key.
    """
    try:
        converted = _convert(part, tensors, weights)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        # The converters slice and transpose tensors, which may have too few axes.
        raise CheckpointError(f"{weights.path}: a tensor has an unknown shape: {error}") from error
    used = {own.key for own in converted.values()}
    if unknown := [own.key for own in tensors.values() if own.key not in used]:
        raise CheckpointError(
            f"{weights.path}: {len(unknown)} unexpected keys, which belong to no part of SDXL: "
            f"{sample_keys(unknown)}"
        )
    return converted


def _convert(
    part: str, tensors: Mapping[str, LazyTensor], weights: WeightsFile
) -> dict[str, LazyTensor]:
    original = not any(re.match(r"(..coder\.)?down_blocks\.|text_model\.", key) for key in tensors)
    if not original:
        return {_rename_attention(key): own for key, own in tensors.items()}
    [prefix, *_] = PART_PREFIXES[part]
    named: dict[str, Any] = {f"{prefix}{key}": own for key, own in tensors.items()}
    needed: list[str] = []  # The converters need these keys; `check_tensors` names all others.
    if part == "unet":
        stems = [f"{UNET}label_emb.0.{layer}" for layer in (0, 2)]
        needed = [f"{stem}.{leaf}" for stem in stems for leaf in ("weight", "bias")]
    elif part == "text_encoder_2":
        needed = [f"{prefix}text_projection"]
    if missing := [key for key in needed if key not in named]:
        raise CheckpointError(
            f"{weights.path}: {len(missing)} missing keys: {sample_keys(missing)}"
        )
    match part:
        case "unet":
            config: dict[str, Any] = {
                "addition_embed_type": "text_time",
                "layers_per_block": _count_layers(tensors),
            }
            found = single_file_utils.convert_ldm_unet_checkpoint(named, config)
        case "vae":
            levels = [[None] * _count_levels(tensors, side) for side in ("down", "up")]
            config = dict(zip(("down_block_types", "up_block_types"), levels, strict=True))
            found = single_file_utils.convert_ldm_vae_checkpoint(named, config)
        case "text_encoder_2":
            found = single_file_utils.convert_open_clip_checkpoint(None, named, prefix=prefix)
        case _:
            found = dict(tensors)
    return {name: own for name, own in found.items() if own is not None}


def _rename_attention(key: str) -> str:
    """Return the current name of a tensor in a VAE's attention, which diffusers renamed in 2023."""
    stem, found, leaf = key.partition(".mid_block.attentions.0.")
    for old, new in OLD_ATTENTION_NAMES.items():
        if found and leaf.startswith(f"{old}."):
            return f"{stem}{found}{new}.{leaf.removeprefix(f'{old}.')}"
    return key


def _count_layers(tensors: Iterable[str]) -> int:
    """Return the resnets of each down block: those before the first downsampler."""
    places = [int(m[1]) for key in tensors if (m := re.match(r"input_blocks\.(\d+)\.0\.op\.", key))]
    return max(1, min(places, default=3) - 1)


def _count_levels(tensors: Iterable[str], side: str) -> int:
    return len({m[1] for key in tensors if (m := re.match(rf"..coder\.{side}\.(\d+)\.", key))})
