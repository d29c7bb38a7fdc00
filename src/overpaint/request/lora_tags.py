"""LoRA tags in prompts, as in AUTOMATIC1111's web UI and its block weight extension.

| tag | meaning |
|---|---|
| `<lora:NAME>`, `<lyco:NAME>` | scale 1 |
| `<lora:NAME:0.8>` | scale 0.8 |
| `<lora:NAME:0.5:0.8>` | text encoders 0.5, UNet 0.8 |
| `<lora:NAME:te=0.5:unet=0.8>` | the same |
| `<lora:NAME:0.8:lbw=OUTALL>` | factors for blocks of the UNet, by a preset or as numbers |

The syntax is that of extensions-builtin/Lora/extra_networks_lora.py in the web UI, and of
github.com/hako-mikan/sd-webui-lora-block-weight.
"""

import re
from collections.abc import Sequence
from typing import Any

from overpaint.errors import RequestError, did_you_mean, quote_value

_TAG = re.compile(r"<(lora|lyco|hypernet):([^<>]*)>", re.IGNORECASE)
_OPEN = re.compile(r"<(?:lora|lyco|hypernet):", re.IGNORECASE)

_BLOCKS_26 = (
    "BASE",
    *(f"IN{i:02}" for i in range(12)),
    "M00",
    *(f"OUT{i:02}" for i in range(12)),
)
_BLOCKS_20 = tuple(b for b in _BLOCKS_26 if b[-2:] not in {"09", "10", "11"})
_BLOCKS_17 = (
    *("BASE", "IN01", "IN02", "IN04", "IN05", "IN07", "IN08", "M00"),
    *(f"OUT{i:02}" for i in range(3, 12)),
)
_BLOCKS_12 = (
    *("BASE", "IN04", "IN05", "IN07", "IN08", "M00"),
    *(f"OUT{i:02}" for i in range(6)),
)

BLOCKS_BY_COUNT: dict[int, tuple[str, ...]] = {
    len(blocks): blocks for blocks in (_BLOCKS_12, _BLOCKS_17, _BLOCKS_20, _BLOCKS_26)
}
"""The blocks that a list of factors stands for, by the length of the list.

The lists of 17 and 26 are those of Stable Diffusion 1.5; blocks that they lack have factor 0."""

BLOCK_PRESETS: dict[str, str] = {
    "NONE": "0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0",
    "ALL": "1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1",
    "INS": "1,1,1,1,0,0,0,0,0,0,0,0,0,0,0,0,0",
    "IND": "1,0,0,0,1,1,1,0,0,0,0,0,0,0,0,0,0",
    "INALL": "1,1,1,1,1,1,1,0,0,0,0,0,0,0,0,0,0",
    "MIDD": "1,0,0,0,1,1,1,1,1,1,1,1,0,0,0,0,0",
    "OUTD": "1,0,0,0,0,0,0,0,1,1,1,1,0,0,0,0,0",
    "OUTS": "1,0,0,0,0,0,0,0,0,0,0,0,1,1,1,1,1",
    "OUTALL": "1,0,0,0,0,0,0,0,1,1,1,1,1,1,1,1,1",
    "ALL0.5": ",".join(["0.5"] * 17),
}
"""The presets that the extension installs. A user can change them, which a tag does not show."""

MODULES_BY_BLOCK: dict[str, tuple[str, ...]] = {
    "IN00": ("conv_in",),
    "IN01": ("down_blocks.0.resnets.0",),
    "IN02": ("down_blocks.0.resnets.1",),
    "IN03": ("down_blocks.0.downsamplers",),
    "IN04": ("down_blocks.1.resnets.0", "down_blocks.1.attentions.0"),
    "IN05": ("down_blocks.1.resnets.1", "down_blocks.1.attentions.1"),
    "IN06": ("down_blocks.1.downsamplers",),
    "IN07": ("down_blocks.2.resnets.0", "down_blocks.2.attentions.0"),
    "IN08": ("down_blocks.2.resnets.1", "down_blocks.2.attentions.1"),
    "M00": ("mid_block",),
    "OUT00": ("up_blocks.0.resnets.0", "up_blocks.0.attentions.0"),
    "OUT01": ("up_blocks.0.resnets.1", "up_blocks.0.attentions.1"),
    "OUT02": ("up_blocks.0.resnets.2", "up_blocks.0.attentions.2", "up_blocks.0.upsamplers"),
    "OUT03": ("up_blocks.1.resnets.0", "up_blocks.1.attentions.0"),
    "OUT04": ("up_blocks.1.resnets.1", "up_blocks.1.attentions.1"),
    "OUT05": ("up_blocks.1.resnets.2", "up_blocks.1.attentions.2", "up_blocks.1.upsamplers"),
    "OUT06": ("up_blocks.2.resnets.0",),
    "OUT07": ("up_blocks.2.resnets.1",),
    "OUT08": ("up_blocks.2.resnets.2",),
}
"""The modules of SDXL's UNet in each block of the extension."""

UNSUPPORTED_OPTIONS: dict[str, str] = {
    "dyn": "Overpaint uses all ranks of a LoRA",
    "lbwe": "Overpaint has no factors for single elements of a block",
    "start": "a LoRA acts at every step",
    "stop": "a LoRA acts at every step",
    "step": "a LoRA acts at every step",
}
"""Options that ask for another picture than Overpaint can make, and the reason."""


def take_lora_tags(prompt: str) -> tuple[str, tuple[dict[str, Any], ...]]:
    """Return a prompt without its LoRA tags, and the fields of the LoRAs in their order.

    Raises:
        RequestError: a tag cannot be read, or asks for something that Overpaint cannot do.
    """
    tags = list(_TAG.finditer(prompt))
    if not tags and not _OPEN.search(prompt):
        return prompt, ()
    rest = _TAG.sub("", prompt)
    if cut := _OPEN.search(rest):
        raise RequestError(
            "prompt",
            f"{quote_value(rest[cut.start() : cut.start() + 40])} begins a tag and does not end "
            "it. Write it like <lora:name:0.8>.",
        )
    loras = tuple(_read_tag(tag) for tag in tags)
    return re.sub(r"\s{2,}", " ", rest).strip(), loras


def _read_tag(tag: re.Match[str]) -> dict[str, Any]:
    name, *items = (part.strip() for part in tag[2].split(":"))
    if tag[1].lower() == "hypernet":
        raise RequestError(
            "prompt", f"{quote_value(tag[0])}: Overpaint has no hypernetworks. Leave the tag out."
        )
    options: dict[str, str] = {}
    positional: list[float] = []
    for item in items:
        key, equals, value = item.partition("=")
        if equals:
            options[key.strip().lower()] = value.strip()
        elif item.upper() in BLOCK_PRESETS or item.count(",") + 1 in BLOCKS_BY_COUNT:
            options["lbw"] = item
        else:
            positional.append(_read_number(tag, item))
    if len(positional) > 2:
        raise RequestError(
            "prompt", f"{quote_value(tag[0])} has more than two scales. Give one or two."
        )
    if "w" in options:
        options["lbw"] = options.pop("w")
    for key in options:
        if key not in ("te", "unet", "lbw"):
            why = UNSUPPORTED_OPTIONS.get(key, "the options of a tag are te, unet and lbw")
            raise RequestError(
                "prompt", f"{quote_value(tag[0])}: {key}= is not supported; {why}. Leave it out."
            )
    text = _read_number(tag, options["te"]) if "te" in options else next(iter(positional), None)
    unet = positional[1] if len(positional) > 1 else None
    unet = _read_number(tag, options["unet"]) if "unet" in options else unet
    return _make_lora(name, text, unet, _read_factors(tag, options.get("lbw")))


def _make_lora(
    name: str, text: float | None, unet: float | None, factors: dict[str, float]
) -> dict[str, Any]:
    """Return the fields of a LoRA, without those at their defaults."""
    if text is None and unet is not None:
        text = 1.0  # A1111's default of a scale that is left out
    unet = text if unet is None else unet
    base = factors.pop("BASE", 1.0)
    lora: dict[str, Any] = {"name": name}
    if unet is not None:
        lora["scale"] = unet
    if text != unet or base != 1:
        lora["text_scale"] = (1.0 if text is None else text) * base
    blocks = {
        module: factor
        for block, factor in factors.items()
        if factor != 1
        for module in MODULES_BY_BLOCK.get(block, ())
    }
    return lora | ({"blocks": blocks} if blocks else {})


def _read_factors(tag: re.Match[str], text: str | None) -> dict[str, float]:
    """Return the factors of lbw= by block; blocks that the list lacks have factor 0."""
    if text is None:
        return {}
    written = BLOCK_PRESETS.get(text.upper(), text)
    numbers = written.split(",")
    if (blocks := BLOCKS_BY_COUNT.get(len(numbers))) is None:
        counts = ", ".join(map(str, BLOCKS_BY_COUNT))
        near = did_you_mean(text, BLOCK_PRESETS)
        raise RequestError(
            "prompt",
            f"{quote_value(tag[0])}: lbw= takes {counts} numbers, or the name of a preset.{near}",
        )
    values: Sequence[float] = [_read_number(tag, number) for number in numbers]
    return dict.fromkeys(_BLOCKS_26, 0.0) | dict(zip(blocks, values, strict=True))


def _read_number(tag: re.Match[str], text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise RequestError(
            "prompt",
            f"{quote_value(tag[0])} is not a LoRA tag: {quote_value(text)} is not a number. Write "
            "it like <lora:name:0.8>.",
        ) from None
