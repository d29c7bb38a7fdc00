"""The server-sent events of OpenAI's images API."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from overpaint.engine.messages import PreviewImage
from overpaint.imaging import codec
from overpaint.server.api.event_stream import encode_event
from overpaint.server.api.fields import encode_base64
from overpaint.server.api.inline_files import collect_inline_files, stream_body
from overpaint.server.api.openai.protocol import (
    ZERO_USAGE,
    error_response,
    image_attributes,
    image_data,
    image_size,
    job_error,
)
from overpaint.server.http.problems import ShutdownError
from overpaint.server.jobs.service import Service
from overpaint.server.store.job_rows import ENDED, HistoryEntry, Job


async def job_events(
    service: Service, job: Job, prefix: str, max_previews: int
) -> AsyncGenerator[bytes]:
    """Yield the events of a job until it ends: previews, then every image or an error.

    Args:
        service: the running server.
        job: the job to follow.
        prefix: start of the event types: "image_generation" or "image_edit".
        max_previews: number of previews to send at most; a repeated preview is skipped.
    """
    sent: list[bytes] = []
    async for event in service.follow(job.id):
        match event:
            case PreviewImage(_, data) if len(sent) < max_previews and data not in sent[-1:]:
                kind = f"{prefix}.partial_image"
                yield encode_typed_event(kind, time.time(), _preview(job, data, len(sent)))
                sent.append(data)
            case HistoryEntry(_, _, kind) if kind in ENDED:
                job = await asyncio.to_thread(service.jobs.get, job.id) or job
                break
            case _:
                pass
    if job.state not in ENDED:
        yield encode_error(ShutdownError(job.id))
    elif error := job_error(job):
        yield encode_error(error)
    with collect_inline_files() as files:
        images = await asyncio.to_thread(image_data, service, job)
    for image in images:
        body = {**image, **image_attributes(job), "size": image_size(job), "usage": ZERO_USAGE}
        # A repeated request has the same events: the time is that of the JSON response.
        event = encode_typed_event(f"{prefix}.completed", job.created, body)
        async for part in stream_body(event, files):
            yield part


def _preview(job: Job, data: bytes, index: int) -> dict[str, Any]:
    with codec.open_image(data, "the preview") as preview:
        size = f"{preview.width}x{preview.height}"
    return {
        "b64_json": encode_base64(data),
        "partial_image_index": index,
        **image_attributes(job),
        "output_format": "jpeg",
        "size": size,
    }


def encode_typed_event(kind: str, created_s: float, body: Mapping[str, Any]) -> bytes:
    """Encode an event whose data contains its type and its time in Unix seconds."""
    return encode_event({"type": kind, "created_at": int(created_s), **body}, kind)


def encode_error(error: Exception) -> bytes:
    """Encode an error as an event."""
    body: dict[str, Any] = json.loads(bytes(error_response(error).body))
    return encode_typed_event("error", time.time(), body)
