"""What an engine counts, for whoever watches it."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Counters:
    """What an engine has done since it was made, and what it holds now.

    Attributes:
        batches: network calls by their rows.
        step_seconds: that all steps took.
        halvings: steps that were halved because memory ran out.
        hits: results that were kept from an earlier request, by kind.
        misses: results that had to be made, by kind.
        cache_bytes: of the results that are kept now.
        resident: models that are in memory now, and the sides in pixels that they draw.
    """

    batches: Mapping[int, int] = field(default_factory=dict[int, int])
    step_seconds: float = 0.0
    halvings: int = 0
    hits: Mapping[str, int] = field(default_factory=dict[str, int])
    misses: Mapping[str, int] = field(default_factory=dict[str, int])
    cache_bytes: int = 0
    resident: Mapping[str, int] = field(default_factory=dict[str, int])

    @property
    def steps(self) -> int:
        """Network calls."""
        return sum(self.batches.values())

    @property
    def rows(self) -> int:
        """Rows of all network calls together."""
        return sum(rows * calls for rows, calls in self.batches.items())
