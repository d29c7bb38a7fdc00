"""Server-sent events, as FastAPI encodes them, for all dialects."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from fastapi.sse import EventSourceResponse, format_sse_event
from sqlalchemy.exc import SQLAlchemyError
from starlette.background import BackgroundTask
from starlette.types import Receive, Scope, Send

from overpaint.server.settings import ServerSettings
from overpaint.server.store.api_keys import ApiKeys

COMMENT = b": the job goes on\n"
"""A comment, which clients ignore. It has no empty line: after one, httpx-sse, which fal's client
uses, repeats the last event's id without data."""

EVENT_END = b"\n\n"


def encode_event(data: Any, event: str | None = None, number: int | None = None) -> bytes:
    """Encode one event whose data is JSON.

    Args:
        data: the value that becomes JSON.
        event: the event's type; without one, browsers call it `message`.
        number: the event's id, which clients send back as `Last-Event-ID` to resume.
    """
    return encode_text_event(json.dumps(data), event, number)


def encode_text_event(text: str, event: str | None = None, number: int | None = None) -> bytes:
    """Encode one event whose data is `text`, which may have several lines."""
    identifier = None if number is None else str(number)
    return format_sse_event(data_str=text, event=event, id=identifier)


class EventStreamResponse(EventSourceResponse):
    """Sends events, and comments while there are none, so that proxies keep the connection.

    The events end when the client's API key is revoked.
    """

    def __init__(
        self,
        events: AsyncGenerator[bytes],
        headers: Mapping[str, str],
        background: BackgroundTask | None,
    ):
        super().__init__(events, headers=headers, background=background)
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        state = scope["app"].state
        settings: ServerSettings = state.settings
        stream = add_comments(self._events, settings.http.event_comment_interval_s)
        if digest := scope.get("state", {}).get("digest"):
            interval_s = settings.database.key_cache_s
            stream = end_when_revoked(stream, state.keys, digest, interval_s)
        async with contextlib.aclosing(stream) as self.body_iterator:
            await super().__call__(scope, receive, send)


def event_stream_response(
    events: AsyncGenerator[bytes],
    *,
    headers: Mapping[str, str] | None = None,
    background: BackgroundTask | None = None,
) -> EventStreamResponse:
    """Stream encoded events to the client.

    nginx passes each event on at once, because of `X-Accel-Buffering`.

    Args:
        events: from `encode_event`.
        headers: sent in addition to those of every event stream.
        background: runs after the last event, and when the client disconnects.
    """
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no", **(headers or {})}
    return EventStreamResponse(events, headers, background)


async def add_comments(events: AsyncGenerator[bytes], interval_s: float) -> AsyncGenerator[bytes]:
    """Yield parts of events as they come, and a comment after each pause between two events.

    Args:
        events: parts of events. An event ends with an empty line.
        interval_s: seconds of a pause.
    """
    between_events = True
    async with contextlib.aclosing(add_pauses(events, interval_s)) as parts:
        async for part in parts:
            if part is not None:
                between_events = part.endswith(EVENT_END)
                yield part
            elif between_events:
                yield COMMENT


async def end_when_revoked(
    events: AsyncGenerator[bytes], keys: ApiKeys, digest: str, interval_s: float
) -> AsyncGenerator[bytes]:
    """Yield parts of events as they come, until the client's API key is revoked.

    Args:
        events: parts of events.
        keys: the server's keys. While they cannot be read, the events go on.
        digest: of the client's key.
        interval_s: seconds between two checks of the key.
    """
    clock = asyncio.get_running_loop().time
    checked_at = clock()
    async with contextlib.aclosing(add_pauses(events, interval_s)) as parts:
        async for part in parts:
            if part is None or clock() - checked_at >= interval_s:
                checked_at = clock()
                with contextlib.suppress(SQLAlchemyError):
                    if not await asyncio.to_thread(keys.accepts, digest):
                        return
            if part is not None:
                yield part


async def add_pauses(events: AsyncGenerator[bytes], seconds: float) -> AsyncGenerator[bytes | None]:
    """Yield parts of events as they come, and None after each pause.

    Args:
        events: parts of events.
        seconds: of a pause.
    """
    coming = asyncio.ensure_future(anext(events, None))
    try:
        while True:
            if not (await asyncio.wait([coming], timeout=seconds))[0]:
                yield None
                continue
            if (part := coming.result()) is None:
                return
            yield part
            coming = asyncio.ensure_future(anext(events, None))
    finally:
        if coming.done():
            await events.aclose()
        else:
            coming.cancel()  # This raises in the generator, which ends it.
