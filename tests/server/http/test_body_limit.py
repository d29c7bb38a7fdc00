"""How the server answers a body that it does not read to its end."""

import asyncio
from typing import Any

import pytest
from fastapi import HTTPException
from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send

from overpaint.server.http.body_limit import BodyLimitMiddleware, BodyPace
from overpaint.server.settings import HttpSettings

PART = 100


def answer(
    status: int, parts: int, reads: int = 1, endless: bool = False, max_bytes: int = 10_000
) -> list[str]:
    """Return the events of a request: "part" for each part that was read, and the status.

    Args:
        status: of the answer.
        parts: of the body.
        reads: parts that the application reads before it answers.
        endless: whether the client stalls after all parts but the last.
        max_bytes: of a body.
    """
    events: list[str] = []
    settings = HttpSettings(request_body_timeout_s=0.05)

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        answered = status
        try:
            for _ in range(reads):
                await receive()
        except HTTPException as error:
            answered = error.status_code
        await JSONResponse({}, answered)(scope, receive, send)

    async def receive() -> Message:
        if len(events) == parts - endless:
            await asyncio.Event().wait()
        events.append("part")
        return {
            "type": "http.request",
            "body": bytes(PART),
            "more_body": len(events) < parts,
        }

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            events.append(str(message["status"]))

    scope: dict[str, Any] = {"type": "http", "method": "POST", "path": "/", "headers": []}
    middleware = BodyLimitMiddleware(application, max_bytes, settings)
    asyncio.run(middleware(scope, receive, send))
    return events


@pytest.mark.parametrize("status", [401, 422, 429, 503])
def test_error_is_answered_after_the_rest_of_the_body(status: int) -> None:
    assert answer(status, parts=5) == ["part"] * 5 + [str(status)]
    assert answer(status, parts=5, reads=0) == ["part"] * 5 + [str(status)]
    assert answer(status, parts=1) == ["part", str(status)]


def test_body_too_large_is_answered_after_the_rest_of_the_body() -> None:
    assert answer(413, parts=5, reads=5, max_bytes=250) == ["part"] * 5 + ["413"]
    assert answer(413, parts=1000, reads=5, max_bytes=250) == ["part"] * 6 + ["413"]


def test_error_waits_for_a_stalled_body_for_a_limited_time() -> None:
    assert answer(503, parts=5, endless=True) == ["part"] * 4 + ["503"]
    assert answer(408, parts=5, reads=5, endless=True) == ["part"] * 4 + ["408"]


def test_success_is_answered_at_once() -> None:
    assert answer(200, parts=5) == ["part", "200"]


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (
            HttpSettings(request_body_timeout_s=0.01),
            "slower than 4,096 bytes per second",
        ),
        (
            HttpSettings(request_body_total_timeout_s=0.01),
            "longer than 0.01 seconds altogether",
        ),
    ],
)
def test_refusal_of_a_slow_body_names_the_limit(settings: HttpSettings, why: str) -> None:
    async def never() -> Message:
        await asyncio.Event().wait()
        return {}

    with pytest.raises(HTTPException, match=why) as refused:
        asyncio.run(BodyPace(settings).wait_for(never))
    assert refused.value.status_code == 408
