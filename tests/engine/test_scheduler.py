"""The scheduler against a simulated device: no model, and a clock that is a number."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from overpaint.engine.scheduler import AGEING, Costs, Scheduler, Task


def call(rows: int) -> float:
    """Seconds of a network call: a part that is shared, and one for each row."""
    return 0.01 + 0.004 * rows


@dataclass
class Job:
    name: str
    arrives: float
    steps: int
    key: str = ""
    group: str = "a"
    rows: int = 2
    priority: int = 0
    ended: float = -1.0


def simulate(
    jobs: Sequence[Job], cap: int = 8, until: float = 1e9, entry: float = 0.0
) -> list[list[str]]:
    """Run jobs to their end on one device; returns which shared each call."""
    scheduler, now, calls, present = Scheduler(), 0.0, list[list[str]](), ""
    coming = sorted(jobs, key=lambda job: job.arrives, reverse=True)
    left: dict[str, int] = {}
    named = {job.name: job for job in jobs}
    served = dict.fromkeys(named, 0.0)
    while (left or coming) and now < until:
        if not left:
            now = max(now, coming[-1].arrives)
        while coming and coming[-1].arrives <= now:
            new = coming.pop()
            left[new.name] = new.steps
        tasks = [
            Task(
                name,
                (job := named[name]).key,
                job.group,
                job.rows,
                steps * call(job.rows),
                job.arrives,
                job.priority,
                served[name],
            )
            for name, steps in left.items()
        ]
        there = present
        scheduler.enter(task.key for task in tasks)
        costs = Costs(lambda group: cap, lambda group, there=there: entry * (group != there))
        chosen = scheduler.pick(tasks, now, costs)
        assert len({task.group for task in chosen}) == 1
        assert len(chosen) == 1 or sum(task.rows for task in chosen) <= cap
        took = call(sum(task.rows for task in chosen)) + costs.entry(chosen[0].group)
        present = str(chosen[0].group)
        scheduler.charge(chosen, took)
        now += took
        calls.append([task.job for task in chosen])
        for task in chosen:
            served[task.job] += took
            left[task.job] -= 1
            if not left[task.job]:
                del left[task.job]
                named[task.job].ended = now
    return calls


def test_scheduler_without_tasks_picks_nothing() -> None:
    assert Scheduler().pick([], 0, Costs(lambda group: 8)) == []


def test_scheduler_fills_a_call_up_to_its_cap() -> None:
    jobs = [Job(str(i), 0, 1) for i in range(6)]
    assert list(map(len, simulate(jobs, cap=8))) == [4, 2]
    assert list(map(len, simulate([replace(j, rows=1) for j in jobs], cap=8))) == [6]


def test_scheduler_task_beyond_the_cap_runs_alone() -> None:
    calls = simulate([Job("wide", 0, 1, rows=20), Job("other", 0, 1)], cap=8)
    assert sorted(calls) == [["other"], ["wide"]]


def test_scheduler_groups_do_not_mix() -> None:
    jobs = [Job(f"{group}{i}", 0, 3, group=group) for group in "ab" for i in range(3)]
    for together in simulate(jobs):
        assert len({name[0] for name in together}) == 1


def test_scheduler_new_job_joins_at_the_next_call() -> None:
    calls = simulate([Job("long", 0, 20), Job("new", 0.05, 5)])
    first = next(i for i, together in enumerate(calls) if "new" in together)
    assert first == 3  # calls end at 0.018, 0.036, 0.054
    assert all(set(c) == {"long", "new"} for c in calls[first : first + 5])


def test_scheduler_short_work_overtakes_long_work() -> None:
    long, short = Job("long", 0, 50), Job("short", 0.1, 5)
    simulate([long, short], cap=2)
    assert short.ended < long.ended
    assert short.ended <= 0.1 + 6 * call(2)


def test_scheduler_running_long_work_does_not_age() -> None:
    longs = [Job(f"long {i}", 0, 200) for i in range(4)]
    calls = simulate([*longs, Job("short", 5.5, 5)], cap=8)
    assert all(len(together) == 4 for together in calls[:131])
    first = next(i for i, together in enumerate(calls) if "short" in together)
    assert first == 131  # a call takes 0.042
    assert all("short" in together for together in calls[first : first + 5])


def test_scheduler_last_task_of_a_picture_runs_first() -> None:
    waiting = Task("late", "b", "a", 2, 0.1, arrived=0, priority=1)
    scheduler = Scheduler()
    scheduler.enter(["a", "b"])
    scheduler.charge([Task("new", "a", "a", 2, 1, arrived=99)], 5.0)
    last = Task("new", "a", "decode", 1, 0, arrived=99, last=True)
    assert scheduler.pick([waiting, last], 100, Costs(lambda group: 8)) == [last]


def test_scheduler_mean_wait_is_shorter_than_first_come() -> None:
    rng = np.random.default_rng(5)
    jobs = [Job(str(i), float(rng.uniform(0, 5)), int(rng.choice([4, 60]))) for i in range(60)]
    simulate(jobs, cap=2)
    now, in_order = 0.0, list[float]()
    for job in sorted(jobs, key=lambda job: job.arrives):
        now = max(now, job.arrives) + job.steps * call(2)
        in_order.append(now - job.arrives)
    assert np.mean([job.ended - job.arrives for job in jobs]) < 0.7 * np.mean(in_order)


def test_scheduler_long_work_does_not_starve() -> None:
    """Against short jobs that alone would fill the device, for ever."""
    pace = 4 * call(2)
    long = Job("long", 0, 50)
    simulate([long, *(Job(str(i), i * pace, 4) for i in range(3000))], cap=2, until=100)
    assert 0 < long.ended <= 50 * call(2) / AGEING + 60 * call(2)


def test_scheduler_keys_share_the_device() -> None:
    """A key with a hundred jobs does not take the half of a key with two jobs."""
    many = [Job(f"many{i}", 0, 20, key="many") for i in range(100)]
    few = [Job(f"few{i}", 0.5, 20, key="few") for i in range(2)]
    simulate([*many, *few], cap=2)
    alone = 40 * call(2)
    assert max(job.ended for job in few) - 0.5 <= 2.2 * alone


def test_scheduler_pause_gives_a_key_no_credit() -> None:
    """A key that comes back gets its share, and not all that it has missed."""
    steady = [Job(f"steady{i}", 0, 40, key="steady") for i in range(40)]
    back = [Job("early", 0, 1, key="back"), Job("late0", 10, 40, key="back")]
    back += [Job(f"late{i}", 10, 40, key="back") for i in range(1, 20)]
    calls = simulate([*steady, *back], cap=2)
    first = next(i for i, c in enumerate(calls) if c[0].startswith("late"))
    share = np.mean([c[0].startswith("late") for c in calls[first : first + 400]])
    assert 0.4 < share < 0.6


def test_scheduler_priority_runs_first() -> None:
    urgent, plain = Job("urgent", 0.1, 50, priority=1), Job("plain", 0, 20)
    simulate([urgent, plain], cap=2)
    assert urgent.ended < plain.ended


def test_scheduler_loaded_model_runs_first_for_a_while() -> None:
    """Bringing the other one takes ten seconds; it is not done back and forth, nor never."""
    long = 1.5 * 10 / AGEING
    here = [Job(f"a{i}", i * 0.35, 20, group="a") for i in range(int(long / 0.35))]
    there = [Job(f"b{i}", 1 + i, 4, group="b") for i in range(5)]
    calls = simulate([*here, *there], cap=2, until=long, entry=10)
    order = [together[0][0] for together in calls]
    swaps = sum(a != b for a, b in pairwise(order))
    assert 1 <= swaps <= 4
    assert all(0 < job.ended < 1 + 10 / AGEING + 40 for job in there)


@given(
    st.lists(
        st.tuples(
            st.integers(1, 12),
            st.sampled_from("xy"),
            st.sampled_from("ab"),
            st.integers(1, 3),
            st.floats(0, 3),
        ),
        min_size=1,
        max_size=12,
    ),
    st.integers(1, 8),
)
def test_scheduler_every_job_ends(asked: list[tuple[int, str, str, int, float]], cap: int) -> None:
    jobs = [
        Job(str(i), at, n, key, group, rows) for i, (n, key, group, rows, at) in enumerate(asked)
    ]
    calls = simulate(jobs, cap)
    for job in jobs:
        assert sum(job.name in together for together in calls) == job.steps
        assert job.ended >= job.arrives + call(job.rows)


def test_scheduler_order_of_tasks_does_not_matter() -> None:
    scheduler, costs = Scheduler(), Costs(lambda group: 6)
    scheduler.enter([""])
    tasks = [Task(str(i), "", "a", 2, float(i % 3), 0.0) for i in range(9)]
    for listed in (tasks, tasks[::-1]):
        assert [task.job for task in scheduler.pick(listed, 1.0, costs)] == ["0", "3", "6"]


def test_scheduler_does_not_import_torch() -> None:
    code = "import overpaint.engine.scheduler, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_scheduler_charge_splits_time_by_rows(rows: int) -> None:
    scheduler, costs = Scheduler(), Costs(lambda group: 8)
    both = [Task("a", "a", "g", rows, 1, 0), Task("b", "b", "g", 1, 1, 0)]
    scheduler.enter("ab")
    assert len(scheduler.pick(both, 0, costs)) == 2
    scheduler.charge(both, 1.0)
    last = scheduler.pick(both, 0, Costs(lambda group: 1))
    assert last[0].job == ("a" if rows == 1 else "b")
