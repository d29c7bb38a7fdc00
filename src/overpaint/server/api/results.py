"""Results."""

import asyncio
from datetime import UTC, datetime
from typing import Any

from fastapi import HTTPException
from fastapi import Request as Incoming
from fastapi.responses import FileResponse

from overpaint.server.api.deps import get_service
from overpaint.server.jobs.service import Service
from overpaint.server.store.jobs import ENDED, Job

MEDIA_TYPES = {"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp"}
"""Of pictures, by what their names end with."""


DISCONNECT_POLL_S = 5.0
"""Seconds after which it is looked whether a client that waits is still there."""


async def get_job_or_404(service: Service, key: str | None, name: str) -> Job:
    """A job of a key, or of any (None); others' are not there.

    Raises:
        HTTPException: 404, there is none.
    """
    job = await asyncio.to_thread(service.jobs.get, name)
    if job is None or key not in (None, job.key):
        raise HTTPException(404, f"there is no job {name}.")
    return job


async def wait_until_ended(service: Service, job: Job, incoming: Incoming) -> Job:
    """A job at its end; before that, if the client goes away or the server ends.

    Raises:
        HTTPException: 404, it was forgotten meanwhile.
    """
    while job.state not in ENDED and not service.drained and not await incoming.is_disconnected():
        now = await service.ended(job.id, DISCONNECT_POLL_S)
        if now is None:
            raise HTTPException(404, f"job {job.id} was forgotten.")
        job = now
    return job


async def result_file_response(
    incoming: Incoming, key: str | None, name: str, file: str
) -> FileResponse:
    """A picture that a job made; `key` as of `get_job_or_404`.

    Raises:
        HTTPException: 404, it made none by that name; 410, it is not kept any more; 416, too many
            parts of it are asked for.
    """
    service = get_service(incoming)
    job = await get_job_or_404(service, key, name)
    if file not in (job.result or {}).get("files", ()):
        raise HTTPException(404, f"job {name} made no {file}.")
    path = service.files.results(name) / file
    if not await asyncio.to_thread(path.exists):
        raise HTTPException(410, f"{file} of job {name} is not kept any more.")
    if incoming.headers.get("range", "").count(",") >= FileResponse.max_ranges:
        raise HTTPException(416, f"ask for {FileResponse.max_ranges} ranges at most.")
    headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": "private, max-age=604800"}
    return FileResponse(path, media_type=MEDIA_TYPES[path.suffix[1:]], headers=headers)


def result_url(service: Service, job: Job, path: str, file: str) -> str:
    """A link to a job's picture under `path`, signed if the job is of a key."""
    return f"{path}/{file}" + (f"?{service.links.sign_query(job.id, file)}" if job.key else "")


EVENT_STREAM_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {}}}
}


IMAGE_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"content": {kind: {} for kind in MEDIA_TYPES.values()}}
}


BAR = 10  # characters of a progress bar in the logs


def moment(seconds: float | None) -> str | None:
    """A time as RFC 3339 writes it."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def progress_line(done: int, total: int) -> str:
    """As tqdm writes it, which the clients read progress from."""
    share = done / total if total else 1.0
    bar = ("#" * int(share * BAR)).ljust(BAR)
    return f"{share:4.0%}|{bar}| {done}/{total}"
