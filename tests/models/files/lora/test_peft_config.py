"""Tests of PEFT's configs: patterns of names count as in PEFT, with bounded work."""

import re

import pytest

from overpaint.errors import CheckpointError
from overpaint.models.files.lora.peft_config import (
    MAX_NAMES,
    MAX_PATTERNS,
    PatternValues,
    parse_peft_config,
)

MODULES = ("mid.0.to_q", "mid.0.to_k", "down.1.mid.0.to_q", "to_q", "a", "0.to_q", "xto_q")
PATTERNS = (
    {"to_q": 1.0, "mid.0.to_q": 2.0},
    {"mid.0.to_q": 2.0, "to_q": 1.0},
    {"^mid.0.to_q": 3.0, "to_.": 4.0, "to_k": 5.0},
    {"to_k": 5.0, "to_.": 4.0},
    {r"mid\.0\.to_q": 6.0, r"down\.\d.*": 7.0, "a$": 8.0},
    {"to_q|a": 9.0, "mid.0": 10.0},
    {},
)


@pytest.mark.parametrize("patterns", PATTERNS, ids=str)
def test_first_pattern_that_matches_a_module_counts_as_in_peft(patterns: dict[str, float]) -> None:
    values = PatternValues(patterns)
    for module in MODULES:
        # PEFT's get_pattern_key
        wanted = next((v for p, v in patterns.items() if re.match(rf"(.*\.)?({p})$", module)), 0.5)
        assert values.find(module, 0.5) == wanted, module


def test_names_of_modules_are_looked_up_without_patterns() -> None:
    names = {f"^down_blocks.{n}.attentions.0.to_q": float(n) for n in range(2000)}
    values = PatternValues(names | {f"up_blocks.{n}.to_k": float(n) for n in range(2000)})
    assert not values.patterns
    assert values.find("down_blocks.1999.attentions.0.to_q", None) == 1999
    assert values.find("unet.up_blocks.7.to_k", None) == 7


@pytest.mark.parametrize(
    ("pattern", "count"), [("block.{}", MAX_NAMES + 1), ("block.[{}]", MAX_PATTERNS + 1)]
)
def test_config_with_too_many_patterns_is_rejected(pattern: str, count: int) -> None:
    rank_pattern = {pattern.format(number): 4 for number in range(count)}
    with pytest.raises(CheckpointError, match=f"rank_pattern in its PEFT config has {count:,} "):
        parse_peft_config({"rank_pattern": rank_pattern}, "lora.safetensors")
