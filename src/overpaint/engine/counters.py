"""Totals of an engine, for metrics."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Counters:
    """Totals since the engine was made, and its memory now.

    Attributes:
        batches: network calls by their number of rows.
        step_seconds: seconds of all steps.
        halvings: steps that were halved because memory ran out.
        hits: cached results that requests used, by kind.
        misses: results that were not in the cache, by kind.
        cache_bytes: size of the cache.
        resident: models in memory, with the side in pixels that each draws.
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
        """Number of network calls."""
        return sum(self.batches.values())

    @property
    def rows(self) -> int:
        """Number of rows over all network calls."""
        return sum(rows * calls for rows, calls in self.batches.items())
