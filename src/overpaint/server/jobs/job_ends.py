"""Publish how jobs end: each end is stored once, and waits while the store fails."""

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from sqlalchemy.exc import DataError, DBAPIError, StatementError

from overpaint.engine.messages import DEFECT_PREFIX, JobCanceled, JobFailed, JobSucceeded
from overpaint.events import NO_COST, Spent
from overpaint.server.store.files import Files
from overpaint.server.store.job_rows import Job
from overpaint.server.store.jobs import Jobs
from overpaint.server.telemetry.logs import RecordChange, log_event


@dataclass
class JobEnd:
    """The end of an attempt, which is not published yet."""

    job: Job
    state: Literal["succeeded", "failed", "canceled"]
    result: dict[str, Any] | None = None
    error: str | None = None
    spent: Spent = NO_COST


def make_job_end(job: Job, message: JobSucceeded | JobFailed | JobCanceled, steps: int) -> JobEnd:
    """Return the end of an attempt that a worker reports.

    Args:
        job: the job as it was claimed.
        message: the worker's message.
        steps: the number of steps of the attempt.
    """
    match message:
        case JobSucceeded(files, seeds, sizes, flagged):
            result: dict[str, Any] = {
                "files": [path.name for path in files],
                "seeds": list(seeds),
                "sizes": [list(size) for size in sizes],
                "steps": steps,
                "flagged": [asdict(flag) for flag in flagged],
            }
            return JobEnd(job, "succeeded", result)
        case JobFailed(text, _, flagged):
            details = {"flagged": [asdict(flag) for flag in flagged]} if flagged else None
            return JobEnd(job, "failed", details, text)
        case JobCanceled():
            return JobEnd(job, "canceled")


class JobEnds:
    """The ends that one supervisor publishes.

    If another server has taken over an attempt, its end is not published, and its files are
    removed.

    Attributes:
        waiting: ends that are not published yet, by tag.
        states: number of published ends by state.
        pictures: number of "published" and "flagged" pictures of these jobs.
    """

    def __init__(
        self,
        jobs: Jobs,
        files: Files,
        on_end: Callable[[str], None],
        record_change: RecordChange,
    ):
        """Publish to a store.

        Args:
            jobs: the store.
            files: results of jobs.
            on_end: called with the id of a job that has ended.
            record_change: records the new state of a job.
        """
        self._jobs, self._files = jobs, files
        self._on_end, self._record_change = on_end, record_change
        self.waiting: dict[str, JobEnd] = {}
        self.states = Counter[str]()
        self.pictures = Counter[str](published=0, flagged=0)

    def publish(self) -> None:
        """Publish all ends. An error of the store leaves the others waiting.

        Raises:
            SQLAlchemyError: the store fails.
        """
        for tag, end in list(self.waiting.items()):
            job_id = end.job.id
            published = self._store(end)
            result = end.result or {}
            if published:
                self.states[end.state] += 1
                self.pictures["published"] += len(result.get("files", ()))
                self.pictures["flagged"] += len(result.get("flagged", ()))
            else:
                folder = self._files.get_results_folder(job_id)
                remove_files(folder / file for file in result.get("files", ()))
            del self.waiting[tag]
            self._on_end(job_id)
            if published:
                now = replace(end.job, state=end.state, ended=time.time(), error=end.error)
                self._record_change(end.state, now)

    def _store(self, end: JobEnd) -> bool:
        """Store an end; return whether the attempt still belonged to this server.

        If the store rejects the end's values, the job fails with a defect instead.
        """
        try:
            stored = self._jobs.finish(
                end.job, end.state, result=end.result, error=end.error, spent=end.spent
            )
        except Exception as error:
            if not _is_about_values(error):
                raise
            log_event(logging.ERROR, "defect", error)
            text = f"{DEFECT_PREFIX}{type(error).__name__}: the result could not be stored."
            end.state, end.result, end.error = "failed", None, text
            return self._jobs.finish(end.job, end.state, error=text)
        if stored or end.state != "succeeded":
            return stored
        # The connection may break after the end is stored and before the answer arrives.
        now = self._jobs.get(end.job.id)
        return now is not None and (now.state, now.attempt) == (end.state, end.job.attempt)


def remove_files(files: Iterable[Path]) -> None:
    """Remove files that nobody will request. Files that cannot be removed expire with their job."""
    for file in files:
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)


def _is_about_values(error: Exception) -> bool:
    """Return whether the values to be stored cause an error, and not the store."""
    if isinstance(error, DBAPIError):
        return isinstance(error, DataError)
    return isinstance(error, StatementError | ValueError | TypeError | OverflowError)
