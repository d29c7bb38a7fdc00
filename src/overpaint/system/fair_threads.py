"""Threads that keys share: one key alone can never occupy all of them."""

import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

Call = tuple["Future[Any]", Callable[[], Any]]


class FairThreads:
    """Runs calls in threads. Keys take turns, and each key has a limited number of threads."""

    def __init__(
        self,
        threads: int,
        per_key: int,
        name: str,
        initializer: Callable[[], None] | None = None,
    ):
        """Start no thread before the first call.

        Args:
            threads: threads for all keys together.
            per_key: threads that one key has at once.
            name: of the threads.
            initializer: runs at the start of each thread.
        """
        self._per_key = per_key
        self._pool = ThreadPoolExecutor(threads, name, initializer)
        self._waiting: OrderedDict[str, deque[Call]] = OrderedDict()
        self._running = Counter[str]()
        self._lock = threading.Lock()

    def submit(self, key: str, call: Callable[P, T], /, *args: P.args, **kw: P.kwargs) -> Future[T]:
        """Run a call when its key has its turn."""
        future: Future[T] = Future()
        with self._lock:
            self._waiting.setdefault(key, deque()).append((future, partial(call, *args, **kw)))
        self._pool.submit(self._work)
        return future

    def shutdown(self) -> None:
        """Cancel the calls that wait, and let the others end."""
        with self._lock:
            waiting = [future for calls in self._waiting.values() for future, _ in calls]
            self._waiting.clear()
        for future in waiting:
            future.cancel()
        self._pool.shutdown()

    def _work(self) -> None:
        """Run calls until no key has a call and a thread left."""
        while (taken := self._take()) is not None:
            key, (future, call) = taken
            try:
                _run(future, call)
            finally:
                with self._lock:
                    self._running[key] -= 1
                    if not self._running[key]:
                        del self._running[key]

    def _take(self) -> tuple[str, Call] | None:
        with self._lock:
            for key, calls in self._waiting.items():
                if self._running[key] < self._per_key:
                    self._running[key] += 1
                    taken = calls.popleft()
                    del self._waiting[key]
                    if calls:
                        self._waiting[key] = calls  # behind all other keys
                    return key, taken
            return None


def _run(future: "Future[Any]", call: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = call()
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)
