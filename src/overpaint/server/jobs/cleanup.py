"""Remove jobs and files that a server need not keep any longer.

A clock that jumps removes nothing early: ages are measured with `SteadyClock`.
"""

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from overpaint.server.settings import DAY_S, ServerSettings
from overpaint.server.store.files import Files
from overpaint.server.store.jobs import Jobs
from overpaint.server.store.uploads import Uploads
from overpaint.server.telemetry.logs import log_event
from overpaint.system.steady_clock import SteadyClock

MAX_NAMES_PER_QUERY = 500

MAX_PAUSE_S = 366 * DAY_S
"""Seconds for which nobody may have used a store before its clock counts as wrong."""


class Retention:
    """Knows how long jobs and uploads are kept, and removes them."""

    def __init__(self, settings: ServerSettings, jobs: Jobs, uploads: Uploads, files: Files):
        """Compare the clock with the store.

        If the clock is far ahead of the last change in the store, it jumped while no server ran.
        Then the ages of what the store has count from now on.

        Args:
            settings: `keep_days` and `keep_uploads_days` are read.
            jobs: the job store.
            uploads: the uploads in the store.
            files: the files of jobs and uploads.
        """
        self._jobs, self._uploads, self._files = jobs, uploads, files
        self._keep_s = settings.keep_days * DAY_S
        self._keep_uploads_s = settings.keep_uploads_days * DAY_S
        window_s = max(self._keep_s, self._keep_uploads_s)
        self._store_clock, self._disk_clock = SteadyClock(window_s), SteadyClock(window_s)
        now, last = jobs.get_time(), jobs.get_last_change()
        if last is not None and now - last > MAX_PAUSE_S:
            log_event(logging.WARNING, "clock far ahead", days=round((now - last) / DAY_S))
            self._store_clock.read(last)
            self._disk_clock.read(last)

    def remove_expired(self) -> None:
        """Remove expired jobs with their results, and expired uploads.

        Raises:
            SQLAlchemyError, OSError: the store or the disk fails.
        """
        now = self._store_clock.read(self._jobs.get_time())
        while old := self._jobs.list_ended_before(now - self._keep_s):
            for name in old:
                self._files.delete_results(name)
            self._jobs.delete(old)
        self._uploads.delete_before(now - self._keep_uploads_s)

    def remove_unknown_files(self) -> None:
        """Remove old files on the disk that the store does not know, and old results without a job.

        A store that is restored from a backup does not know the jobs that came after the backup.
        This looks at every file, which takes seconds on a large disk, and only reads the store.

        Raises:
            SQLAlchemyError, OSError: the store or the disk fails.
        """
        disk_now = self._disk_clock.read(time.time())
        for names in split_names(self._files.list_results_before(disk_now - self._keep_s)):
            for name in set(names) - self._jobs.find_existing(names):
                self._files.delete_results(name)
        until = disk_now - self._keep_uploads_s
        for names in split_names(self._files.list_put_before(until)):
            for name in set(names) - self._jobs.find_used_files(names):
                self._files.delete(name, until)


def split_names(names: Iterable[str]) -> Iterator[Sequence[str]]:
    """Yield parts of some names that fit into one query each."""
    left = iter(names)
    while part := list(islice(left, MAX_NAMES_PER_QUERY)):
        yield part
