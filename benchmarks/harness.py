"""Time contestants in turn, so that other load on the machine affects all of them equally."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Timings:
    """Seconds of each contestant's runs; the runs i of all contestants were adjacent in time."""

    seconds: dict[str, list[float]]

    def median(self, name: str) -> float:
        return median(self.seconds[name])

    def ratio(self, name: str, other: str) -> float:
        """Return the median over the rounds of the ratio of `name` to `other`."""
        pairs = zip(self.seconds[name], self.seconds[other], strict=True)
        return median(a / b for a, b in pairs)


def interleave(
    contestants: Mapping[str, Callable[[], object]], rounds: int, *, warm_up: bool = True
) -> Timings:
    """Time every contestant once per round, in an order that rotates."""
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


def print_line(text: str) -> None:
    """Print a line and flush it."""
    print(text, flush=True)
