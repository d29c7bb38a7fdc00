"""The job store, on SQLite and on Postgres."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Engine, event

from overpaint.errors import IdempotencyError, QueueFullError
from overpaint.server.settings import DAY_S, Limits
from overpaint.server.store.crashes import MAX_CRASHES, MAX_LOST_SERVERS
from overpaint.server.store.job_rows import Attempt, Job, JobSummary, NewJob
from overpaint.server.store.jobs import WAIT_S_PER_WORK_S, Jobs
from overpaint.server.store.leases import MAX_LEASE_S, LeaseClock
from overpaint.server.store.origins import A1111Origin, FalOrigin, NativeOrigin, OutputOptions
from overpaint.server.store.outbox import Outbox
from tests.server.conftest import Clock, Open

numbers = itertools.count()
LEASE = 10.0
YEAR_S = 366 * DAY_S


ORIGIN = FalOrigin(app="fal-ai/fast-sdxl", prompt="é", output=OutputOptions(kind="jpg"))


def new(name: str = "", **fields: Any) -> NewJob:
    """Return a job of one second."""
    made: dict[str, Any] = {
        "key": "",
        "model": "miniature",
        "request": {"prompt": "a cup"},
        "work": 1.0,
    }
    return NewJob(name or f"job{next(numbers):04}", **(made | fields))


def kinds(store: Jobs, name: str) -> list[str]:
    said = store.list_history(name)
    assert [entry.number for entry in said] == list(range(1, len(said) + 1))
    return [entry.kind for entry in said]


def test_job_from_submission_to_end_records_states_and_times(store: Jobs, clock: Clock) -> None:
    job = store.submit(new("a", request={"prompt": "é", "seed": 3}, origin=ORIGIN))
    assert job == store.get("a")
    assert (job.state, job.attempt, job.created, job.started) == ("queued", 0, clock.now, None)
    assert (job.request, job.origin) == ({"prompt": "é", "seed": 3}, ORIGIN)
    clock.now += 5
    (claimed,) = store.claim("me", 4, LEASE)
    assert (claimed.state, claimed.attempt, claimed.owner) == ("running", 1, "me")
    assert claimed.started == clock.now
    assert store.claim("me", 4, LEASE) == []
    clock.now += 2
    assert store.finish(claimed, "succeeded", result={"files": ["f"]})
    ended = store.get("a")
    assert ended is not None
    assert (ended.state, ended.result, ended.ended) == ("succeeded", {"files": ["f"]}, clock.now)
    assert kinds(store, "a") == ["queued", "started", "succeeded"]
    assert store.list_history("a", after=2)[0].kind == "succeeded"
    assert store.get("b") is None
    assert store.get_latest_numbers(["a", "b"]) == {"a": 3}


def test_submitted_job_is_in_the_reopened_store(opened: Open) -> None:
    opened().submit(new("a"))
    assert opened().get("a") is not None


@pytest.mark.parametrize("end", ["succeeded", "failed", "canceled"])
def test_ended_job_does_not_change(store: Jobs, end: Any) -> None:
    store.submit(new("a"))
    (claimed,) = store.claim("me", 1, LEASE)
    assert store.finish(claimed, end)
    for other in ("succeeded", "failed", "canceled"):
        assert not store.finish(claimed, other, error="again")
    assert not store.release(claimed)
    assert store.requeue_expired(owners_are_gone=True) == []
    job = store.cancel("a")
    assert job is not None
    assert (job.state, job.error) == (end, None)
    assert kinds(store, "a") == ["queued", "started", end]


def test_attempt_with_expired_lease_cannot_change_the_job(store: Jobs, clock: Clock) -> None:
    """The owner was frozen past its lease, and another owner has the job now."""
    store.submit(new("a"))
    (stale,) = store.claim("frozen", 1, LEASE)
    clock.now += LEASE + 1
    assert store.requeue_expired() == ["a"]
    assert not store.finish(stale, "succeeded", result={"by": "frozen"})
    (claimed,) = store.claim("other", 1, LEASE)
    assert claimed.attempt == 2
    assert not store.finish(stale, "succeeded", result={"by": "frozen"})
    assert not store.release(stale)
    assert store.renew_leases("frozen", LEASE) == []
    assert store.finish(claimed, "succeeded", result={"by": "other"})
    assert not store.finish(stale, "failed", error="late")
    job = store.get("a")
    assert job is not None
    assert job.result == {"by": "other"}
    assert kinds(store, "a") == ["queued", "started", "requeued", "started", "succeeded"]


def test_second_claim_by_the_same_owner_is_a_new_attempt(store: Jobs) -> None:
    store.submit(new("a"))
    (first,) = store.claim("me", 1, LEASE)
    assert store.release(first)
    (second,) = store.claim("me", 1, LEASE)
    assert not store.finish(first, "succeeded")
    assert store.finish(second, "succeeded")


def test_renewed_lease_does_not_expire(store: Jobs, clock: Clock) -> None:
    store.submit(new("a"))
    store.claim("me", 1, LEASE)
    for _ in range(5):
        clock.now += LEASE - 1
        assert [held.id for held in store.renew_leases("me", LEASE)] == ["a"]
        assert store.requeue_expired() == []


def test_cancel_ends_queued_job_and_marks_running_job(store: Jobs) -> None:
    for name in "ab":
        store.submit(new(name))
    assert store.cancel("nobody") is None
    queued = store.cancel("b")
    assert queued is not None
    assert (queued.state, queued.canceling) == ("canceled", False)
    (claimed,) = store.claim("me", 5, LEASE)
    running = store.cancel("a")
    assert running is not None
    assert (running.state, running.canceling) == ("running", True)
    assert store.renew_leases("me", LEASE) == [Attempt("a", 1, "me", True)]
    assert store.finish(claimed, "canceled")
    again = store.cancel("a")
    assert again is not None
    assert (again.state, again.canceling) == ("canceled", False)
    assert kinds(store, "a") == ["queued", "started", "canceled"]


def test_released_job_being_canceled_ends_canceled(store: Jobs, clock: Clock) -> None:
    for name in "ab":
        store.submit(new(name))
    claimed = {job.id: job for job in store.claim("me", 2, LEASE)}
    for name in "ab":
        store.cancel(name)
    assert store.release(claimed["a"])
    clock.now += LEASE + 1
    assert store.requeue_expired() == ["b"]
    assert +Counter(store.count_by_state()) == Counter(canceled=2)
    assert store.claim("me", 2, LEASE) == []


def test_job_that_crashes_too_often_fails(store: Jobs) -> None:
    store.submit(new("a"))
    for _ in range(MAX_CRASHES):
        (claimed,) = store.claim("me", 1, LEASE)
        assert store.release(claimed, crashed=True)
    job = store.get("a")
    assert job is not None
    assert job.state == "failed"
    assert f"crashed {MAX_CRASHES} times" in (job.error or "")


def test_lost_servers_fail_a_job_only_after_very_many(store: Jobs) -> None:
    """Kills of a server with a long job say nothing about the job; it runs alone in the end."""
    store.submit(new("a"))
    for number in range(1, MAX_LOST_SERVERS + 1):
        store.claim("me", 1, LEASE)
        job = store.get("a")
        assert job is not None
        assert (job.state, job.crashes) == ("running", min(number - 1, 3))
        assert store.requeue_expired(owners_are_gone=True) == ["a"]
    job = store.get("a")
    assert job is not None
    assert job.state == "failed"
    assert f"the server was lost {MAX_LOST_SERVERS} times" in (job.error or "")


def test_release_without_crash_is_not_counted(store: Jobs) -> None:
    store.submit(new("a"))
    for _ in range(3 * MAX_CRASHES):
        (claimed,) = store.claim("me", 1, LEASE)
        assert store.release(claimed)
    assert store.count_by_state()["queued"] == 1


def test_claim_prefers_short_jobs_until_long_ones_have_waited(store: Jobs, clock: Clock) -> None:
    store.submit(new("long", work=10))
    store.submit(new("short", work=1))
    clock.now += 9 * WAIT_S_PER_WORK_S + 1
    store.submit(new("late", work=1))
    assert [job.id for job in store.claim("me", 3, LEASE)] == ["short", "long", "late"]


def test_claim_alternates_between_keys(store: Jobs) -> None:
    for i in range(20):
        store.submit(new(f"many{i:02}", key="many"))
    for i in range(2):
        store.submit(new(f"few{i}", key="few"))
    order = [job.id for job in store.claim("me", 6, LEASE)]
    assert sorted(order) == ["few0", "few1", "many00", "many01", "many02", "many03"][: len(order)]
    assert order.index("few1") <= 3


def test_claim_prefers_higher_priority(store: Jobs) -> None:
    store.submit(new("plain", work=0.1))
    store.submit(new("urgent", work=100, priority=1))
    assert [job.id for job in store.claim("me", 1, LEASE)] == ["urgent"]


def test_claim_for_models_takes_only_their_jobs(store: Jobs) -> None:
    store.submit(new("a", model="sdxl"))
    store.submit(new("b", model="miniature"))
    assert [job.id for job in store.claim("me", 5, LEASE, ["miniature"])] == ["b"]


def test_queue_position_counts_jobs_and_work_ahead(store: Jobs) -> None:
    for name, work in (("a", 1.0), ("b", 2.0), ("c", 4.0), ("d", 8.0)):
        store.submit(new(name, work=work))
    assert [store.get_queue_position(name) for name in "abcd"] == [(0, 0), (1, 1), (2, 3), (3, 7)]
    store.claim("me", 1, LEASE)
    assert store.get_queue_position("a") is None
    assert store.get_queue_position("c") == (1, 3)


def test_submit_to_a_full_queue_is_refused(store: Jobs) -> None:
    limits = Limits(queued_jobs=3, queued_jobs_per_key=2)
    for name in "ab":
        store.submit(new(name, key="k"), limits)
    with pytest.raises(QueueFullError, match="2 of your jobs"):
        store.submit(new("c", key="k"), limits)
    store.submit(new("d", key="other"), limits)
    with pytest.raises(QueueFullError, match="3 jobs are waiting") as full:
        store.submit(new("e", key="other"), Limits(queued_jobs=2))
    assert full.value.seconds == 3
    assert store.get("c") is None
    store.cancel("a")
    store.submit(new("f", key="k"), limits)
    with pytest.raises(QueueFullError):
        store.submit(new("g", key="k"), Limits(queued_work_s=2.5))


def test_queue_that_one_key_fills_has_room_for_others(store: Jobs) -> None:
    limits = Limits(queued_jobs=6, queued_work_s=6.0)
    for _ in range(6):
        store.submit(new(key="greedy"), limits)
    with pytest.raises(QueueFullError, match="6 jobs are waiting"):
        store.submit(new(key="greedy"), limits)
    for key in ("a", "a", "a", "b", "b"):  # a half each, then a third
        store.submit(new(key=key), limits)
    with pytest.raises(QueueFullError, match="11 jobs are waiting"):
        store.submit(new(key="b"), limits)
    store.submit(new(key="c"), limits)
    with pytest.raises(QueueFullError, match="12 jobs are waiting"):
        store.submit(new(key="d"), limits)


def test_claim_of_several_jobs_keeps_the_limit_of_a_key(store: Jobs) -> None:
    for i in range(6):
        store.submit(new(f"greedy{i}", key="greedy", priority=1))
    for i in range(2):
        store.submit(new(f"few{i}", key="few"))
    first = [job.id for job in store.claim("me", 4, LEASE, max_per_key=3)]
    assert first == ["greedy0", "greedy1", "greedy2", "few0"]


def test_claim_leaves_room_for_other_keys(store: Jobs) -> None:
    for _ in range(4):
        store.submit(new(key="greedy"))
    held = store.claim("me", 2, LEASE, max_per_key=2)
    late = store.submit(new(key="other"))
    more = store.claim("me", 8, LEASE, beside=held, max_per_key=2)
    assert [job.id for job in more] == [late.id]
    assert len(store.claim("me", 8, LEASE, beside=more, max_per_key=2)) == 2


def test_repeated_idempotency_key_returns_the_first_job(store: Jobs) -> None:
    first = store.submit(new("a", token="t", body="x"))
    assert store.submit(new("b", token="t", body="x")) == first
    with pytest.raises(IdempotencyError, match="'t' was used"):
        store.submit(new("c", token="t", body="y"))
    other = store.submit(new("d", token="t", body="y", key="other"))
    assert other.id == "d"
    assert {job.id for job in store.list_page(None, 10)} == {"a", "d"}
    full = Limits(queued_jobs=0)
    assert store.submit(new("e", token="t", body="x"), full) == first


def test_concurrent_submissions_with_one_idempotency_key_make_one_job(store: Jobs) -> None:
    names = list[str]()

    def submit(name: str) -> None:
        names.append(store.submit(new(name, token="t", body="x")).id)

    threads = [threading.Thread(target=submit, args=(f"n{i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(names) == 8
    assert len(set(names)) == 1
    assert len(store.list_page(None, 10)) == 1


def test_concurrent_claims_never_share_a_job(opened: Open) -> None:
    one = opened()
    for _ in range(60):
        one.submit(new())
    claimed = list[str]()

    def work(owner: str) -> None:
        own = opened_stores[owner]
        while got := own.claim(owner, 3, LEASE):
            for job in got:
                assert own.finish(job, "succeeded")
                claimed.append(job.id)

    opened_stores = {owner: opened() for owner in ("x", "y", "z")}
    threads = [threading.Thread(target=work, args=(owner,)) for owner in opened_stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(claimed) == len(set(claimed)) == 60
    assert one.count_by_state()["succeeded"] == 60


def test_backlog_counts_queued_work_and_longest_wait(store: Jobs, clock: Clock) -> None:
    assert store.get_backlog() == (0, 0)
    for name, work in (("a", 2.5), ("b", 3.0), ("c", 4.0)):
        store.submit(new(name, work=work))
        clock.now += 10
    assert store.get_backlog() == (9.5, 30)
    store.claim("me", 1, LEASE)  # a, the shortest
    assert store.get_backlog() == (7.0, 20)


def test_list_page_follows_cursor_key_and_state(store: Jobs, clock: Clock) -> None:
    for name in "abcde":
        store.submit(new(name, key="k"))
        clock.now += name in "bd"
    store.submit(new("x", key="other"))
    first = store.list_page("k", 2)
    assert [job.id for job in first] == ["e", "d"]
    second = store.list_page("k", 2, before=first[-1])
    assert [job.id for job in second] == ["c", "b"]
    assert [job.id for job in store.list_page("k", 2, before=second[-1])] == ["a"]
    assert store.list_page("k", 2, after=second[0]) == first
    store.cancel("c")
    assert [job.id for job in store.list_page("k", 5, states=["canceled"])] == ["c"]
    assert len(store.list_page(None, 10)) == 6


def test_summaries_list_unfinished_jobs_of_a_key_without_their_texts(
    store: Jobs, clock: Clock
) -> None:
    origin = A1111Origin(parameters={"prompt": "a" * 1000}, task="t", task_jobs=2)
    for name in "abc":
        store.submit(new(name, key="k", origin=origin if name == "b" else NativeOrigin()))
        clock.now += 1
    store.submit(new("x", key="other"))
    store.cancel("c")
    (running,) = store.claim("me", 1, LEASE)
    at = clock.now - 3
    native, web = (
        JobSummary("a", "queued", False, 1.0, at, "native"),
        JobSummary("b", "queued", False, 1.0, at + 1, "a1111", "t", 2),
    )
    expected = [
        replace(job, state="running") if job.id == running.id else job for job in (native, web)
    ]
    assert store.list_unfinished("k") == expected
    assert [job.id for job in store.list_latest("k", 2)] == ["b", "c"]
    assert store.list_latest("k", 2)[1].state == "canceled"


def test_list_ends_at_a_number_of_characters(store: Jobs) -> None:
    for name in "abcd":
        store.submit(new(name, key="k", request={"prompt": "a" * 1000}))
    assert [job.id for job in store.list_page("k", 9, max_chars=2500)] == ["d", "c"]
    assert [job.id for job in store.list_page("k", 9, max_chars=1)] == ["d"]
    assert len(store.list_page("k", 9)) == 4
    assert store.list_page("nobody", 9, max_chars=1) == []


def test_job_that_crashes_is_claimed_with_fewer_and_fewer_others(store: Jobs) -> None:
    """A job that kills its worker must not make the others fail."""
    names = [f"{n:02}" for n in range(80)]
    for name in names:
        store.submit(new(name))
    deadly, innocent, sizes = names[0], set(names[1:]), list[int]()
    held = list[Job]()
    while store.count_by_state()["failed"] == 0:
        held += store.claim("me", 64 - len(held), LEASE, beside=held)
        assert store.claim("me", 64 - len(held), LEASE, beside=held) == []
        if deadly in [job.id for job in held]:
            sizes.append(len(held))
            for job in held:
                store.release(job, crashed=True)
        else:
            for job in held:
                store.finish(job, "succeeded")
        held = []
    assert sizes[0] == 64
    assert sizes[-2:] == [1, 1]
    assert len(sizes) == MAX_CRASHES
    while left := store.claim("me", 64, LEASE):
        for job in left:
            assert store.finish(job, "succeeded")
    found = {name: store.get(name) for name in innocent}
    assert {job.state for job in found.values() if job} == {"succeeded"}
    assert store.count_by_state() == {
        "queued": 0, "running": 0, "succeeded": 79, "failed": 1, "canceled": 0
    }  # fmt: skip


def test_search_for_expired_jobs_reads_no_others(store: Jobs) -> None:
    """A server searches each minute, and may have a million ended jobs."""
    with store.database.read() as connection:
        if connection.dialect.name != "sqlite":
            pytest.skip("Postgres chooses by its statistics")
        statements: list[str] = []

        def note(_: object, __: object, statement: str, *others: object) -> None:
            statements.append(statement)

        event.listen(Engine, "before_cursor_execute", note)
        store.list_ended_before(0.0)
        event.remove(Engine, "before_cursor_execute", note)
        (search,) = (each for each in statements if each.startswith("SELECT"))
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {search}", (0.0, 1000, 0)).all()
    assert "jobs_oldest (ended<?)" in str(plan)


def test_deleted_job_takes_its_history_webhooks_files_and_token_along(
    store: Jobs, clock: Clock
) -> None:
    ended = new("a", webhook="https://example.org", token="t", body="x", files=["f", "g"])
    store.submit(ended)
    store.submit(new("b", files=["g"]))
    (claimed, *_) = [job for job in store.claim("me", 2, LEASE) if job.id == "a"]
    store.finish(claimed, "succeeded", result={"files": ["r"]})
    assert store.list_ended_before(clock.now - 60) == []
    clock.now += 61
    assert store.find_used_files(["f", "g", "h"]) == {"f", "g"}
    assert store.list_ended_before(clock.now - 60) == ["a"]
    store.delete(["a", "b"])  # b is under way, and stays
    assert store.list_ended_before(clock.now) == []
    assert store.get("b") is not None
    assert store.get("a") is None
    assert store.list_history("a") == []
    assert Outbox(store.database).list_webhooks("a") == []
    assert store.find_used_files(["f", "g"]) == {"g"}
    assert store.submit(replace(ended, id="c", body="y")).id == "c"


def test_concurrent_notices_are_all_in_the_history(store: Jobs) -> None:
    store.submit(new("a"))
    threads = [
        threading.Thread(target=store.add_history, args=("a", "notice", {"n": i})) for i in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert kinds(store, "a") == ["queued", *["notice"] * 6]


def test_requeue_expired_spares_the_leases_of_its_owner(store: Jobs, clock: Clock) -> None:
    for name in "ab":
        store.submit(new(name))
    (mine,) = store.claim("me", 1, LEASE)
    (theirs,) = store.claim("they", 1, LEASE)
    clock.now += LEASE + 1
    assert store.requeue_expired(except_owner="me") == [theirs.id]
    assert store.renew_leases("me", LEASE) == [Attempt(mine.id, 1, "me", False)]


def test_job_id_with_nul_is_not_found(store: Jobs) -> None:
    assert store.get("a\0") is None


@pytest.mark.parametrize(
    ("jump_s", "step_s"), [(10 * YEAR_S, LEASE / 3), (-10 * YEAR_S, MAX_LEASE_S / 3)]
)
def test_jump_of_the_clock_expires_only_the_lease_of_a_lost_server(
    store: Jobs, clock: Clock, jump_s: float, step_s: float
) -> None:
    elapsed = Clock()
    leases, gone = LeaseClock(LEASE, elapsed), list[str]()

    def pass_time(seconds: float) -> None:
        elapsed.now += seconds
        clock.now += seconds
        gone.extend(store.requeue_expired(leases=leases))

    for owner in ("alive", "lost"):
        store.submit(new(owner))
        store.claim(owner, 1, LEASE)
    pass_time(1.0)
    clock.now += jump_s
    pass_time(1.0)
    assert gone == []
    for _ in range(5):
        store.renew_leases("alive", max(LEASE, 2 * step_s))
        pass_time(step_s)
    assert gone == ["lost"]
