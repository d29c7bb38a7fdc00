"""Configs of diffusers folders, and the size of pictures that a model draws, without torch."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from overpaint.errors import CheckpointError
from overpaint.models.family import FAMILIES, Configs, parse_configs, recognize_family
from overpaint.models.files.config_limits import check_config
from overpaint.models.files.json_config import read_json_config
from overpaint.models.files.part_names import PART_NAMES, describe_missing_parts
from overpaint.models.library.describe import Header, find_kind, list_parts, read_header
from overpaint.models.library.entry import NAME_PATTERN

TOKENIZER_FOLDERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
"""The text encoders, and the folders of their tokenizers."""

REFINER_CONTEXT_WIDTH = 1280
"""The width of the cross-attention in the refiner's UNet, which reads the second encoder only."""


def read_native_size(path: Path, parts: Collection[str] = ()) -> int:
    """Return the side in pixels of the pictures that a checkpoint was trained on, from its files.

    Args:
        path: A diffusers folder, or a .safetensors file in SDXL's original layout.
        parts: Parts that come from their own files.

    Raises:
        CheckpointError: The files are not those of a checkpoint, lack a part, or are damaged.
    """
    if path.is_dir():
        configs = read_folder_configs(path)
        recognize_family(configs.unet, len(configs.text_encoders))  # raises for other models
        return get_native_size(configs)
    header = read_header(path)
    if (kind := find_kind(header)) not in ("checkpoint", "unet"):
        raise CheckpointError(f"{path} is {kind or 'of an unknown kind'}, not a checkpoint")
    has = {"unet"} if kind == "unet" else set(list_parts(header.shapes))
    if missing := [part for part in _list_needed_parts(header) if part not in has | set(parts)]:
        raise CheckpointError(describe_missing_parts(path, missing))
    return FAMILIES["sdxl"].native_size  # All families that have single files draw this size.


def _list_needed_parts(header: Header) -> tuple[str, ...]:
    """Return the parts that a checkpoint needs; the refiner has no first text encoder."""
    widths = (shape for key, shape in header.shapes.items() if key.endswith("attn2.to_k.weight"))
    if REFINER_CONTEXT_WIDTH in [shape[1] for shape in widths if len(shape) > 1]:
        return ("unet", "vae", "text_encoder_2")
    return tuple(PART_NAMES)


def read_folder_configs(folder: Path) -> Configs:
    """Read the configs of a diffusers folder.

    Raises:
        CheckpointError: A config is missing or unreadable, or the folder is of another kind.
    """
    if not (folder / "model_index.json").is_file():
        raise CheckpointError(
            f"{folder} is not a diffusers folder: it has no model_index.json. A folder with one "
            "part of a model goes to --unet, --vae, --text-encoder or --text-encoder-2."
        )
    index = read_json_config(folder / "model_index.json")
    encoders = [part for part in TOKENIZER_FOLDERS if _has_part(index, part)]
    if missing := [part for part in ("unet", "vae") if part not in index]:
        kind = index.get("_class_name", "folder")
        raise CheckpointError(f"{folder} is a {kind} without {missing[0]}; Overpaint runs SDXL")
    where = {part: locate_part(folder, part, index) for part in ("unet", "vae", *encoders)}
    parts = {part: read_json_config(own / "config.json") for part, own in where.items()}
    scheduler = read_json_config(locate_part(folder, "scheduler", index) / "scheduler_config.json")
    try:
        for part, config in (*parts.items(), ("scheduler", scheduler)):
            check_config(config, part)
        return parse_configs(parts | {"scheduler": scheduler, "model_index": index})
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from error


def locate_part(folder: Path, part: str, index: Mapping[str, Any]) -> Path:
    """Return the path of a part: in the folder, or in a sibling folder that shares its parts.

    Overpaint adds the key `_shares_with` to model_index.json, so that the miniature's inpainting
    model and refiner need no copies of the autoencoder and text encoders.
    """
    own, shared = folder / part, index.get("_shares_with")
    if own.exists() or shared is None:
        return own
    if not isinstance(shared, str) or not NAME_PATTERN.fullmatch(shared):
        raise CheckpointError(f"{folder}: _shares_with must be the name of a folder beside it")
    return folder.parent / shared / part


def _has_part(index: Mapping[str, Any], part: str) -> bool:
    """Return whether a model index has a part: a library and a class, which can be null."""
    entry = index.get(part)
    return isinstance(entry, list) and bool(entry) and entry[0] is not None


def get_native_size(configs: Configs) -> int:
    """Return the side in pixels of the pictures that a checkpoint was trained on."""
    side = configs.unet.get("sample_size")
    if not isinstance(side, int):
        return configs.family.native_size
    return side * 2 ** (len(configs.vae["block_out_channels"]) - 1)
