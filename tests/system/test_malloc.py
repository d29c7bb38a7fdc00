"""Memory that Python frees, and the heaps of glibc."""

import gc
import re
import subprocess
import sys
import weakref
from collections.abc import Callable

import psutil
import pytest

from overpaint.system.malloc import GLIBC, MAX_PAUSE_S, release_memory

MEGABYTE = 2**20

HEAPS = """
import ctypes, sys, threading
from overpaint.system.malloc import GLIBC, limit_heaps
if sys.argv[1] == "shared":
    limit_heaps()
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
"""Runs four threads at once, and prints the heaps of glibc."""


@pytest.mark.skipif(GLIBC is None, reason="needs glibc")
def test_limit_heaps_makes_threads_share_one_heap() -> None:
    def heaps(mode: str) -> int:
        command = [sys.executable, "-c", HEAPS, mode]
        completed = subprocess.run(command, capture_output=True, text=True, check=True)
        return completed.stdout.count("<heap nr=")

    assert heaps("shared") == 1
    assert heaps("each") > 1


FREED = """
import ctypes, sys
from overpaint.system.malloc import GLIBC, MMAP_THRESHOLD_BYTES, limit_heaps
limit_heaps(serves=sys.argv[1] == "serves")
large = bytes(2**20)
del large
held = [bytes(MMAP_THRESHOLD_BYTES) for _ in range(100)]
GLIBC.malloc_info(0, ctypes.c_void_p.in_dll(GLIBC, "stdout"))
"""
"""Frees a large block, which raises glibc's threshold, and prints where 100 others are."""


@pytest.mark.skipif(GLIBC is None, reason="needs glibc")
def test_limit_heaps_of_a_server_keeps_large_blocks_out_of_the_heap() -> None:
    def mapped(mode: str) -> int:
        command = [sys.executable, "-c", FREED, mode]
        completed = subprocess.run(command, capture_output=True, text=True, check=True)
        return int(re.findall(r'type="mmap" count="(\d+)"', completed.stdout)[-1])

    # A few blocks may fit into room that imports have left free in the heap.
    assert mapped("computes") < 20
    assert mapped("serves") > 90


@pytest.mark.skipif(GLIBC is None, reason="needs glibc")
def test_release_memory_returns_free_blocks_between_used_ones() -> None:
    release_memory()
    small = [bytes(3000) for _ in range(100_000)]
    stays = small[::100]
    before = psutil.Process().memory_info().rss
    del small
    release_memory()
    assert psutil.Process().memory_info().rss < before - 200 * MEGABYTE
    assert len(stays) == 1000


def test_release_memory_collects_reference_cycles() -> None:
    class Loop:
        def __init__(self) -> None:
            self.itself = self

    gc.disable()
    try:
        seen = weakref.ref(Loop())
        assert seen()
        release_memory()
        assert seen() is None
    finally:
        gc.enable()


def test_release_memory_pause_grows_with_its_duration(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.perf_counter", lambda: now)

    def collecting(seconds: float) -> Callable[[], None]:
        def collect() -> None:
            nonlocal now
            now += seconds

        return collect

    for seconds, pause in ((0.01, 4.0), (0.1, 40.0), (1.0, MAX_PAUSE_S)):
        monkeypatch.setattr("gc.collect", collecting(seconds))
        assert release_memory() == pytest.approx(pause)
