"""Read PEFT's configs: α by module, from `adapter_config.json` or a LoRA's metadata."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from overpaint.errors import CheckpointError

METADATA_KEY = "lora_adapter_metadata"
"""diffusers' key of the configs in a file's metadata, as one JSON object of all parts."""

MAX_NAMES = 10_000
"""Names of modules in a map of a config; SDXL's UNet and text encoders have some 1,200."""

MAX_PATTERNS = 100
"""Patterns in a map of a config that are more than names: each is tried on each module."""

MAX_PATTERN_CHARS = 300
MAX_PATTERN_REPEATS = 3
"""Repeats in a pattern of a module's name; more of them can take exponential time."""


_NAME = re.compile(r"(?P<start>\^?)(?P<name>[\w-]+(?:\\?\.[\w-]+)*)\$?")
"""A pattern that is a module's name, or the end of one; diffusers begins whole names with ^."""


class PatternValues:
    """Numbers by patterns of modules' names, compiled once.

    PEFT compiles and tries each pattern on each module. Nearly all patterns are names, which are
    looked up; a dot inside them stands for a dot alone.
    """

    def __init__(self, values: Mapping[str, float] | None = None):
        """Prepare patterns that `_check_pattern` accepts."""
        # For each name: the number of its pattern, since the first that matches counts.
        self._whole: dict[str, tuple[int, float]] = {}
        self._ends: dict[str, tuple[int, float]] = {}
        self.patterns: list[tuple[int, re.Pattern[str], float]] = []
        for number, (text, value) in enumerate((values or {}).items()):
            if name := _NAME.fullmatch(text):
                names = self._whole if name["start"] else self._ends
                names.setdefault(name["name"].replace("\\", ""), (number, value))
            else:
                self.patterns.append((number, re.compile(rf"(.*\.)?({text})$"), value))

    def find(self, module: str, default: float | None) -> float | None:
        """Return the value of the first pattern that matches a module's name or its end."""
        found = [self._whole[module]] if module in self._whole else []
        end = module
        while end:
            if end in self._ends:
                found.append(self._ends[end])
            end = end.partition(".")[2]
        first = min(found, default=None)
        for number, pattern, value in self.patterns:
            if first is not None and number > first[0]:
                break
            if pattern.match(module):
                return value
        return default if first is None else first[1]


@dataclass(frozen=True)
class PeftConfig:
    """The scale of each module in an adapter.

    Attributes:
        alpha: α of modules without a pattern, or None if the config has none.
        alpha_pattern: α by a pattern of the module's name.
        rank: The rank of modules without a pattern, for deltas that are not products.
        rank_pattern: The rank by a pattern of the module's name.
        use_rslora: Whether α is divided by the square root of the rank (arXiv 2312.03732).
    """

    alpha: float | None = None
    alpha_pattern: PatternValues = field(default_factory=PatternValues)
    rank: float | None = None
    rank_pattern: PatternValues = field(default_factory=PatternValues)
    use_rslora: bool = False

    def get_scale(self, module: str, rank: int | None) -> float | None:
        """Return the scale of a module's delta, or None if the config has no α.

        Args:
            module: Its name in diffusers or transformers.
            rank: The rank of its factors; None for a delta that is not a product.
        """
        alpha = self.alpha_pattern.find(module, self.alpha)
        given = rank or self.rank_pattern.find(module, self.rank)
        if alpha is None or not given:
            return None
        return alpha / (given**0.5 if self.use_rslora else given)


def read_peft_configs(metadata: Mapping[str, str], path: object) -> dict[str, PeftConfig]:
    """Read the configs in a LoRA's metadata, by part ("unet", …); "" is for all parts.

    Raises:
        CheckpointError: A value has the wrong type.
    """
    if not (text := metadata.get(METADATA_KEY)):
        return {}
    try:
        whole: Any = json.loads(text)
    except (ValueError, RecursionError):
        whole = None
    if not isinstance(whole, dict):
        raise CheckpointError(f"{path}: {METADATA_KEY} is not a map of settings")
    by_part: dict[str, dict[str, Any]] = {}
    for key, value in cast("dict[str, Any]", whole).items():
        part, _, name = key.rpartition(".")
        by_part.setdefault(part, {})[name] = value
    return {part: parse_peft_config(values, path) for part, values in by_part.items()}


def parse_peft_config(config: Mapping[str, Any], path: object) -> PeftConfig:
    """Check a config and return the values that determine scales.

    Raises:
        CheckpointError: A value has the wrong type, or a pattern is too complicated.
    """
    alpha = "lora_alpha" if config.get("lora_alpha") is not None else "alpha"
    return PeftConfig(
        _read_number(config, alpha, path),
        _read_pattern(config, "alpha_pattern", path),
        _read_number(config, "r", path, above=0),
        _read_pattern(config, "rank_pattern", path, above=0),
        config.get("use_rslora") is True,
    )


def _read_number(
    config: Mapping[str, Any], key: str, path: object, above: float = -math.inf
) -> float | None:
    value = config.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e9:
        raise CheckpointError(f"{path}: {key} is {str(value)[:40]}, not a number")
    if value <= above:
        raise CheckpointError(f"{path}: {key} is {value}; it must be above {above}")
    return float(value)


def _read_pattern(
    config: Mapping[str, Any], key: str, path: object, above: float = -math.inf
) -> PatternValues:
    value: Any = config.get(key) or {}
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: {key} is not a map of numbers")
    given = cast("dict[str, Any]", value)
    patterns = sum(not _NAME.fullmatch(text) for text in given)
    if len(given) > MAX_NAMES or patterns > MAX_PATTERNS:
        raise CheckpointError(
            f"{path}: {key} in its PEFT config has {len(given):,} names, {patterns:,} of them with "
            f"patterns; Overpaint reads up to {MAX_NAMES:,} names and {MAX_PATTERNS} patterns"
        )
    found: dict[str, float] = {}
    for pattern in given:
        _check_pattern(pattern, key, path)
        if (number := _read_number(given, pattern, path, above)) is not None:
            found[pattern] = number
    return PatternValues(found)


def _check_pattern(pattern: str, key: str, path: object) -> None:
    """Raise CheckpointError if matching a pattern can take long, or is impossible."""
    repeats = len(re.findall(r"[*+{]", pattern))
    if (
        len(pattern) > MAX_PATTERN_CHARS
        or repeats > MAX_PATTERN_REPEATS
        or re.search(r"\)[*+?{]|\(\?", pattern)
    ):
        raise CheckpointError(
            f"{path}: the pattern {pattern[:60]!r} of {key} in its PEFT config is too "
            f"complicated; it can have {MAX_PATTERN_CHARS} characters and "
            f"{MAX_PATTERN_REPEATS} repeats, without repeated groups"
        )
    try:
        re.compile(pattern)
    except re.error as error:
        raise CheckpointError(
            f"{path}: the pattern {pattern[:60]!r} of {key} in its PEFT config: {error}"
        ) from error
