"""Return unused memory to the system.

Under steady load a server holds a constant number of objects. By default glibc gives each thread a
separate heap and keeps free pages between live blocks, which adds tens of megabytes an hour.
"""

import ctypes
import gc
import platform
import time

M_ARENA_MAX = -8
"""Option of glibc's `mallopt` (malloc.h): the largest number of heaps."""

GIVE_BACK_SHARE = 400
"""Smallest ratio of the pause to the time that `release_memory` takes: 25 ms every 10 s."""

M_MMAP_THRESHOLD = -3
"""Option of glibc's `mallopt` (malloc.h): bytes from which a block is mapped outside the heaps."""

MMAP_THRESHOLD_BYTES = 2**16
"""Bytes from which a server maps blocks. By default glibc raises the threshold to megabytes as
blocks are freed. A worker keeps the default: it would map hundreds of megabytes in every step."""

FIRST_PAUSE_S = 10.0
"""Seconds from the start of a server to its first call of `release_memory`."""

MAX_PAUSE_S = 300.0
"""Seconds between two calls of `release_memory`, at most."""

GLIBC = ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None


def limit_heaps(*, serves: bool = False) -> None:
    """Limit glibc to one heap for all threads that start from now on; few run at once in Python.

    Args:
        serves: also keep blocks of `MMAP_THRESHOLD_BYTES` and more out of the heap.
    """
    if GLIBC:
        GLIBC.mallopt(M_ARENA_MAX, 1)
        if serves:
            GLIBC.mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)


def trim_heap() -> None:
    """Return the free pages of the heap to the system, also those between blocks in use.

    By default glibc keeps them, and cannot use them for larger blocks. A model of many tensors that
    are converted one by one then takes 15 % more memory.
    """
    if GLIBC:
        GLIBC.malloc_trim(0)


def release_memory() -> float:
    """Collect all garbage and return free pages to the system.

    Returns:
        Seconds until the next call is due.
    """
    began = time.perf_counter()
    gc.collect()
    trim_heap()
    return min((time.perf_counter() - began) * GIVE_BACK_SHARE, MAX_PAUSE_S)
