"""Processes that open a store that needs an upgrade. They import little, since several start."""

import os
import signal
from multiprocessing.synchronize import Barrier
from typing import Any

from overpaint.server.store.database import Database
from overpaint.server.store.tables import SCHEMA_VERSION
from overpaint.server.store.upgrade import UpgradeProgress


def migrate_until_killed(url: str) -> None:
    def die(progress: UpgradeProgress) -> None:
        if progress.reached_version == SCHEMA_VERSION:
            os.kill(os.getpid(), signal.SIGKILL)

    Database(url, upgrade=True, report=die)


def open_at_once(url: str, barrier: Barrier, reports: Any) -> None:
    barrier.wait()
    Database(url, upgrade=True, report=lambda progress: reports.put(progress.state)).close()
    reports.put("open")
