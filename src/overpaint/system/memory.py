"""The memory that this process may use, and the share of it for jobs."""

import os
from pathlib import Path

BUDGET_SHARE = 0.5
"""Share of the machine's memory that jobs may need beside the weights, by default."""

CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def read_memory_budget() -> float:
    """Return the bytes that jobs may need beside the weights: a share of the machine's memory."""
    return BUDGET_SHARE * read_total_memory()


def read_total_memory() -> float:
    """Return the bytes of memory that this process may use; infinity if they are unknown."""
    found = [float("inf")]
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found.append(float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")))
    for path in CGROUP_LIMITS:
        try:
            found.append(float(path.read_text("ascii")))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return min(found)
