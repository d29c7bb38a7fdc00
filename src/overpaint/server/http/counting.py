"""Counts of HTTP responses and rejected jobs, for metrics."""

from collections import Counter
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from overpaint.server.http.problems import REJECTION_REASONS

WORK_METHODS = ("POST", "PUT")
"""Methods that submit work. A refusal of such a request counts as a rejection."""


@dataclass
class ResponseCounts:
    """Counts of responses by status, and of rejections by reason."""

    responses: Counter[int] = field(default_factory=Counter[int])
    rejections: Counter[str] = field(
        default_factory=lambda: Counter(dict.fromkeys(REJECTION_REASONS, 0))
    )


class ResponseCounterMiddleware:
    """Counts responses, and rejections by the reason that `record_rejection` leaves."""

    def __init__(self, app: ASGIApp, answers: ResponseCounts):
        """Wrap an application.

        Args:
            app: the application.
            answers: the counts to raise.
        """
        self._app = app
        self._answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request and count its response."""

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._answers.responses[message["status"]] += 1
                reason = scope.get("state", {}).get("refused")
                if reason and scope["method"] in WORK_METHODS:
                    self._answers.rejections[reason] += 1
            await send(message)

        await self._app(scope, receive, counted)
