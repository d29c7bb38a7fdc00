"""Memory that is used no more goes back to the machine.

Under steady load a process that serves has as many objects as before. But by default glibc gives
each thread a heap of its own, and keeps what is free between that which stays: tens of megabytes
more an hour.
"""

import ctypes
import gc
import platform
import time

M_ARENA_MAX = -8
"""The option of glibc's `mallopt` (its malloc.h) that says how many heaps there may be."""

SHARE = 400
"""One part in so many of a process's time may go to `give_back`, which stops it: 10 ms every four
seconds. The less garbage there is at once, the less room it leaves behind."""

M_MMAP_THRESHOLD = -3
"""Likewise, from how many bytes on a block is no part of a heap, and goes back as it is freed."""

LARGE = 2**16
"""Such a number of bytes for who serves: glibc's own rises with what is freed, to megabytes. Who
computes would make and give back hundreds of megabytes in each step."""

PAUSE = 300.0
"""Seconds from one `give_back` to the next, at most."""

GLIBC = ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None


def share_heap(*, serves: bool = False) -> None:
    """Have threads that begin from now on share one heap: few of them run at once in Python.

    Args:
        serves: and keep blocks of `LARGE` bytes and more out of it.
    """
    if GLIBC:
        GLIBC.mallopt(M_ARENA_MAX, 1)
        if serves:
            GLIBC.mallopt(M_MMAP_THRESHOLD, LARGE)


def give_back() -> float:
    """Collect all garbage, and give the machine the pages that are free.

    Returns:
        Seconds until that should be done again.
    """
    began = time.perf_counter()
    gc.collect()
    if GLIBC:
        GLIBC.malloc_trim(0)
    return min((time.perf_counter() - began) * SHARE, PAUSE)
