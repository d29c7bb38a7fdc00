"""Progress of requests, and how clients end them.

A request may have several jobs, one for each of its images.
"""

import asyncio
import json
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter
from fastapi import Request as Incoming

from overpaint.server.api.a1111 import tasks
from overpaint.server.api.a1111.generation import format_job_time
from overpaint.server.api.a1111.option_fields import A1111Model
from overpaint.server.api.a1111.protocol import error_response
from overpaint.server.api.a1111.responses import (
    ProgressResponse,
    ProgressState,
    TaskProgressResponse,
)
from overpaint.server.api.deps import ServiceDep
from overpaint.server.api.fields import encode_base64, encode_data_uri
from overpaint.server.api.ignored_fields import report_ignored_fields
from overpaint.server.api.route import make_route_class
from overpaint.server.http.auth import KeyDep
from overpaint.server.http.json_body import check_unicode
from overpaint.server.jobs.service import Service

MIN_PROGRESS = 0.01
"""Progress of a request that has not finished a step; 0 would mean that there is no request."""

TASK_NAME_FIELDS = ("force_task_id", "id_task", "task_id")
"""Names under which clients name a request to end."""

MAX_INTERRUPT_BYTES = 4096
"""Largest body in which `/interrupt` looks for the name of a request."""

sdapi = APIRouter(prefix="/sdapi/v1", route_class=make_route_class(error_response))
internal = APIRouter(prefix="/internal", route_class=make_route_class(error_response))


@dataclass(frozen=True)
class _Progress:
    """Progress of the jobs of a request.

    Attributes:
        done: steps done by the jobs that have not ended.
        total: steps of the jobs that run.
        fraction: progress from 0 to 1.
        seconds: estimated seconds until the end.
        preview: the latest preview, as JPEG.
        jobs_before: number of jobs that run before the first one; None if it runs.
    """

    done: int
    total: int
    fraction: float
    seconds: float
    preview: bytes | None
    jobs_before: int | None


async def _measure(service: Service, task: tasks.Task) -> _Progress:
    unfinished = task.unfinished
    done = total = 0
    fraction = float(task.size - len(unfinished))
    seconds, preview = 0.0, None
    for job in unfinished:
        now = service.feed.progress(job.id)
        step = (now.step.done, now.step.total) if now.step else (0, 0)
        done, total = done + step[0], total + step[1]
        own = step[0] / step[1] if step[1] else 0.0
        fraction += own
        seconds += job.work * (1 - own)
        preview = preview or next((each.data for each in now.previews.values()), None)
    ahead = None
    if unfinished:
        ahead = await asyncio.to_thread(service.jobs.get_queue_position, unfinished[0].id)
    seconds += ahead[1] if ahead else 0.0
    share = fraction / task.size
    return _Progress(done, total, share, seconds, preview, ahead[0] if ahead else None)


def _describe_queue(now: _Progress) -> str | None:
    return None if now.jobs_before is None else f"{now.jobs_before} jobs run before this one."


@sdapi.get("/progress")
async def get_progress(
    incoming: Incoming, service: ServiceDep, key: KeyDep, skip_current_image: bool = False
) -> ProgressResponse:
    """Return the progress of the request that this client follows, or of the oldest one."""
    task = await tasks.find_visible_task(incoming, service, key)
    if task is None:
        return ProgressResponse()
    now = await _measure(service, task)
    first = task.unfinished[0]
    preview = None if skip_current_image else now.preview
    return ProgressResponse(
        progress=max(MIN_PROGRESS, now.fraction),
        eta_relative=now.seconds,
        state=ProgressState(
            interrupted=first.canceling,
            job=first.id,
            job_count=len(task.unfinished),
            job_timestamp=format_job_time(first.created),
            sampling_step=now.done,
            sampling_steps=now.total,
        ),
        current_image=encode_base64(preview) if preview else None,
        textinfo=_describe_queue(now),
    )


@sdapi.post("/interrupt")
async def interrupt_task(incoming: Incoming, service: ServiceDep, key: KeyDep) -> dict[str, Any]:
    """Cancel the request that `/progress` shows to this client, or the one that it names.

    The query or the body may name a request by its `force_task_id`. A request that has ended is not
    replaced by another one.
    """
    name = await _read_task_name(incoming)
    task = await tasks.find_task_to_end(incoming, service, key, name)
    await tasks.cancel_jobs(service, task.unfinished if task else ())
    return {}


@sdapi.post("/skip")
async def skip_image(incoming: Incoming, service: ServiceDep, key: KeyDep) -> dict[str, Any]:
    """Cancel a request as `/interrupt` does: its images are made together."""
    return await interrupt_task(incoming, service, key)


async def _read_task_name(incoming: Incoming) -> str | None:
    """Return the name of a request from the query or the body; None without one."""
    given: dict[str, Any] = dict(incoming.query_params)
    body = b""
    async for part in incoming.stream():
        if len(body) <= MAX_INTERRUPT_BYTES:
            body += part[: MAX_INTERRUPT_BYTES + 1]
    if len(body) <= MAX_INTERRUPT_BYTES:
        try:
            parsed = json.loads(body)
        except (ValueError, RecursionError):
            parsed = None  # Clients send any body, because the web UI reads none.
        check_unicode(parsed)
        given |= parsed if isinstance(parsed, dict) else {}
    names = (given.get(field) for field in TASK_NAME_FIELDS)
    return next((name for name in names if isinstance(name, str) and name), None)


class TaskProgressRequest(A1111Model):
    """The request to describe."""

    id_task: str = ""
    """The `force_task_id` of the request, or the id of its job."""
    id_live_preview: int = -1
    """Number of the preview that the client has."""
    live_preview: bool = True
    """Include a preview."""


@internal.post("/progress")
async def get_task_progress(
    given: TaskProgressRequest, service: ServiceDep, key: KeyDep
) -> TaskProgressResponse:
    """Return the progress of a request by its name."""
    report_ignored_fields(given)
    task = await tasks.find_task(service, key, given.id_task)
    if task is None:
        return TaskProgressResponse(textinfo="Waiting...")
    if not task.unfinished:
        return TaskProgressResponse(completed=True)
    now = await _measure(service, task)
    if all(job.state == "queued" for job in task.jobs):
        return TaskProgressResponse(queued=True, textinfo=_describe_queue(now))
    return TaskProgressResponse(
        active=True,
        progress=max(MIN_PROGRESS, now.fraction),
        eta=now.seconds,
        live_preview=encode_data_uri(now.preview, "image/jpeg")
        if now.preview and given.live_preview
        else None,
        id_live_preview=now.done if now.preview else -1,
        textinfo=_describe_queue(now),
    )


@internal.get("/pending-tasks")
async def list_pending_tasks(service: ServiceDep, key: KeyDep) -> dict[str, Any]:
    """List the requests of this API key that have not ended, oldest first."""
    names = await tasks.list_unfinished_names(service, key)
    return {"size": len(names), "tasks": names}


@internal.get("/ping")
async def ping(key: KeyDep) -> dict[str, Any]:
    """Answer: the server runs."""
    return {}
