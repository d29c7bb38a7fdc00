"""Wall time for measuring ages, which never runs ahead of elapsed time."""

import time
from collections import deque
from collections.abc import Callable


class SteadyClock:
    """Reads a wall clock so that nothing looks older than it is if the clock jumps.

    A wall clock is a monotonic clock plus an offset, and a jump changes the offset. This clock uses
    the smallest offset of the last `window_s` seconds. So for times that were written within the
    window, an age by this clock is at most the elapsed time. After a jump ahead, or after the
    machine slept, the clock follows once the window has passed.
    """

    def __init__(self, window_s: float, monotonic: Callable[[], float] = time.monotonic):
        """Start without readings.

        Args:
            window_s: the largest age that the caller measures, in seconds.
            monotonic: seconds of the monotonic clock.
        """
        self._window_s = window_s
        self._monotonic = monotonic
        self._offsets: deque[tuple[float, int]] = deque()  # rising, each with its last reading

    def read(self, wall: float) -> float:
        """Return the time for ages, in seconds since 1970, at most `wall`.

        Args:
            wall: what the wall clock shows now.
        """
        now = self._monotonic()
        offset = int((wall - now) // 1)  # whole seconds, so that few different ones are kept
        while self._offsets and self._offsets[-1][1] >= offset:
            self._offsets.pop()
        self._offsets.append((now, offset))
        while self._offsets[0][0] < now - self._window_s:
            self._offsets.popleft()
        smallest = self._offsets[0][1]
        return wall if smallest == offset else now + smallest
