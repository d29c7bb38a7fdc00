"""The store in random runs, against a model of it: a job ends once, whatever the order."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import select

from overpaint.errors import QueueFullError
from overpaint.events import Spent
from overpaint.server.settings import Limits
from overpaint.server.store.crashes import MAX_CONCURRENCY_BY_CRASHES, MAX_CRASHES, MAX_LOST_SERVERS
from overpaint.server.store.database import Database
from overpaint.server.store.job_rows import ENDED, Job, NewJob
from overpaint.server.store.jobs import Jobs
from overpaint.server.store.tables import usage
from tests.server.conftest import Clock

OWNERS = ("x", "y")
LEASE = 10.0
ALONE = len(MAX_CONCURRENCY_BY_CRASHES) - 1
"""Crashes after which a job is under way beside no other."""

ROOM = 12


@dataclass
class Known:
    """What a job must be, by what was done to it."""

    key: str
    state: str = "queued"
    attempt: int = 0
    crashes: int = 0
    losses: int = 0
    owner: str | None = None
    until: float = 0.0
    canceling: bool = False
    result: dict[str, Any] | None = None
    used: tuple[int, float] = (0, 0.0)  # pictures, seconds
    kinds: list[str] = field(default_factory=lambda: ["queued"])


class Machine(RuleBasedStateMachine):
    """Two servers on one store, which may stop, stall and come back at any time."""

    held: Bundle[Job] = Bundle("held")
    names: Bundle[str] = Bundle("names")

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").exists() else None))
        self.clock = Clock()
        self.numbers = itertools.count()
        self.known: dict[str, Known] = {}
        self.tokens: dict[tuple[str, str | None], str] = {}
        self.stores = {owner: self.open() for owner in OWNERS}

    def open(self) -> Jobs:
        return Jobs(Database(f"sqlite:///{self.folder}/jobs.db", self.clock))

    def teardown(self) -> None:
        self.check()
        for store in self.stores.values():
            store.database.close()
        shutil.rmtree(self.folder)

    def has(self, job: Job) -> bool:
        """Return whether a claim is still valid."""
        known = self.known[job.id]
        mine = (known.attempt, known.owner) == (job.attempt, job.owner)
        return known.state == "running" and mine

    def end(self, name: str, state: str) -> None:
        known = self.known[name]
        known.state, known.canceling = state, False
        known.kinds.append(state)

    def requeue(self, name: str, crashed: bool, lost: bool = False) -> None:
        known = self.known[name]
        count = known.crashes + (crashed or (lost and known.crashes < ALONE))
        known.losses += lost
        if known.canceling:
            self.end(name, "canceled")
        elif count >= MAX_CRASHES or known.losses >= MAX_LOST_SERVERS:
            self.end(name, "failed")
        else:
            known.state, known.owner, known.crashes = "queued", None, count
            known.kinds.append("requeued")

    @rule(
        target=names,
        owner=st.sampled_from(OWNERS),
        work=st.floats(0.1, 100),
        key=st.sampled_from("kl"),
        token=st.none() | st.sampled_from("tu"),
    )
    def submit(self, owner: str, work: float, key: str, token: str | None) -> Any:
        name = f"j{next(self.numbers)}"
        new = NewJob(name, key, "m", {"n": name}, work, token=token)
        store = self.stores[owner]
        if before := self.tokens.get((key, token)):
            assert store.submit(new, Limits(queued_jobs=0)).id == before
            return multiple()
        queued = [known.key for known in self.known.values() if known.state == "queued"]
        share = ROOM / len({*queued, key})
        if len(queued) >= ROOM and (queued.count(key) >= share or len(queued) >= 2 * ROOM):
            with pytest.raises(QueueFullError):
                store.submit(new, Limits(queued_jobs=ROOM))
            return multiple()
        assert store.submit(new, Limits(queued_jobs=ROOM)).id == name
        if token:
            self.tokens[key, token] = name
        self.known[name] = Known(key)
        return name

    @rule(target=held, owner=st.sampled_from(OWNERS), count=st.integers(1, 4))
    def claim(self, owner: str, count: int) -> Any:
        claimed = self.stores[owner].claim(owner, count, LEASE)
        queued = [known for known in self.known.values() if known.state == "queued"]
        if len(claimed) < min(count, len(queued)):  # somebody should be alone
            assert claimed
            assert max(known.crashes for known in queued) >= ALONE
        if any(self.known[job.id].crashes >= ALONE for job in claimed):
            assert len(claimed) == 1
        for job in claimed:
            known = self.known[job.id]
            assert known.state == "queued"
            known.state, known.owner, known.until = "running", owner, self.clock.now + LEASE
            known.attempt += 1
            known.kinds.append("started")
            assert job.attempt == known.attempt
        return multiple(*claimed)

    @rule(job=held, state=st.sampled_from(ENDED), by=st.sampled_from(OWNERS))
    def finish(self, job: Job, state: Any, by: str) -> None:
        """Also finish lost and ended attempts."""
        good, result = self.has(job), {"attempt": job.attempt, "files": ["f"] * job.attempt}
        spent = Spent(seconds=job.attempt / 8)
        assert self.stores[by].finish(job, state, result=result, spent=spent) == good
        if good:
            self.end(job.id, state)
            self.known[job.id].result = result
            self.known[job.id].used = (job.attempt, spent.seconds)

    @rule(job=held, crashed=st.booleans(), by=st.sampled_from(OWNERS))
    def release(self, job: Job, crashed: bool, by: str) -> None:
        good = self.has(job)
        assert self.stores[by].release(job, crashed=crashed) == good
        if good:
            self.requeue(job.id, crashed)

    @rule(name=names, by=st.sampled_from(OWNERS))
    def cancel(self, name: str, by: str) -> None:
        job = self.stores[by].cancel(name)
        assert job is not None
        known = self.known[name]
        if known.state == "queued":
            self.end(name, "canceled")
        elif known.state == "running":
            known.canceling = True
        assert (job.state, job.canceling) == (known.state, known.canceling)

    @rule(owner=st.sampled_from(OWNERS))
    def beat(self, owner: str) -> None:
        mine = {n: k for n, k in self.known.items() if (k.state, k.owner) == ("running", owner)}
        found = self.stores[owner].renew_leases(owner, LEASE)
        assert {held.id: held.canceling for held in found} == {
            name: known.canceling for name, known in mine.items()
        }
        for known in mine.values():
            known.until = self.clock.now + LEASE

    @rule(seconds=st.floats(0.1, 2 * LEASE))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(by=st.sampled_from(OWNERS), all_gone=st.booleans())
    def expire(self, by: str, all_gone: bool) -> None:
        over = [
            name
            for name, known in self.known.items()
            if known.state == "running" and (all_gone or known.until < self.clock.now)
        ]
        assert sorted(self.stores[by].requeue_expired(owners_are_gone=all_gone)) == sorted(over)
        for name in over:
            self.requeue(name, False, lost=True)

    @rule(owner=st.sampled_from(OWNERS))
    def restart(self, owner: str) -> None:
        self.stores[owner].database.close()
        self.stores[owner] = self.open()

    @rule(job=consumes(held))
    def forget(self, job: Job) -> None:
        """A server that never comes back for its claim."""

    @invariant()
    def states_are_as_known(self) -> None:
        counted = Counter(known.state for known in self.known.values())
        assert +Counter(self.stores["x"].count_by_state()) == Counter(counted)

    def check(self) -> None:
        store = self.stores["x"]
        for name, known in self.known.items():
            job = store.get(name)
            assert job is not None
            found = (job.state, job.attempt, job.crashes, job.result)
            assert found == (known.state, known.attempt, known.crashes, known.result)
            kinds = [entry.kind for entry in store.list_history(name)]
            assert kinds == known.kinds
            assert sum(kind in ENDED for kind in kinds) == (known.state in ENDED)
        self.check_ledger()

    def check_ledger(self) -> None:
        """Check for one entry of each ended job, even after the job is deleted."""
        store = self.stores["x"]
        ended = {name: known for name, known in self.known.items() if known.state in ENDED}
        store.delete(ended)
        columns = (usage.c.job, usage.c.state, usage.c.pictures, usage.c.device_seconds)
        with store.database.read() as connection:
            entries = [tuple(row) for row in connection.execute(select(*columns))]
        assert sorted(entries) == sorted((n, k.state, *k.used) for n, k in ended.items())


def run(count: int) -> None:
    quick = settings(
        max_examples=count,
        stateful_step_count=50,
        deadline=None,
        suppress_health_check=(HealthCheck.too_slow, HealthCheck.filter_too_much),
    )
    run_state_machine_as_test(Machine, settings=quick)


def test_store_in_random_runs_matches_its_model() -> None:
    run(20)


@pytest.mark.slow
def test_store_in_two_thousand_random_runs_matches_its_model() -> None:
    run(2000)
