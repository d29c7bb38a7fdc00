"""The memory that this process may use, and the share of it for jobs."""

import os
from pathlib import Path

from overpaint.system.cgroups import read_group_files

BUDGET_SHARE = 0.5
"""Share of the machine's memory that jobs may need beside the weights, by default."""


def read_memory_budget() -> float:
    """Return the bytes that jobs may need beside the weights: a share of the machine's memory."""
    return BUDGET_SHARE * read_total_memory()


def read_total_memory(root: Path = Path("/")) -> float:
    """Return the bytes of memory that this process may use; infinity if they are unknown.

    Args:
        root: the folder with `proc` and `sys`.
    """
    found = [float("inf")]
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found.append(float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")))
    texts = (
        *read_group_files(root, "memory.max"),
        *read_group_files(root, "memory.limit_in_bytes", "memory"),
    )
    found += [float(text) for text in texts if text.strip().isdecimal()]  # not "max" or ""
    return min(found)
