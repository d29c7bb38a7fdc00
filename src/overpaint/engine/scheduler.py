"""Choose the rows that run next: least remaining work first, with aging, and fair between API keys.

The scheduler knows neither models nor a clock. The engine names the keys that have work (`enter`),
asks for tasks (`pick`), runs them, and reports the time (`charge`).
"""

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass

AGEING = 0.07
"""Seconds of work that one second of waiting counts for, which prevents starvation.

A task that needs r seconds more than the shortest new ones waits for them at most r / AGEING
seconds. A request that runs does not age: among requests that share steps, long ones would overtake
new short ones. With 16 different requests on two cores, values of 0.25, 0.1 and 0.05 gave medians
of 2.4, 1.5 and 1.2 s for short requests, and 7.7, 9.4 and 10.5 s for long ones.
"""

PRIORITY = 3600.0
"""Seconds of work that one step of priority counts for."""


@dataclass(frozen=True)
class Task:
    """Work that can run now: the next step of a picture, or its decoding.

    Attributes:
        job: name of the picture's job, and the picture's index.
        key: API key that is charged; "" without keys.
        group: tasks of one group can run together: one network and one latent shape.
        rows: rows of the network's batch.
        remaining: seconds of work until the whole job is done, alone on the device.
        arrived: when the job arrived, in seconds of any clock.
        priority: higher runs first.
        served: seconds since then in which the job took part in a step or decoding.
        last: whether it is the last task of its picture. Such tasks run first, for any key, because
            they are short and finish a picture.
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
    """Properties of groups on the device.

    Attributes:
        cap: returns the rows of a group that one call takes.
        entry: returns the seconds until a group can run: 0 if its model is in memory, else the time
            to load it. So tasks of loaded models run first, until the others have waited long
            enough.
    """

    cap: Callable[[Hashable], int]
    entry: Callable[[Hashable], float] = lambda group: 0.0


class Scheduler:
    """Picks the tasks that run next.

    Fairness is start-time fair queueing (Goyal, Vin & Cheng 1996) over seconds of the device. A
    key's delay is its device time beyond that of the least served waiting key. A key that returns
    after a pause has no credit from the pause.
    """

    def __init__(self) -> None:
        self._served: dict[str, float] = {}

    def enter(self, keys: Iterable[str]) -> None:
        """Name the keys that have work; new keys start level with the least served key."""
        active = set(keys)
        known = [served for key, served in self._served.items() if key in active]
        least = min(known, default=0.0)
        self._served = {key: self._served.get(key, least) - least for key in active}

    def pick(self, tasks: Iterable[Task], now: float, costs: Costs) -> list[Task]:
        """Return the tasks to run together next: the most urgent one, and others of its group.

        They have no more rows than the group's cap, unless the first one alone has more.

        Args:
            tasks: all tasks that can run, of keys that were entered.
            now: by the clock of `Task.arrived`.
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
        """Charge the time of a call to the keys of its tasks, in proportion to rows.

        Returns:
            Each task's share in seconds.
        """
        ran = list(tasks)
        rows = sum(task.rows for task in ran)
        shares = [seconds * task.rows / rows for task in ran]
        for task, share in zip(ran, shares, strict=True):
            self._served[task.key] += share
        return shares
