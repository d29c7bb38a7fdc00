"""Stores to test against: SQLite always, Postgres where Debian's `postgresql` is installed."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from overpaint.server.database import Database
from overpaint.server.jobs import Jobs


def _programs() -> Path | None:
    """Where the newest Postgres is."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: p.parts[-3])
    if found:
        return found[-1].parent
    beside = shutil.which("initdb")
    return Path(beside).parent if beside else None


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """A Postgres server of our own, as the URL of a database in it; "" where it is missing."""
    programs = _programs()
    if programs is None:
        yield ""
        return
    # It refuses to run as root.
    user = {"user": "postgres"} if os.geteuid() == 0 else {}
    folder = Path(tempfile.mkdtemp(prefix="overpaint-postgres-"))
    if user:
        shutil.chown(folder, "postgres")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data, log = str(folder / "data"), str(folder / "log")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.STDOUT, "cwd": folder, **user}
    make = [programs / "initdb", "-D", data, "-U", "tests", "--auth=trust", "--no-sync"]
    subprocess.run(make, check=True, **quiet)  # pyright: ignore[reportCallIssue, reportArgumentType]
    options = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories={folder}"
    start = [programs / "pg_ctl", "-D", data, "-l", log, "-w", "-o", options, "start"]
    subprocess.run(start, check=True, **quiet)  # pyright: ignore[reportCallIssue, reportArgumentType]
    try:
        yield f"postgresql+psycopg://tests@127.0.0.1:{port}/"
    finally:
        stop = [programs / "pg_ctl", "-D", data, "-m", "immediate", "-w", "stop"]
        subprocess.run(stop, check=True, **quiet)  # pyright: ignore[reportCallIssue, reportArgumentType]
        shutil.rmtree(folder)


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


Open = Callable[[], Jobs]


@pytest.fixture(params=["sqlite", "postgres"])
def opened(
    request: pytest.FixtureRequest, postgres: str, tmp_path: Path, clock: Clock
) -> Iterator[Open]:
    """Opens the same store again and again, as several servers do."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'jobs.db'}"
    elif postgres:
        name = f"t{uuid.uuid4().hex}"
        with psycopg.connect(f"{postgres.replace('+psycopg', '')}postgres", autocommit=True) as c:
            c.execute(f'CREATE DATABASE "{name}"'.encode())
        url = f"{postgres}{name}"
    else:
        pytest.skip("no Postgres here: apt-get install postgresql")
    stores = list[Jobs]()

    def another() -> Jobs:
        stores.append(Jobs(Database(url, clock)))
        return stores[-1]

    yield another
    for store in stores:
        store.database.close()


@pytest.fixture
def store(opened: Open) -> Jobs:
    return opened()
