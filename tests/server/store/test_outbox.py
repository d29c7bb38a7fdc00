"""Webhooks in the store: due, tried, logged, given up, replayed."""

from __future__ import annotations

import pytest

from overpaint.server.store.job_rows import NewJob
from overpaint.server.store.jobs import Jobs
from overpaint.server.store.outbox import MAX_CONCURRENT_PER_KEY, WEBHOOK_EVENTS, Delivery, Outbox
from tests.server.conftest import Clock, Open

LEASE = 10.0
URL = "https://example.org/hook"


def submit(store: Jobs, name: str, *kinds: str, key: str = "k", url: str = URL) -> None:
    store.submit(NewJob(name, key, "m", {}, 1.0, webhook=url, webhook_events=kinds))


@pytest.fixture
def outbox(store: Jobs) -> Outbox:
    return Outbox(store.database)


def test_webhooks_are_due_after_their_event_and_retried(
    store: Jobs, outbox: Outbox, clock: Clock
) -> None:
    submit(store, "a", "start", "completed")
    assert outbox.claim_due(5, LEASE) == []
    (claimed,) = store.claim("me", 1, LEASE)
    (start,) = outbox.claim_due(5, LEASE)
    assert (start.kind, start.tries, start.job) == ("start", 0, "a")
    assert outbox.claim_due(5, LEASE) == []
    outbox.record_delivery(start, Delivery(clock.now, 500, None, 0.1), again=30)
    assert outbox.claim_due(5, LEASE) == []
    clock.now += 30
    (again,) = outbox.claim_due(5, LEASE)
    assert (again.id, again.tries) == (start.id, 1)
    outbox.record_delivery(again, Delivery(clock.now, None, "refused", 0.3), again=None)
    store.finish(claimed, "succeeded")
    (end,) = outbox.claim_due(5, LEASE)
    assert end.kind == "completed"
    outbox.record_delivery(end, Delivery(clock.now, 204, None, 0.2), again=30)
    clock.now += 1e6
    assert outbox.claim_due(5, LEASE) == []
    first, second = outbox.list_webhooks("a")
    assert (first.kind, first.state) == ("start", "failed")
    assert [(d.status, d.error) for d in first.tries] == [(500, None), (None, "refused")]
    assert (second.kind, second.state) == ("completed", "delivered")
    counts = {"later": 0, "due": 0, "delivered": 1, "failed": 1, "gone": 0}
    assert outbox.count_by_state() == counts


@pytest.mark.parametrize("under_way", [False, True])
def test_webhooks_of_an_ended_job_are_not_retried_after_completed(
    store: Jobs, outbox: Outbox, clock: Clock, under_way: bool
) -> None:
    submit(store, "a", "start", "completed")
    (claimed,) = store.claim("me", 1, LEASE)
    (start,) = outbox.claim_due(5, LEASE)
    refused = Delivery(clock.now, 500, None, 0.1)
    if not under_way:
        outbox.record_delivery(start, refused, again=30)
    store.finish(claimed, "succeeded")
    (end,) = outbox.claim_due(5, LEASE)
    outbox.record_delivery(end, Delivery(clock.now, 204, None, 0.2), again=30)
    if under_way:
        outbox.record_delivery(start, refused, again=30)
    clock.now += 1e6
    assert outbox.claim_due(5, LEASE) == []
    assert [hook.state for hook in outbox.list_webhooks("a")] == ["failed", "delivered"]
    assert outbox.replay("a", "start")
    assert [post.kind for post in outbox.claim_due(5, LEASE)] == ["start"]


def test_logs_webhooks_of_an_ended_job_do_not_wait(store: Jobs, outbox: Outbox) -> None:
    submit(store, "a", "logs", "completed")
    (claimed,) = store.claim("me", 1, LEASE)
    outbox.requeue_logs(["a"])
    store.finish(claimed, "succeeded")
    outbox.requeue_logs(["a"])
    assert [post.kind for post in outbox.claim_due(5, LEASE)] == ["completed"]


def test_output_webhook_precedes_completed_only_for_succeeded_jobs(
    store: Jobs, outbox: Outbox
) -> None:
    submit(store, "good", *WEBHOOK_EVENTS)
    submit(store, "bad", *WEBHOOK_EVENTS)
    for job in store.claim("me", 2, LEASE):
        store.finish(job, "succeeded" if job.id == "good" else "failed")
    due = [(post.job, post.kind) for post in outbox.claim_due(9, LEASE)]
    assert [kind for job, kind in due if job == "good"] == ["start", "output", "completed"]
    assert [kind for job, kind in due if job == "bad"] == ["start", "completed"]


def test_replayed_webhook_is_due_again(store: Jobs, outbox: Outbox, clock: Clock) -> None:
    submit(store, "a", "start", "completed")
    assert not outbox.replay("a", "completed")
    store.cancel("a")
    (end,) = outbox.claim_due(5, LEASE)
    outbox.record_delivery(end, Delivery(clock.now, 200, None, 0.1), again=30)
    assert outbox.replay("a", "completed")
    (replayed,) = outbox.claim_due(5, LEASE)
    assert (replayed.id, replayed.tries, replayed.turn) == (end.id, 0, end.turn)
    assert not outbox.replay("a", "nothing")


def test_webhook_of_a_dead_sender_is_due_again(store: Jobs, outbox: Outbox, clock: Clock) -> None:
    submit(store, "a", "completed")
    store.cancel("a")
    assert len(outbox.claim_due(5, LEASE)) == 1
    clock.now += LEASE
    (again,) = outbox.claim_due(5, LEASE)
    assert (again.kind, again.tries) == ("completed", 1)


def test_two_servers_claim_different_webhooks(opened: Open) -> None:
    mine, yours = opened(), opened()
    for name in "abcd":
        submit(mine, name, "completed")
        mine.cancel(name)
    taken = [Outbox(s.database).claim_due(2, LEASE) for s in (mine, yours)]
    assert sorted(post.job for posts in taken for post in posts) == list("abcd")


def test_slow_receivers_of_one_key_delay_no_other_key(store: Jobs, outbox: Outbox) -> None:
    for number in range(2 * MAX_CONCURRENT_PER_KEY):
        submit(store, f"slow{number}", "completed")
        store.cancel(f"slow{number}")
    submit(store, "other", "completed", key="them")
    store.cancel("other")
    assert [post.key for post in outbox.claim_due(9, LEASE, {"k": MAX_CONCURRENT_PER_KEY - 1})] == [
        "k",
        "them",
    ]
    assert outbox.claim_due(9, LEASE, {"k": MAX_CONCURRENT_PER_KEY, "them": 1}) == []
    assert [post.key for post in outbox.claim_due(4 * MAX_CONCURRENT_PER_KEY, LEASE)] == [
        "k"
    ] * MAX_CONCURRENT_PER_KEY


def test_logs_webhook_is_due_after_each_progress(store: Jobs, outbox: Outbox, clock: Clock) -> None:
    submit(store, "a", "logs")
    submit(store, "b", "completed")
    outbox.requeue_logs(["a", "b"])
    (first,) = outbox.claim_due(5, LEASE)
    assert (first.job, first.kind, first.turn) == ("a", "logs", 1)
    outbox.requeue_logs(["a", "b"])
    (second,) = outbox.claim_due(5, LEASE)
    assert (second.id, second.turn) == (first.id, 2)
    outbox.record_delivery(
        first, Delivery(clock.now, 500, None, 0.1), again=None
    )  # of what is over
    outbox.record_delivery(second, Delivery(clock.now, 200, None, 0.1), again=30)
    (logs,) = outbox.list_webhooks("a")
    assert (logs.state, len(logs.tries)) == ("delivered", 2)


def test_gone_receiver_gets_no_more_webhooks_of_earlier_jobs(store: Jobs, outbox: Outbox) -> None:
    submit(store, "a", "start", "completed")
    submit(store, "elsewhere", "completed", url=f"{URL}/other")
    submit(store, "theirs", "completed", key="them")
    outbox.cancel_for_url("k", URL)
    for name in ("a", "elsewhere", "theirs"):
        store.cancel(name)
    assert {post.job for post in outbox.claim_due(9, LEASE)} == {"elsewhere", "theirs"}
    assert [posted.state for posted in outbox.list_webhooks("a")] == ["gone", "gone"]
    submit(store, "later", "completed")
    store.cancel("later")
    assert [post.job for post in outbox.claim_due(9, LEASE)] == ["later"]


def test_webhook_secret_differs_per_key_and_stays(opened: Open) -> None:
    mine, yours = Outbox(opened().database), Outbox(opened().database)
    secret = mine.get_secret("k")
    assert secret.startswith("whsec_")
    assert len(secret) == len("whsec_") + 44
    assert yours.get_secret("k") == secret
    assert mine.get_secret("other") != secret
