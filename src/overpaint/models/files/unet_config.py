"""Infer the config of a UNet from its tensors.

SDXL's smaller relatives have other blocks: SSD-1B and Segmind-Vega have fewer transformer layers
and no attention in the middle, KOALA has one resnet less in each block and, at 700 million
parameters, no middle block at all. A file does not name its kind, but its keys show the blocks.
"""

import re
from collections.abc import Mapping
from typing import Any

from overpaint.errors import CheckpointError
from overpaint.models.files.config_limits import check_config
from overpaint.models.files.lazy_tensor import LazyTensor

Depths = list[int]


def infer_unet_config(tensors: Mapping[str, LazyTensor], base: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of a UNet.

    Args:
        tensors: The UNet's tensors under diffusers' names. Only their names and shapes are used.
        base: The config of another UNet of the family, for all that the tensors do not show.

    Raises:
        CheckpointError: The blocks are none that diffusers can build.
    """
    levels = _count(tensors, r"down_blocks\.(\d+)\.")
    layers = _count(tensors, r"down_blocks\.0\.resnets\.(\d+)\.")
    if not levels or not layers:
        return dict(base)  # `check_tensors` names the missing keys
    down = [_list_depths(tensors, f"down_blocks.{i}", layers) for i in range(levels)]
    up = [_list_depths(tensors, f"up_blocks.{i}", layers + 1) for i in range(levels)]
    middle = _count_transformer_blocks(tensors, "mid_block.attentions.0")
    per_block = [_join_depths(depths) for depths in down]
    if not any(down[-1]):
        per_block[-1] = middle or 1  # diffusers reads the depth of the middle block there
    channels = [
        _get_size(tensors, f"down_blocks.{i}.resnets.0.conv1.weight", 0) for i in range(levels)
    ]
    config: dict[str, Any] = dict(base) | {
        "layers_per_block": layers,
        "down_block_types": ["CrossAttnDownBlock2D" if any(d) else "DownBlock2D" for d in down],
        "up_block_types": ["CrossAttnUpBlock2D" if any(d) else "UpBlock2D" for d in up],
        "transformer_layers_per_block": per_block,
    }
    if all(channels):
        config["block_out_channels"] = channels
        config["attention_head_dim"] = _list_heads(channels, base)
    mirrored = zip(up, per_block[::-1], strict=True)
    if any(any(own) and _join_depths(own) != other for own, other in mirrored):
        config["reverse_transformer_layers_per_block"] = [_join_depths(depths) for depths in up]
    if not any(key.startswith("mid_block.") for key in tensors):
        config["mid_block_type"] = None
    elif not middle:
        config["mid_block_type"] = "UNetMidBlock2D"
    elif any(down[-1]) and middle != max(down[-1]):
        raise CheckpointError(
            f"The UNet has {middle} transformer layers in its middle block and {max(down[-1])} in "
            "the block before it; Overpaint builds UNets in which both are equal"
        )
    if width := _get_size(tensors, "time_embedding.cond_proj.weight", 1):
        config["time_cond_proj_dim"] = width
    check_config(config, "unet")
    return config


def _get_size(tensors: Mapping[str, LazyTensor], key: str, axis: int) -> int:
    own = tensors.get(key)
    return own.shape[axis] if own is not None and own.ndim > axis else 0


def _count(tensors: Mapping[str, Any], pattern: str) -> int:
    """Return the number of modules whose numbers are group 1 of a pattern."""
    found = {int(match[1]) for key in tensors if (match := re.match(pattern, key))}
    return max(found, default=-1) + 1


def _count_transformer_blocks(tensors: Mapping[str, Any], stem: str) -> int:
    return _count(tensors, rf"{re.escape(stem)}\.transformer_blocks\.(\d+)\.")


def _list_depths(tensors: Mapping[str, Any], block: str, layers: int) -> Depths:
    """Return the transformer layers after each resnet of a block.

    Raises:
        CheckpointError: Some resnets have attention, and others have none.
    """
    stems = (f"{block}.attentions.{layer}" for layer in range(layers))
    depths = [_count_transformer_blocks(tensors, stem) for stem in stems]
    if any(depths) and not all(depths):
        raise CheckpointError(
            f"The UNet's {block} has attention after some of its resnets only ({depths}); "
            "Overpaint builds blocks in which all or none have it"
        )
    return depths


def _join_depths(depths: Depths) -> int | Depths:
    """Return one number for equal ones; 1 for a block without attention, as in SDXL's config."""
    return (depths[0] or 1) if len(set(depths)) == 1 else depths


def _list_heads(channels: list[int], base: Mapping[str, Any]) -> list[int]:
    """Return the attention heads of each block; all heads are as wide as those of `base`."""
    heads: Any = base["attention_head_dim"]
    width = base["block_out_channels"][0] // (heads if isinstance(heads, int) else heads[0])
    return [max(1, own // width) for own in channels]
