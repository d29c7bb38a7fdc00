"""Server-sent events, as FastAPI encodes them, for all dialects."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from fastapi.sse import EventSourceResponse, format_sse_event
from starlette.background import BackgroundTask
from starlette.types import Receive, Scope, Send

from overpaint.server.settings import ServerSettings

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
    """Sends events, and comments while there are none, so that proxies keep the connection."""

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
        settings: ServerSettings = scope["app"].state.settings
        stream = add_comments(self._events, settings.http.event_comment_interval_s)
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
    coming = asyncio.ensure_future(anext(events, None))
    try:
        while True:
            if not (await asyncio.wait([coming], timeout=interval_s))[0]:
                if between_events:
                    yield COMMENT
                continue
            if (part := coming.result()) is None:
                return
            between_events = part.endswith(EVENT_END)
            yield part
            coming = asyncio.ensure_future(anext(events, None))
    finally:
        if coming.done():
            await events.aclose()
        else:
            coming.cancel()  # This raises in the generator, which ends it.
