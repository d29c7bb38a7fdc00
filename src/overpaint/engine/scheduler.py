"""Which rows run next: shortest remaining work first, aged, and fair between keys.

It knows neither a model nor a clock. Whoever runs the work says who has any (`enter`), `pick`s,
runs that, and says what it `spent`.
"""

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass

AGEING = 0.07
"""Seconds of work that a second of waiting makes up for. What needs r seconds more than the
shortest newcomers waits for them at most r / AGEING seconds. Who is served does not wait: among
many that share their steps, what takes long would else overtake what has just come. With 0.25,
sixteen unlike requests at once on two cores had short ones take 2.4 s at the median, with 0.1
1.5 s, with 0.05 1.2 s; long ones 7.7, 9.4 and 10.5 s."""

PRIORITY = 3600.0
"""Seconds of work that one step of priority makes up for."""


@dataclass(frozen=True)
class Task:
    """Work that can be taken up at once: the next step of a picture, or its decoding.

    Attributes:
        job: that it belongs to.
        key: on whose account it runs; "" where there are no accounts.
        group: tasks of one group may run together: of one network and one latent shape.
        rows: of the network's batch that it takes.
        remaining: seconds of work until the whole job is done, alone on the device.
        arrived: when the job came, in seconds of any clock.
        priority: higher goes first.
        served: seconds since it arrived in which the job took part in what ran.
        last: it is the last thing that a picture needs. Such tasks go first, whoever's they are:
            they are short, and all the work that went before them waits for them.
    """

    job: str
    key: str
    group: Hashable
    rows: int
    remaining: float
    arrived: float
    priority: int = 0
    served: float = 0.0
    last: bool = False


@dataclass(frozen=True)
class Costs:
    """What the device says about groups.

    Attributes:
        cap: rows of a group that one call takes.
        entry: seconds until a group can run at all: 0 if its model is on the device, else what it
            takes to bring it there. Tasks of a model that is there therefore go first, until the
            others have waited long enough.
    """

    cap: Callable[[Hashable], int]
    entry: Callable[[Hashable], float] = lambda group: 0.0


class Scheduler:
    """Picks what runs next.

    Fairness is start-time fair queueing (Goyal, Vin & Cheng 1996) over seconds of the device: a key
    is behind by what it was given beyond the least served of those that wait, and one that comes
    back after a pause has no credit from it.
    """

    def __init__(self) -> None:
        self._served: dict[str, float] = {}

    def enter(self, keys: Iterable[str]) -> None:
        """Say which keys have work now: those that are new begin level with the least served."""
        active = set(keys)
        known = [served for key, served in self._served.items() if key in active]
        least = min(known, default=0.0)
        self._served = {key: self._served.get(key, least) - least for key in active}

    def pick(self, tasks: Iterable[Task], now: float, costs: Costs) -> list[Task]:
        """The tasks to run together next, the first one's group, no more rows than its cap.

        A task that takes more rows than the cap runs alone.

        Args:
            tasks: all that could run, of keys that were entered.
            now: by the clock of their arrival.
            costs: of the groups.
        """
        waiting = list(tasks)
        if not waiting:
            return []

        def urgency(task: Task) -> tuple[bool, float, float, str]:
            late = self._served[task.key] - AGEING * (now - task.arrived - task.served)
            work = task.remaining + costs.entry(task.group)
            due = work + late - PRIORITY * task.priority
            return not task.last, due, task.arrived, task.job

        first, *others = sorted(waiting, key=urgency)
        chosen, rows, cap = [first], first.rows, costs.cap(first.group)
        for task in others:
            if task.group == first.group and rows + task.rows <= cap:
                chosen.append(task)
                rows += task.rows
        return chosen

    def charge(self, tasks: Iterable[Task], seconds: float) -> list[float]:
        """Put what a call took to the accounts of those that it was for, by their rows.

        Returns:
            Each task's share, in seconds.
        """
        ran = list(tasks)
        rows = sum(task.rows for task in ran)
        shares = [seconds * task.rows / rows for task in ran]
        for task, share in zip(ran, shares, strict=True):
            self._served[task.key] += share
        return shares
