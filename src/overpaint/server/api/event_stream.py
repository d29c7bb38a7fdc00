"""Server-sent events, as FastAPI encodes them, for all dialects."""

import json
from collections.abc import AsyncIterable, Mapping
from typing import Any

from fastapi.sse import EventSourceResponse, format_sse_event
from starlette.background import BackgroundTask


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


def event_stream_response(
    events: AsyncIterable[bytes],
    *,
    headers: Mapping[str, str] | None = None,
    background: BackgroundTask | None = None,
) -> EventSourceResponse:
    """Stream encoded events to the client.

    Args:
        events: from `encode_event`.
        headers: sent in addition to `Cache-Control`.
        background: runs after the last event, and when the client disconnects.
    """
    headers = {"Cache-Control": "no-store", **(headers or {})}
    return EventSourceResponse(events, headers=headers, background=background)
