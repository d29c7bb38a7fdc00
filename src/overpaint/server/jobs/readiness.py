"""The reasons why a server does not accept or run jobs."""

import shutil
from pathlib import Path

from overpaint.server.jobs.supervisor import Supervisor
from overpaint.server.store.jobs import Jobs


def is_disk_full(folder: Path, min_free_bytes: int) -> bool:
    """Return whether the free space is reserved for results of accepted jobs.

    Args:
        folder: the server's folder.
        min_free_bytes: bytes that must be free.

    Raises:
        OSError: the folder is gone.
    """
    return shutil.disk_usage(folder).free < min_free_bytes


def list_obstacles(
    jobs: Jobs, supervisor: Supervisor, folder: Path, min_free_bytes: int, *, draining: bool
) -> list[str]:
    """Return the reasons why a server is not ready; an empty list if it is.

    Anybody may read them. So of an error they have only the type, because its text names hosts
    and tables.

    Args:
        jobs: the job store.
        supervisor: of the worker.
        folder: the server's folder.
        min_free_bytes: see `is_disk_full`.
        draining: whether the server is about to end.
    """
    found = ["it is about to end"] if draining else []
    if not supervisor.ready:
        failures = supervisor.failures
        died = f", after {failures} in a row that died as they started; its errors say why"
        found.append(f"the worker is starting{died if failures else ''}")
    try:
        jobs.count_by_state()
    except Exception as error:
        found.append(f"the job store fails: {type(error).__name__}")
    try:
        if is_disk_full(folder, min_free_bytes):
            found.append("the disk is full")
    except OSError as error:
        found.append(f"the server's folder fails: {type(error).__name__}")
    return found
