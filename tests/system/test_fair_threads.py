"""Threads that keys share: turns, limits of a key, and the end."""

import threading
from concurrent.futures import Future, wait

import pytest

from overpaint.system.fair_threads import FairThreads

PATIENCE_S = 60.0


def test_fair_threads_one_key_never_occupies_all() -> None:
    threads = FairThreads(2, 1, "test")
    go = threading.Event()
    slow = [threads.submit("greedy", go.wait, PATIENCE_S) for _ in range(5)]
    assert threads.submit("other", lambda: "done").result(PATIENCE_S) == "done"
    assert not any(future.done() for future in slow)
    go.set()
    assert all(future.result(PATIENCE_S) for future in slow)
    threads.shutdown()


def test_fair_threads_keys_take_turns() -> None:
    threads = FairThreads(1, 1, "test")
    go, order = threading.Event(), list[str]()
    blocking = threads.submit("a", go.wait, PATIENCE_S)
    calls: list[Future[None]] = [threads.submit(key, order.append, key) for key in "aaabbc"]
    go.set()
    assert blocking.result(PATIENCE_S)
    wait(calls, PATIENCE_S)
    assert "".join(order[:3]) in ("abc", "bca", "bac")
    assert sorted(order) == list("aaabbc")
    threads.shutdown()


def test_fair_threads_pass_on_errors_and_cancellations() -> None:
    threads = FairThreads(1, 1, "test")
    with pytest.raises(ZeroDivisionError):
        threads.submit("a", lambda: 1 / 0).result(PATIENCE_S)
    go = threading.Event()
    running = threads.submit("a", go.wait, PATIENCE_S)
    waiting = threads.submit("a", lambda: None)
    assert waiting.cancel()
    last = threads.submit("b", lambda: 3)
    go.set()
    assert (running.result(PATIENCE_S), last.result(PATIENCE_S)) == (True, 3)
    threads.shutdown()


def test_fair_threads_shutdown_cancels_waiting_calls() -> None:
    threads = FairThreads(1, 1, "test")
    go, began = threading.Event(), threading.Event()

    def block() -> bool:
        began.set()
        return go.wait(PATIENCE_S)

    running = threads.submit("a", block)
    began.wait(PATIENCE_S)
    waiting = threads.submit("b", lambda: None)
    threading.Timer(0.05, go.set).start()
    threads.shutdown()
    assert running.result(PATIENCE_S)
    assert waiting.cancelled()
