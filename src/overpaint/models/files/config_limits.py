"""Limits on the numbers in configs of checkpoints, checked before a network is built from them.

A config from elsewhere can ask for 200,000 layers, or for none.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from overpaint.errors import CheckpointError

MAX_LAYERS = 128
MAX_WIDTH = 65_536
MAX_TOKENS = 1_000_000
MAX_TIMESTEPS = 100_000

MAX_BLOCKS = 16
"""Items of a list in a config; SDXL's UNet has three blocks and its VAE four."""

MAX_DEPTH = 3
"""Lists in lists; diffusers gives the transformer layers of up blocks in two levels."""

MAX_TOTAL_LAYERS = 1000
"""Product of the blocks, layers of a block and transformer layers; SDXL has 3 x 2 x 10."""

LAYER_KEYS = ("layers_per_block", "num_hidden_layers", "num_layers")
TRANSFORMER_KEYS = ("transformer_layers_per_block", "reverse_transformer_layers_per_block")
WIDTH_KEYS = (
    *("block_out_channels", "cross_attention_dim", "in_channels", "out_channels"),
    *("latent_channels", "attention_head_dim", "num_attention_heads", "norm_num_groups"),
    *("hidden_size", "intermediate_size", "projection_dim", "max_position_embeddings"),
    *("addition_time_embed_dim", "projection_class_embeddings_input_dim", "sample_size"),
)

RANGES: Mapping[str, tuple[int, int]] = {
    **dict.fromkeys(LAYER_KEYS, (1, MAX_LAYERS)),
    **dict.fromkeys(TRANSFORMER_KEYS, (0, MAX_LAYERS)),
    **dict.fromkeys(WIDTH_KEYS, (1, MAX_WIDTH)),
    "vocab_size": (1, MAX_TOKENS),
    "num_train_timesteps": (1, MAX_TIMESTEPS),
}
"""The smallest and the largest value of each key that sets the size of a network."""


def check_config(config: Mapping[str, Any], part: str) -> None:
    """Check the numbers of a config.

    Args:
        config: of a part of a checkpoint.
        part: the part, for messages.

    Raises:
        CheckpointError: a number has another type or is out of range, or all together make too
            many layers.
    """
    for key, value in config.items():
        if isinstance(value, list | tuple) and len(value) > MAX_BLOCKS:
            raise CheckpointError(
                f"{part}: {key} has {len(value):,} items; Overpaint reads up to {MAX_BLOCKS}"
            )
    channels: Any = config.get("block_out_channels")
    if not isinstance(channels, list | tuple | None):
        raise CheckpointError(f"{part}: block_out_channels is {str(channels)[:40]}, not a list")
    for key, (least, most) in RANGES.items():
        for value in _list_numbers(config.get(key)):
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                raise CheckpointError(
                    f"{part}: {key} is {str(value)[:40]}; it must be a whole number from {least} "
                    f"to {most:,}"
                )
    total = 1
    for keys in (("layers_per_block",), TRANSFORMER_KEYS):
        total *= max((n for key in keys for n in _list_numbers(config.get(key))), default=1) or 1
    total *= len(channels or (1,))
    if total > MAX_TOTAL_LAYERS:
        raise CheckpointError(
            f"{part}: its config asks for {total:,} layers; Overpaint builds up to "
            f"{MAX_TOTAL_LAYERS:,}"
        )


def _list_numbers(value: Any, depth: int = MAX_DEPTH) -> Iterator[Any]:
    """Yield the values of a list that may have lists in it; nothing of null."""
    if isinstance(value, list | tuple):
        for item in value if depth else ["lists in lists"]:
            yield from _list_numbers(item, depth - 1)
    elif value is not None:
        yield value
