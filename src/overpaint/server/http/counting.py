"""Counting."""

from collections import Counter
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from overpaint.server.http.problems import REJECTION_REASONS

WORK_METHODS = ("POST", "PUT")
"""Methods of requests whose refusal is a rejection."""


@dataclass
class ResponseCounts:
    """What was answered: how often each status, and how often work was refused, by the reason."""

    responses: Counter[int] = field(default_factory=Counter[int])
    rejections: Counter[str] = field(
        default_factory=lambda: Counter(dict.fromkeys(REJECTION_REASONS, 0))
    )


class ResponseCounterMiddleware:
    """Counts what is answered, and what is refused by the reason that whoever refused it left."""

    def __init__(self, app: ASGIApp, answers: ResponseCounts):
        """Stand before an application.

        Args:
            app: what answers.
            answers: where to count.
        """
        self._app = app
        self._answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, and count."""

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._answers.responses[message["status"]] += 1
                reason = scope.get("state", {}).get("refused")
                if reason and scope["method"] in WORK_METHODS:
                    self._answers.rejections[reason] += 1
            await send(message)

        await self._app(scope, receive, counted)
