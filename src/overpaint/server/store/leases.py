"""The clock by which leases expire, although the store's clock may jump."""

import time
from collections.abc import Callable

from sqlalchemy import Connection, update

from overpaint.server.store.tables import jobs
from overpaint.system.steady_clock import SteadyClock

MAX_LEASE_S = 3600.0
"""Seconds that the end of a lease can be ahead; servers of one store may differ in `lease_s`."""


class LeaseClock:
    """Reads the store's clock so that a jump expires no lease early, and none never.

    After a jump ahead, the owners of jobs have time to renew their leases.
    """

    def __init__(self, lease_s: float, monotonic: Callable[[], float] = time.monotonic):
        """Start without readings.

        Args:
            lease_s: seconds of a lease of the server that asks.
            monotonic: seconds of the monotonic clock.
        """
        self._max_lease_s = max(MAX_LEASE_S, 2 * lease_s)
        self._clock = SteadyClock(2 * lease_s, monotonic)

    def read(self, connection: Connection, now: float) -> float:
        """Return the time before which leases have expired, in seconds since 1970.

        A lease that ends too late is from before the clock was put back. It is shortened, because
        its owner may be gone.

        Args:
            connection: with a transaction that can write.
            now: time of the store's clock.
        """
        latest = now + self._max_lease_s
        too_long = update(jobs).where(jobs.c.state == "running", jobs.c.lease > latest)
        connection.execute(too_long.values(lease=latest))
        return self._clock.read(now)
