"""Bounds on the requests that the server handles at once, and on the memory that they take."""

import threading
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from fastapi import HTTPException
from starlette.types import Message, Receive

RETRY_AFTER_S = 5


class RequestBudget:
    """Counts requests until they are answered, with their bodies and the files that they name.

    API keys share the budget of bytes: when it is used up, a key that has less than its share
    still has room, up to twice the budget. Any thread may call it.
    """

    def __init__(self, max_bytes: float, max_requests_per_key: float = float("inf")):
        """Begin with no requests.

        Args:
            max_bytes: bytes of all requests together.
            max_requests_per_key: requests of one key, which each hold a connection.
        """
        self._max_bytes = max_bytes
        self._max_requests_per_key = max_requests_per_key
        self._used = Counter[str]()
        self._requests = Counter[str]()
        self._lock = threading.Lock()

    @contextmanager
    def count_request(self, key: str, receive: Receive) -> Generator[Receive]:
        """Count a request that is answered in the `with` block.

        There, `count_bytes` counts for this request.

        Args:
            key: the API key of the client.
            receive: receives the parts of the body.

        Yields:
            A function to receive them with. It raises HTTPException 503 if there is no room.

        Raises:
            HTTPException: 429, too many requests of the key are not answered yet.
        """
        self._begin(key)
        request = CountedRequest(self, key)
        token = _current_request.set(request)

        async def receive_counted() -> Message:
            message = await receive()
            self.add(request, len(message.get("body", b"")))
            return message

        try:
            yield receive_counted
        finally:
            _current_request.reset(token)
            self._end(request)

    def add(self, request: "CountedRequest", size: int) -> None:
        """Count bytes of a request. A thread may still do so after the request is answered.

        Raises:
            HTTPException: 503, there is no room.
        """
        key = request.key
        with self._lock:
            if not size or request.answered:
                return
            total = self._used.total() + size
            share = self._max_bytes / len({*self._used, key})
            own = self._used[key] + size
            if total <= self._max_bytes or (own <= share and total <= 2 * self._max_bytes):
                self._used[key] = own
                request.size += size
                return
        raise HTTPException(
            503,
            "The server handles as many large requests as its memory allows. Try again later.",
            {"Retry-After": str(RETRY_AFTER_S)},
        )

    def _begin(self, key: str) -> None:
        with self._lock:
            if self._requests[key] < self._max_requests_per_key:
                self._requests[key] += 1
                return
        raise HTTPException(
            429,
            f"{self._requests[key]:,} requests of this API key are not answered yet. Wait "
            "until some of them are.",
            {"Retry-After": str(RETRY_AFTER_S)},
        )

    def _end(self, request: "CountedRequest") -> None:
        with self._lock:
            request.answered = True
            self._used[request.key] -= request.size
            self._requests[request.key] -= 1
            for counts in (self._used, self._requests):
                if not counts[request.key]:
                    del counts[request.key]


@dataclass
class CountedRequest:
    """A request that a budget counts.

    Attributes:
        budget: counts it.
        key: the API key of the client.
        size: its bytes so far.
        answered: whether it counts no more.
    """

    budget: RequestBudget
    key: str
    size: int = 0
    answered: bool = False


_current_request: ContextVar[CountedRequest | None] = ContextVar("counted_request", default=None)


def count_bytes(size: int) -> None:
    """Count bytes that the current request holds beside its body, until it is answered.

    Such bytes are the stored files that a request names, and the URLs that the server fetches for
    it. Without a counted request, this does nothing.

    Args:
        size: the number of bytes.

    Raises:
        HTTPException: 503, the memory for requests is used up.
    """
    if request := _current_request.get():
        request.budget.add(request, size)


NO_BUDGET = RequestBudget(float("inf"))
"""For applications without a budget."""
