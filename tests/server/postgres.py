"""A new Postgres server, where Debian's `postgresql` is installed."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import psycopg


def _programs() -> Path | None:
    """Where the newest Postgres is."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: p.parts[-3])
    if found:
        return found[-1].parent
    beside = shutil.which("initdb")
    return Path(beside).parent if beside else None


@contextmanager
def postgres() -> Generator[str]:
    """The URL that names of databases are added to; "" where it is missing."""
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


def database(server: str) -> str:
    """The URL of a new database there."""
    name = f"t{uuid.uuid4().hex}"
    with psycopg.connect(f"{server.replace('+psycopg', '')}postgres", autocommit=True) as c:
        c.execute(f'CREATE DATABASE "{name}"'.encode())
    return f"{server}{name}"
