"""Timing contestants in turn, so that a busy machine disturbs all of them alike."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Timings:
    """Seconds of each contestant's runs; run i of all of them took place side by side."""

    seconds: dict[str, list[float]]

    def median(self, name: str) -> float:
        return median(self.seconds[name])

    def ratio(self, name: str, other: str) -> float:
        """The median over the rounds of how `name` compares with `other` in the same round."""
        pairs = zip(self.seconds[name], self.seconds[other], strict=True)
        return median(a / b for a, b in pairs)


def interleave(
    contestants: Mapping[str, Callable[[], object]], rounds: int, *, warm_up: bool = True
) -> Timings:
    """Time every contestant once a round, in an order that turns round by round."""
    names = list(contestants)
    if warm_up:
        for name in names:
            contestants[name]()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.perf_counter()
            contestants[name]()
            seconds[name].append(time.perf_counter() - start)
    return Timings(seconds)


def say(text: str) -> None:
    """A line for a person, at once."""
    print(text, flush=True)
