"""Shutdown: running jobs finish, queued jobs stay queued, and listeners are disconnected."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import psutil
import pytest

from overpaint.server.store.database import Database
from overpaint.server.store.jobs import Jobs
from tests.server.processes import Server, until

STEPS = 60


def listen(server: Server, name: str, events: list[str]) -> threading.Thread:
    def run() -> None:
        with server.client.stream("GET", f"/api/jobs/{name}/events") as answer:
            events.extend(line for line in answer.iter_lines() if line.startswith("event: "))
        events.append("let go")

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def read_states(folder: Path) -> dict[str, str]:
    database = Database(f"sqlite:///{folder / 'jobs.db'}")
    try:
        return {job.id: job.state for job in Jobs(database).list_page(None, 9)}
    finally:
        database.close()


def start_two_jobs(server: Server) -> tuple[str, str, list[threading.Thread], list[list[str]]]:
    """A job that runs and one that waits, and who listens to them."""
    running, waiting = (server.submit(steps=STEPS) for _ in range(2))
    until(lambda: server.job(running)["done"], "no step is made")
    events: list[list[str]] = [[], []]
    threads = [listen(server, name, h) for name, h in zip((running, waiting), events, strict=True)]
    until(lambda: all(events), "nobody listens")
    return running, waiting, threads, events


@pytest.mark.parametrize(
    ("number", "receiver"),
    [
        (signal.SIGINT, "the server"),
        (signal.SIGINT, "all its processes"),
        (signal.SIGHUP, "all its processes"),
        (signal.SIGQUIT, "all its processes"),
    ],
)
def test_shutdown_one_signal_lets_running_jobs_finish(
    tmp_path: Path, number: signal.Signals, receiver: str
) -> None:
    """A terminal's Ctrl-C and service managers tell all."""
    with Server(tmp_path, "--room", "1", "--grace", "60").until_ready() as server:
        running, waiting, threads, events = start_two_jobs(server)
        processes = [psutil.Process(server.process.pid)]
        if receiver != "the server":
            processes += processes[0].children(recursive=True)
        for process in processes:
            process.send_signal(number)
        until(lambda: not server.answers("readyz"), "it takes more")
        refused = server.client.post("/api/jobs", json={"request": {}})
        assert refused.status_code == 429
        assert "about to end" in refused.text
        for thread in threads:
            thread.join()
        server.process.wait()
        assert events[0][-2:] == ["event: succeeded", "let go"]
        assert events[1] == ["event: queued", "let go"]
        assert read_states(tmp_path) == {running: "succeeded", waiting: "queued"}


def test_shutdown_second_signal_stops_at_once(tmp_path: Path) -> None:
    with Server(tmp_path, "--room", "1", "--grace", "3600", "--seconds", "60").until_ready() as one:
        waiting = one.submit(steps=STEPS)
        until(lambda: one.job(waiting)["state"] == "running", "it does not run")
        one.process.send_signal(signal.SIGTERM)
        until(lambda: not one.answers("readyz"), "it takes more")
        one.process.send_signal(signal.SIGTERM)
        one.process.wait()
        assert read_states(tmp_path) == {waiting: "queued"}
