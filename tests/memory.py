"""What a process holds in memory, as Linux counts it."""

import gc
from collections.abc import Callable
from pathlib import Path

from overpaint.system.malloc import trim_heap

COUNTED = Path("/proc/self/status")


def added(work: Callable[[], object]) -> tuple[int, int]:
    """Bytes of resident memory that `work` adds: at its peak, and kept by its result.

    The peak is that of the process's whole life, so this is for a separate process. Pages of files,
    such as those of libraries, do not count: the system drops and reads them as it likes.
    """
    gc.collect()
    trim_heap()  # else pages that are free already would be given back by `work`
    before = _status("RssAnon")
    result = work()
    taken = read_peak_bytes() - before, _status("RssAnon") - before
    del result
    return taken


def read_peak_bytes() -> int:
    """Return the largest memory of this process so far, without pages of files."""
    return _status("VmHWM") - _status("RssFile")


def _status(field: str) -> int:
    lines = COUNTED.read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
