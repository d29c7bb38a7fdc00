"""Bounds on the requests that the server handles at once, and on the memory of their bodies."""

from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager

from fastapi import HTTPException
from starlette.types import Message, Receive

RETRY_AFTER_S = 5


class RequestBudget:
    """Counts requests with their bodies until they are answered.

    API keys share the budget of bytes: when it is used up, a key that has less than its share
    still has room, up to twice the budget.
    """

    def __init__(self, max_bytes: float, max_requests_per_key: float = float("inf")):
        """Begin with no requests.

        Args:
            max_bytes: bytes of all bodies together.
            max_requests_per_key: requests of one key, which each hold a connection.
        """
        self._max_bytes = max_bytes
        self._max_requests_per_key = max_requests_per_key
        self._used = Counter[str]()
        self._requests = Counter[str]()

    @contextmanager
    def count_request(self, key: str, receive: Receive) -> Generator[Receive]:
        """Count a request that is answered in the `with` block.

        Args:
            key: the API key of the client.
            receive: receives the parts of the body.

        Yields:
            A function to receive them with. It raises HTTPException 503 if there is no room.

        Raises:
            HTTPException: 429, too many requests of the key are not answered yet.
        """
        size = 0
        if self._requests[key] >= self._max_requests_per_key:
            raise HTTPException(
                429,
                f"{self._requests[key]:,} requests of this API key are not answered yet. Wait "
                "until some of them are.",
                {"Retry-After": str(RETRY_AFTER_S)},
            )
        self._requests[key] += 1

        async def receive_counted() -> Message:
            nonlocal size
            message = await receive()
            if added := len(message.get("body", b"")):
                self._check_room(key, added)
                self._used[key] += added
                size += added
            return message

        try:
            yield receive_counted
        finally:
            self._used[key] -= size
            self._requests[key] -= 1
            for counts in (self._used, self._requests):
                if not counts[key]:
                    del counts[key]

    def _check_room(self, key: str, added: int) -> None:
        total = self._used.total() + added
        share = self._max_bytes / len({*self._used, key})
        if total <= self._max_bytes or (
            self._used[key] + added <= share and total <= 2 * self._max_bytes
        ):
            return
        raise HTTPException(
            503,
            "The server handles as many large requests as its memory allows. Try again later.",
            {"Retry-After": str(RETRY_AFTER_S)},
        )


NO_BUDGET = RequestBudget(float("inf"))
"""For applications without a budget."""
