"""A budget of memory for the request bodies that the server handles at once."""

from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager

from fastapi import HTTPException
from starlette.types import Message, Receive

RETRY_AFTER_S = 5


class BodyBudget:
    """Counts the bytes of bodies until their requests are answered.

    API keys share the budget: when it is used up, a key that has less than its share still has
    room, up to twice the budget.
    """

    def __init__(self, max_bytes: float):
        """Begin with no bodies.

        Args:
            max_bytes: bytes of all bodies together.
        """
        self._max_bytes = max_bytes
        self._used = Counter[str]()

    @contextmanager
    def count_body(self, key: str, receive: Receive) -> Generator[Receive]:
        """Count a body that is received in the `with` block.

        Args:
            key: the API key of the client.
            receive: receives the parts of the body.

        Yields:
            A function to receive them with. It raises HTTPException 503 if there is no room.
        """
        size = 0

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
            if not self._used[key]:
                del self._used[key]

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


NO_BUDGET = BodyBudget(float("inf"))
"""For applications without a budget."""
