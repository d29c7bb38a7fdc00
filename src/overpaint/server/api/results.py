"""Jobs and their result files, as the routes of all dialects look them up and send them."""

import asyncio
from datetime import UTC, datetime
from typing import Any

from fastapi import HTTPException
from fastapi import Request as Incoming
from fastapi.responses import FileResponse

from overpaint.server.api.deps import get_service
from overpaint.server.jobs.service import Service
from overpaint.server.store.job_rows import ENDED, Job

MEDIA_TYPES = {"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp"}
"""Media types of result files, by the suffix of their names."""


def get_file_kind(file_format: str) -> str:
    """Return the suffix of result files for a format's name in a dialect."""
    return "jpg" if file_format == "jpeg" else file_format


async def get_job_or_404(service: Service, key: str | None, name: str) -> Job:
    """Look up a job.

    Args:
        service: the running service.
        key: the API key that must own the job; None for any key.
        name: the job's id.

    Raises:
        HTTPException: 404, there is no such job, or it belongs to another key.
    """
    job = await asyncio.to_thread(service.jobs.get, name)
    if job is None or key not in (None, job.key):
        raise HTTPException(404, f"There is no job {name}.")
    return job


async def wait_until_ended(service: Service, job: Job, incoming: Incoming) -> Job:
    """Wait until a job ends, the client disconnects or the server stops.

    Returns:
        The job in its latest state.

    Raises:
        HTTPException: 404, the server deleted the job during the wait.
    """
    interval = service.settings.http.disconnect_poll_interval_s
    while job.state not in ENDED and not service.drained and not await incoming.is_disconnected():
        now = await service.ended(job.id, interval)
        if now is None:
            raise HTTPException(404, f"Job {job.id} is deleted.")
        job = now
    return job


async def result_file_response(
    incoming: Incoming, key: str | None, name: str, file: str
) -> FileResponse:
    """Send a result file of a job.

    Args:
        incoming: the request.
        key: the API key that must own the job; None for any key.
        name: the job's id.
        file: the name of the file.

    Raises:
        HTTPException: 404, the job has no such file; 410, the file is deleted; 416, the request
            asks for too many byte ranges.
    """
    service = get_service(incoming)
    job = await get_job_or_404(service, key, name)
    if file not in (job.result or {}).get("files", ()):
        raise HTTPException(404, f"Job {name} has no result {file}.")
    path = service.files.get_results_folder(name) / file
    if not await asyncio.to_thread(path.exists):
        raise HTTPException(410, f"Result {file} of job {name} is deleted.")
    if incoming.headers.get("range", "").count(",") >= FileResponse.max_ranges:
        raise HTTPException(
            416, f"The request asks for more than {FileResponse.max_ranges} byte ranges."
        )
    headers = {"Cache-Control": "private, max-age=604800"}
    return FileResponse(path, media_type=MEDIA_TYPES[path.suffix[1:]], headers=headers)


def result_url(service: Service, job: Job, path: str, file: str) -> str:
    """Make the URL of a result file under `path`. It is signed if the job belongs to an API key."""
    return f"{path}/{file}" + (f"?{service.links.sign_query(job.id, file)}" if job.key else "")


EVENT_STREAM_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "Server-sent events.", "content": {"text/event-stream": {}}}
}
"""OpenAPI responses of a route that streams events."""


IMAGE_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The image file.", "content": {kind: {} for kind in MEDIA_TYPES.values()}}
}
"""OpenAPI responses of a route that sends a result file."""


PROGRESS_BAR_CHARS = 10


def format_timestamp(seconds: float | None) -> str | None:
    """Return a time as RFC 3339 text in UTC; None for None.

    Args:
        seconds: seconds since 1970.
    """
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def timestamp_seconds(time: datetime | None) -> float | None:
    """Return a time in seconds since 1970, for comparisons. A time without a zone is in UTC.

    `format_timestamp` rounds to microseconds; half of one less makes comparisons agree with it.
    """
    if time is None:
        return None
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp() - 0.5e-6


def format_progress(done: int, total: int) -> str:
    """Return a progress bar in tqdm's format, from which Replicate's clients read progress."""
    fraction = done / total if total else 1.0
    bar = ("#" * int(fraction * PROGRESS_BAR_CHARS)).ljust(PROGRESS_BAR_CHARS)
    return f"{fraction:4.0%}|{bar}| {done}/{total}"
