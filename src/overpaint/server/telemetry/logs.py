"""What the server writes of itself, by standard `logging`: readable lines, or JSON objects.

What somebody asked for is in neither: no prompt, picture, key or link. Keys are the beginnings of
their digests, paths are templates of routes; of errors, which may quote a request, there are the
type and the place.
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

from overpaint.engine.worker import DEFECT
from overpaint.server.store.jobs import ENDED, Job, Jobs, State
from overpaint.server.store.upgrade import UpgradeProgress

LogFormat = Literal["text", "json"]

JobChange = Literal["accepted", "started", "requeued"] | State
"""What is written of a job."""

RecordChange = Callable[[JobChange, Job], None]
"""Takes down what happened to a job, which is as it is since then."""

LOGGER = logging.getLogger("overpaint.server")

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""Of the request that is being answered, if one is."""

KEY_LABEL_CHARS = 12
"""Characters of a key's digest."""

ERROR_CAUSE = re.compile(rf"({DEFECT}\w+|[a-z_ ]+): ")
"""What a job's error begins with before it goes into details, which may quote the request."""


def configure_logging(form: LogFormat) -> None:
    """Write to stderr: what we tell, and what libraries warn of."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    # Libraries may tell less than warnings with the whole URLs that webhooks go to.
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    LOGGER.setLevel(logging.INFO)


def log_event(level: int, event: str, error: BaseException | None = None, **fields: Any) -> None:
    """Write that something happened.

    Args:
        level: of `logging`.
        event: in a few words, always the same ones.
        error: that it comes of.
        fields: what else is known; those that are None are left out.
    """
    LOGGER.log(level, event, exc_info=error, extra={"fields": fields})


@contextmanager
def log_and_continue() -> Generator[None]:
    """Go on after whatever goes wrong in here, with what is done again and again.

    Of a store or a disk that is out of order the supervisor writes; of a defect this does.
    """
    try:
        yield
    except (SQLAlchemyError, OSError):
        pass
    except Exception as error:
        log_event(logging.ERROR, "defect", error)


def log_job_change(event: JobChange, job: Job) -> None:
    """Write what happened to a job."""
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
    """Take down that attempts were lost: their jobs wait again, or were given up."""
    for name in names:
        if job := jobs.get(name):
            note(job.state if job.state in ENDED else "requeued", job)


def job_log_fields(job: Job) -> dict[str, Any]:
    """The fields that a job is found by: its own id, and those of the request that made it."""
    return {
        "request_id": job.origin.request_id,
        "job_id": job.id,
        "key": job.key[:KEY_LABEL_CHARS] or None,
    }


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        return json.dumps(_fields(record))


class TextFormatter(logging.Formatter):
    """`TIME LEVEL event name=value …`; values with blanks are in quotes."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, and one more for each place that an error went through."""
        fields = _fields(record)
        head = [fields.pop("time"), f"{fields.pop('level'):7}", fields.pop("event")]
        trace = "".join(f"\n    {place}" for place in fields.pop("trace", ()))
        return " ".join(head + [f"{name}={_quote_value(fields[name])}" for name in fields]) + trace


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """All that is written of a record."""
    lines = record.getMessage().splitlines()  # from the second on, libraries quote errors
    fields: dict[str, Any] = {
        "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
        "level": record.levelname.lower(),
        "event": lines[0] if lines else "",
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
    """An error's type, and what the system or the database said."""
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
    return text if re.fullmatch(r"[^\s\"=]+", text) else json.dumps(text)


def _round_seconds(span: float) -> float:
    """To a millisecond; not below 0, as where the store's clock is not ours."""
    return round(max(0.0, span), 3)
