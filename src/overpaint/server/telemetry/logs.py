"""The server's log: readable lines or JSON objects, through the standard `logging` package.

The log contains nothing that a client sent, except the names of ignored fields: no prompt, picture,
key or link. It identifies keys by the beginning of their digests, and paths by the templates of
their routes. Error messages may quote a request, so the log contains only the type and the place of
an error.
"""

import json
import logging
import re
import sys
import traceback
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy.exc import OperationalError, SQLAlchemyError

from overpaint.engine.messages import DEFECT_PREFIX
from overpaint.server.store.job_rows import ENDED, Job, State
from overpaint.server.store.jobs import Jobs
from overpaint.server.store.upgrade import UpgradeProgress
from overpaint.system.plain_text import escape_control_characters

LogFormat = Literal["text", "json"]

JobChange = Literal["accepted", "started", "requeued"] | State
"""Changes of a job that the log records."""

RecordChange = Callable[[JobChange, Job], None]
"""Records a change of a job. The job has the state after the change."""

LOGGER = logging.getLogger("overpaint.server")

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The id of the HTTP request that the current task handles."""

KEY_LABEL_CHARS = 12
"""Number of characters of a key's digest in logs and traces."""

ERROR_CAUSE = re.compile(rf"({DEFECT_PREFIX}\w+|[a-z_ ]+): ")
"""The beginning of a job's error, without details that may quote the request."""


def configure_logging(form: LogFormat) -> None:
    """Write the server's events and the warnings of libraries to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    # Below warnings, libraries may log the full URLs of webhooks.
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    LOGGER.setLevel(logging.INFO)


def log_event(level: int, event: str, error: BaseException | None = None, **fields: Any) -> None:
    """Log an event.

    Args:
        level: the level of `logging`.
        event: a constant phrase that names the event.
        error: the cause.
        fields: further values. The log omits those that are None.
    """
    LOGGER.log(level, event, exc_info=error, extra={"fields": fields})


@contextmanager
def log_and_continue() -> Generator[None]:
    """Suppress exceptions of a periodic task, so that its next run takes place.

    Logs defects. The supervisor logs failures of the job store and the disk.
    """
    try:
        yield
    except (SQLAlchemyError, OSError):
        pass
    except Exception as error:
        log_event(logging.ERROR, "defect", error)


def log_job_change(event: JobChange, job: Job) -> None:
    """Log a change of a job."""
    cause = ERROR_CAUSE.match(job.error or "")
    until = job.ended or job.started
    log_event(
        logging.WARNING if event == "failed" else logging.INFO,
        f"job {event}",
        **job_log_fields(job),
        model=job.model,
        attempt=job.attempt or None,
        seconds=_round_seconds(until - job.created)
        if until and event in (*ENDED, "started")
        else None,
        cause=cause[1] if cause else None,
    )


def log_upgrade(progress: UpgradeProgress) -> None:
    """Log that the upgrade of a job store started, continues or finished."""
    finished = progress.state == "finished"
    log_event(
        logging.INFO,
        "store upgraded" if finished else f"store upgrade {progress.state}",
        from_version=progress.from_version,
        to_version=progress.to_version,
        reached_version=progress.reached_version if progress.state == "running" else None,
        seconds=None if progress.state == "started" else round(progress.seconds, 3),
    )


def record_lost_attempts(jobs: Jobs, names: Iterable[str], note: RecordChange) -> None:
    """Record lost attempts. Their jobs wait again, or have failed after too many attempts."""
    for name in names:
        if job := jobs.get(name):
            note(job.state if job.state in ENDED else "requeued", job)


def job_log_fields(job: Job) -> dict[str, Any]:
    """Return the log fields that identify a job: its id, its request's id and its key."""
    return {
        "request_id": job.origin.request_id,
        "job_id": job.id,
        "key": job.key[:KEY_LABEL_CHARS] or None,
    }


class JsonFormatter(logging.Formatter):
    """Formats each record as a line with a JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        return json.dumps(_fields(record))


class TextFormatter(logging.Formatter):
    """Formats each record as `TIME LEVEL event name=value …`. Quotes values with spaces."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record, with one further line for each stack frame of an error."""
        fields = _fields(record)
        head = [fields.pop("time"), f"{fields.pop('level'):7}", fields.pop("event")]
        trace = "".join(f"\n    {place}" for place in fields.pop("trace", ()))
        return " ".join(head + [f"{name}={_quote_value(fields[name])}" for name in fields]) + trace


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """Return all fields of a record."""
    lines = record.getMessage().splitlines()  # Libraries quote errors from the second line on.
    fields: dict[str, Any] = {
        "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
        "level": record.levelname.lower(),
        "event": escape_control_characters(lines[0] if lines else ""),
        "request_id": request_id.get(),
    }
    if record.name != LOGGER.name:
        fields["logger"] = record.name
    own: dict[str, Any] = getattr(record, "fields", {})
    fields |= {name: value for name, value in own.items() if value is not None}
    if record.exc_info and (error := record.exc_info[1]):
        fields["error"] = _describe_error(error)
        frames = traceback.extract_tb(error.__traceback__)
        fields["trace"] = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
    return {name: value for name, value in fields.items() if value is not None}


def _describe_error(error: BaseException) -> str:
    """Return an error's type, and the message of the operating system or the database."""
    name = type(error).__name__
    match error:
        case OSError(strerror=str(said)):
            return f"{name}: {said}"
        case OperationalError():
            return f"{name}: {error.orig}"
        case _:
            return name


def _quote_value(value: Any) -> str:
    text = str(value)
    plain = re.fullmatch(r"[^\s\"=]+", text) and text.isprintable()
    return text if plain else json.dumps(text)


def _round_seconds(span: float) -> float:
    """Round to a millisecond. Negative values, which differing clocks cause, become 0."""
    return round(max(0.0, span), 3)
