"""Stream."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from overpaint.engine.messages import PreviewImage
from overpaint.imaging import codec
from overpaint.server.api.event_stream import encode_event
from overpaint.server.api.openai.protocol import (
    USAGE,
    encoded,
    error_response,
    failure,
    made,
    size_of,
    told_of,
    unfinished,
)
from overpaint.server.jobs.service import Service
from overpaint.server.store.jobs import ENDED, Job, Said


async def streamed(service: Service, job: Job, kind: str, previews: int) -> AsyncGenerator[bytes]:
    """A job as their events: previews, at most so many, and then each picture; or an error."""
    shown: list[bytes] = []
    async for story in service.follow(job.id):
        match story:
            case PreviewImage(_, data) if len(shown) < previews and data not in shown[-1:]:
                with codec.open_image(data, "the preview") as preview:
                    size = f"{preview.width}x{preview.height}"
                own = {
                    "b64_json": encoded(data),
                    "partial_image_index": len(shown),
                    **told_of(job),
                    "output_format": "jpeg",
                    "size": size,
                }
                shown.append(data)
                yield event(f"{kind}.partial_image", own)
            case Said(_, _, said) if said in ENDED:
                job = await asyncio.to_thread(service.jobs.get, job.id) or job
                break
            case _:
                pass
    if job.state not in ENDED:
        yield mistake(unfinished(job))
    elif error := failure(job):
        yield mistake(error)
    for picture in await asyncio.to_thread(made, service, job):
        own = {**picture, **told_of(job), "size": size_of(job), "usage": USAGE}
        yield event(f"{kind}.completed", own)


def event(kind: str, body: Mapping[str, Any]) -> bytes:
    """A server-sent event."""
    data = {"type": kind, "created_at": int(time.time()), **body}
    return encode_event(data, kind)


def mistake(error: Exception) -> bytes:
    """An error as a server-sent event."""
    body: dict[str, Any] = json.loads(bytes(error_response(error).body))
    return event("error", body)
