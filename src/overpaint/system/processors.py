"""The processors that this process may use, and the number of threads that compute."""

import math
import os
import sys
from collections.abc import Iterator, MutableMapping
from pathlib import Path

from overpaint.system.cgroups import read_group_files


def set_threads(
    threads: int | None = None, environment: MutableMapping[str, str] = os.environ
) -> None:
    """Set how many threads torch computes with, and let them sleep while they wait.

    By default OpenMP's threads wait in a loop. If other programs use the same cores, the loops take
    the time that the last thread of a step needs, and a picture takes several times as long. The
    environment's own settings stay. OpenMP reads them when torch is imported.

    Args:
        threads: the number of threads; by default that of the environment, else one for each core
            that this process may use.
        environment: the environment variables to set.
    """
    environment.setdefault("OMP_WAIT_POLICY", "passive")
    if threads is None:
        environment.setdefault("OMP_NUM_THREADS", str(count_usable_cores()))
        return
    environment["OMP_NUM_THREADS"] = str(threads)
    if torch := sys.modules.get("torch"):  # imported before: OpenMP ignores the environment now
        torch.set_num_threads(threads)


def count_usable_cores(root: Path = Path("/")) -> int:
    """Count the cores that this process may use: by its affinity and its cgroup's quota.

    Args:
        root: the folder with `proc` and `sys`.
    """
    import psutil

    logical = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    physical = psutil.cpu_count(logical=False) or logical
    return max(1, math.floor(min(logical, physical, *_read_quotas(root))))


def _read_quotas(root: Path) -> Iterator[float]:
    """Yield the quotas of this process's cgroups in cores; infinity for a group without one."""
    yield from map(_parse_quota, read_group_files(root, "cpu.max"))
    quotas = read_group_files(root, "cpu.cfs_quota_us", "cpu")
    periods = read_group_files(root, "cpu.cfs_period_us", "cpu")
    for quota, period in zip(quotas, periods, strict=True):
        yield _parse_quota(f"{quota} {period}")


def _parse_quota(text: str) -> float:
    """Parse "QUOTA PERIOD" in microseconds."""
    try:
        quota, period = map(int, text.split())
    except ValueError:  # "max 100000", or no such file
        return math.inf
    return quota / period if quota > 0 and period > 0 else math.inf
