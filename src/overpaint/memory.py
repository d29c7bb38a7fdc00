"""Memory that is used no more goes back to the machine.

Under steady load a process that serves has as many objects as before. But by default glibc gives
each thread a heap of its own, and keeps what is free between that which stays: tens of megabytes
more an hour.
"""

import ctypes
import gc
import platform

M_ARENA_MAX = -8
"""The option of glibc's `mallopt` (its malloc.h) that says how many heaps there may be."""

PAUSE = 60.0
"""Seconds from one `give_back` to the next: it stops its process for a tenth of a second."""

GLIBC = ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None


def share_heap() -> None:
    """Have threads that begin from now on share one heap: few of them run at once in Python."""
    if GLIBC:
        GLIBC.mallopt(M_ARENA_MAX, 1)


def give_back() -> None:
    """Collect all garbage, and give the machine the pages that are free."""
    gc.collect()
    if GLIBC:
        GLIBC.malloc_trim(0)
