"""Removes jobs, results and uploads that have expired."""

from collections.abc import Iterator, Sequence

from overpaint.server.settings import DAY_S, ServerSettings
from overpaint.server.store.files import Files
from overpaint.server.store.jobs import Jobs
from overpaint.server.store.uploads import Uploads

MAX_NAMES_PER_QUERY = 500


def remove_expired(jobs: Jobs, files: Files, uploads: Uploads, settings: ServerSettings) -> None:
    """Remove expired jobs with their results, expired uploads, and old results without a job.

    A store that is restored from a backup does not know the jobs that came after the backup.

    Raises:
        SQLAlchemyError, OSError: the store or the disk fails.
    """
    age = settings.keep_days * DAY_S
    while old := jobs.list_ended_before(age):
        for name in old:
            files.delete_results(name)
        jobs.delete(old)
    for names in split_names(files.list_results_older_than(age)):
        for name in set(names) - jobs.find_existing(names):
            files.delete_results(name)
    age = settings.keep_uploads_days * DAY_S
    uploads.delete_older_than(age)
    for names in split_names(files.list_older_than(age)):
        for name in set(names) - jobs.find_used_files(names):
            files.delete(name, age)


def split_names(names: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield parts of a list that fit into one query each."""
    for at in range(0, len(names), MAX_NAMES_PER_QUERY):
        yield names[at : at + MAX_NAMES_PER_QUERY]
