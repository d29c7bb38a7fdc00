"""Jobs as the store holds them: the values that it takes and returns."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from sqlalchemy import func

from overpaint.server.store.origins import NativeOrigin, Origin, read_origin
from overpaint.server.store.outbox import WEBHOOK_EVENTS
from overpaint.server.store.tables import jobs

OriginT = TypeVar("OriginT", bound=Origin)

State = Literal["queued", "running", "succeeded", "failed", "canceled"]
ENDED: tuple[State, ...] = ("succeeded", "failed", "canceled")


@dataclass(frozen=True)
class NewJob:
    """A job that the store has not accepted yet.

    Attributes:
        id: an unguessable id, from `secrets`.
        key: the digest of the client's API key; "" if the server has no keys.
        model: the name of the model.
        request: the `Request` as JSON, with file names in place of pictures.
        work: the expected time on the device, in seconds.
        origin: the data that the dialect keeps with the job.
        webhook: the URL that receives the job's events.
        webhook_events: the events to post, from `outbox.WEBHOOK_EVENTS`.
        files: the pictures of the request, by the hash of their content.
        priority: a job with a higher priority runs first.
        token: the client's idempotency key.
        body: the hash of the body that came with the idempotency key.
    """

    id: str
    key: str
    model: str
    request: Mapping[str, Any]
    work: float
    origin: Origin = field(default_factory=NativeOrigin)
    webhook: str | None = None
    webhook_events: Sequence[str] = WEBHOOK_EVENTS
    files: Iterable[str] = ()
    priority: int = 0
    token: str | None = None
    body: str = ""


@dataclass(frozen=True)
class Job:
    """A job as it is stored. Times are in seconds since 1970.

    Attributes:
        state: the state in the life cycle.
        attempt: the number of claims; with the owner, it identifies the running attempt.
        crashes: the number of crashes of the server or the worker while the job ran.
        owner: the supervisor that runs the attempt.
        canceling: true if the job runs and a client has canceled it.
        created: the time at which the store accepted the job.
        started: the time of the first claim.
        ended: the time at which the job ended.
        error: the reason why the job failed.
        result: the names, sizes and seeds of the pictures, and other results.
    """

    id: str
    key: str
    model: str
    request: dict[str, Any]
    origin: Origin
    webhook: str | None
    priority: int
    work: float
    state: State
    attempt: int
    crashes: int
    owner: str | None
    canceling: bool
    created: float
    started: float | None
    ended: float | None
    error: str | None
    result: dict[str, Any] | None

    def origin_as(self, kind: type[OriginT]) -> OriginT:
        """Return the origin, which must be of a dialect's type.

        Raises:
            TypeError: the job came by another dialect.
        """
        if not isinstance(self.origin, kind):
            raise TypeError(f"Job {self.id} came by the {self.origin.dialect} API.")
        return self.origin

    @property
    def flagged(self) -> list[dict[str, Any]]:
        """The pictures that the server does not publish, as `safety.Flag`."""
        return (self.result or {}).get("flagged", [])


@dataclass(frozen=True)
class JobSummary:
    """The state and the progress of a job, without its texts, which can be a megabyte.

    Attributes:
        id: the id of the job.
        state: the state in the life cycle.
        canceling: true if the job runs and a client has canceled it.
        work: the expected time on the device, in seconds.
        created: the time at which the store accepted the job, in seconds since 1970.
        dialect: the name of the dialect that it came by.
        task: the client's name for the request that the job belongs to; "" without one.
        task_jobs: the number of the request's jobs.
    """

    id: str
    state: State
    canceling: bool
    work: float
    created: float
    dialect: str
    task: str = ""
    task_jobs: int = 1


@dataclass(frozen=True)
class Attempt:
    """A running attempt: its number and its owner, which `finish` and `release` compare."""

    id: str
    attempt: int
    owner: str
    canceling: bool


@dataclass(frozen=True)
class HistoryEntry:
    """One entry of a job's history: "queued", "started", "requeued", a notice, or its end."""

    number: int
    at: float
    kind: str
    body: dict[str, Any]


JOB_COLUMNS = [jobs.c[name] for name in Job.__dataclass_fields__]
SUMMARY_COLUMNS = [
    *(jobs.c[name] for name in ("id", "state", "canceling", "work", "created")),
    func.coalesce(*(jobs.c.origin[name].as_string() for name in ("dialect", "wire")), "native"),
    func.coalesce(jobs.c.origin["task"].as_string(), ""),
    func.coalesce(jobs.c.origin["task_jobs"].as_integer(), 1),
]
"""The columns of `JobSummary`, in its order. The database reads the parts of the origin.

Early programs called the dialect `wire`."""
ATTEMPT_COLUMNS = [jobs.c[name] for name in Attempt.__dataclass_fields__]


def read_job(row: Any) -> Job:
    """Return the job of a row with the columns of `JOB_COLUMNS`."""
    fields = row._asdict()
    return Job(**fields | {"origin": read_origin(fields["origin"])})
