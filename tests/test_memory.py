"""Memory that is used no more."""

import gc
import subprocess
import sys
import weakref

import psutil
import pytest

from overpaint.memory import GLIBC, give_back

MEGABYTE = 2**20

HEAPS = """
import ctypes, sys, threading
from overpaint.memory import GLIBC, share_heap
if sys.argv[1] == "shared":
    share_heap()
allocated, enough = threading.Barrier(5), threading.Event()
def allocate():
    held = [bytes(3000) for _ in range(100)]
    allocated.wait()
    enough.wait()
threads = [threading.Thread(target=allocate) for _ in range(4)]
for thread in threads:
    thread.start()
allocated.wait()
GLIBC.malloc_info(0, ctypes.c_void_p.in_dll(GLIBC, "stdout"))
enough.set()
"""
"""Has four threads at once, and prints what glibc knows of its heaps."""


@pytest.mark.skipif(GLIBC is None, reason="others have other heaps")
def test_threads_share_one_heap() -> None:
    def heaps(how: str) -> int:
        command = [sys.executable, "-c", HEAPS, how]
        ran = subprocess.run(command, capture_output=True, text=True, check=True)
        return ran.stdout.count("<heap nr=")

    assert heaps("shared") == 1
    assert heaps("each") > 1


@pytest.mark.skipif(GLIBC is None, reason="others give it back unasked")
def test_what_is_free_between_what_stays_goes_back_to_the_machine() -> None:
    give_back()
    small = [bytes(3000) for _ in range(100_000)]
    stays = small[::100]
    before = psutil.Process().memory_info().rss
    del small
    give_back()
    assert psutil.Process().memory_info().rss < before - 200 * MEGABYTE
    assert len(stays) == 1000


def test_what_holds_itself_is_collected() -> None:
    class Loop:
        def __init__(self) -> None:
            self.itself = self

    gc.disable()
    try:
        seen = weakref.ref(Loop())
        assert seen()
        give_back()
        assert seen() is None
    finally:
        gc.enable()
