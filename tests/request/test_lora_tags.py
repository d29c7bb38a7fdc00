"""LoRA tags: block weights, and LoRAs that are given twice."""

import re

from overpaint.models.files.original_layout import to_original_name
from overpaint.request import Request
from overpaint.request.lora_tags import MODULES_BY_BLOCK
from overpaint.request.parts import Lora

SIDES = {"IN": "input_blocks", "M": "middle_block", "OUT": "output_blocks"}


def read_tag(prompt: str) -> tuple[float, float | None, dict[str, float]]:
    [lora] = Request(prompt=prompt).loras
    return lora.scale, lora.text_scale, lora.blocks


def test_lora_tag_with_block_weights_sets_blocks() -> None:
    """The names of blocks are those of sd-webui-lora-block-weight."""
    scale, text, blocks = read_tag("a <lora:ink:0.8:lbw=0.5,1,0,1,1,1,1,1,1,1,1,0.25>")
    assert (scale, text) == (0.8, 0.4)
    assert blocks["down_blocks.1.attentions.1"] == 0  # IN05
    assert blocks["up_blocks.1.attentions.2"] == 0.25  # OUT05
    assert not {"down_blocks.1.attentions.0", "mid_block"} & set(blocks)
    assert blocks["conv_in"] == 0  # a block that the list of 12 lacks


def test_lora_tag_with_a_preset_of_block_weights_sets_blocks() -> None:
    scale, text, blocks = read_tag("a <lora:ink:0.8:lbw=OUTALL>")
    assert (scale, text) == (0.8, None)
    assert blocks["mid_block"] == blocks["up_blocks.0.attentions.0"] == 0
    assert "up_blocks.1.attentions.0" not in blocks  # OUT03
    assert read_tag("a <lora:ink:0.8:OUTALL>") == read_tag("a <lora:ink:0.8:lbw=outall>")
    assert read_tag("a <lora:ink:0.8:w=OUTALL>") == read_tag("a <lora:ink:0.8:lbw=OUTALL>")
    assert read_tag("a <lora:ink:0.8:lbw=ALL>")[1] is None
    assert read_tag("a <lora:ink:0.8:lbw=NONE>")[1] == 0


def test_blocks_of_the_extension_are_those_of_the_original_layout() -> None:
    for block, modules in MODULES_BY_BLOCK.items():
        match = re.fullmatch(r"([A-Z]+)(\d+)", block)
        assert match
        side = SIDES[match[1]] if match[1] == "M" else f"{SIDES[match[1]]}.{int(match[2])}."
        for module in modules:
            name = f"{module}.0.conv" if module.endswith("samplers") else f"{module}.attentions.0"
            name = name if module == "mid_block" else name.removesuffix(".attentions.0")
            original = to_original_name(name, layers=2, attends=(True, True, False))
            assert original.startswith(side), module


def test_lora_given_twice_is_in_loras_twice() -> None:
    request = Request(prompt="a <lora:ink:0.8>", loras=(Lora(name="ink", scale=0.2),))
    assert [lora.scale for lora in request.loras] == [0.2, 0.8]
