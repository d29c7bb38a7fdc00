"""Translate diffusers' names of SDXL UNet and ControlNet modules to the original key layout."""

import re

_STEMS = (
    ("conv_in", "input_blocks.0.0"),
    ("time_embedding.linear_1", "time_embed.0"),
    ("time_embedding.linear_2", "time_embed.2"),
    ("add_embedding.linear_1", "label_emb.0.0"),
    ("add_embedding.linear_2", "label_emb.0.2"),
    ("conv_norm_out", "out.0"),
    ("conv_out", "out.2"),
    ("mid_block.attentions.0", "middle_block.1"),
    ("mid_block.resnets.0", "middle_block.0"),
    ("mid_block.resnets.1", "middle_block.2"),
    ("controlnet_mid_block", "middle_block_out.0"),
    ("controlnet_cond_embedding.conv_in", "input_hint_block.0"),
)
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)")


def to_original_name(name: str, *, layers: int, attends: tuple[bool, ...] = ()) -> str:
    """Translate a module or parameter name to the layout of generative-models and A1111.

    Args:
        name: The name in diffusers' UNet or ControlNet.
        layers: The number of resnets in each down block.
        attends: For each up block, whether it has attention.
    """
    if match := re.match(r"controlnet_down_blocks\.(\d+)", name):
        return f"zero_convs.{match[1]}.0{name[match.end() :]}"
    if match := re.match(r"controlnet_cond_embedding\.blocks\.(\d+)", name):
        return f"input_hint_block.{2 * int(match[1]) + 2}{name[match.end() :]}"
    if name.startswith("controlnet_cond_embedding.conv_out"):
        return name.replace("controlnet_cond_embedding.conv_out", "input_hint_block.14")
    for stem, original in _STEMS:
        if name == stem or name.startswith(f"{stem}."):
            return original + _inside(name.removeprefix(stem))
    if not (match := _BLOCK.match(name)):
        return name
    way, block, kind, layer = match[1], int(match[2]), match[3], int(match[4])
    rest, first = name[match.end() :], block * (layers + 1)
    if way == "down":
        side, first = "input_blocks", first + 1
    else:
        side = "output_blocks"
    match kind:
        case "resnets":
            return f"{side}.{first + layer}.0{_inside(rest)}"
        case "attentions":
            return f"{side}.{first + layer}.1{rest}"
        case "downsamplers":
            return f"{side}.{first + layers}.0{re.sub(r'^.conv', '.op', rest)}"
        case _:
            return f"{side}.{first + layers}.{2 if attends[block] else 1}{rest}"


def _inside(rest: str) -> str:
    """Translate the part of a name inside a resnet."""
    _, _, inner = rest.partition(".")
    head, dot, leaf = inner.partition(".")
    return f".{_RESNET[head]}{dot}{leaf}" if head in _RESNET else rest
