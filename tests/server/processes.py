"""Server processes for tests that kill, freeze, starve and measure them."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import httpx
import psutil

ROOT = Path(__file__).parents[2]
PATIENCE = 300.0
"""Seconds until a test gives up."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(
    true: Callable[[], object], what: str | Callable[[], str], seconds: float = PATIENCE
) -> None:
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise TimeoutError(what if isinstance(what, str) else what())
        time.sleep(0.02)


class Server:
    """A `tests.server.fake_server` in a process, which can be started again after any end.

    Attributes:
        url: its address, which stays.
        process: that answers; its worker is a child of it.
        client: to speak to it with.
    """

    def __init__(self, folder: Path, *options: str, wrapper: tuple[str, ...] = ()):
        """Start it.

        Args:
            folder: its data.
            options: of `fake_server`.
            wrapper: a command that runs it.
        """
        port = free_port()
        program = [sys.executable, "-m", "tests.server.fake_server", str(folder), str(port)]
        self.command = [*wrapper, *program, *options]
        self.url = f"http://127.0.0.1:{port}"
        self.client = httpx.Client(base_url=self.url, timeout=60)
        self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, cwd=ROOT, stderr=subprocess.DEVNULL)
        until(lambda: self.answers("healthz"), "the server does not start")

    def answers(self, path: str) -> bool:
        """Return whether there is a good answer."""
        try:
            return self.client.get(f"/{path}", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    def until_ready(self) -> Self:
        until(lambda: self.answers("readyz"), "the server does not get ready")
        return self

    @property
    def worker(self) -> psutil.Process | None:
        """Its other child is what Python starts with that."""
        for child in psutil.Process(self.process.pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):
                if "spawn_main" in " ".join(child.cmdline()):
                    return child
        return None

    def kill(self) -> None:
        """Kill the server and start it again; its worker ends by itself."""
        self.process.kill()
        self.process.wait()
        self.start()

    def kill_worker(self) -> bool:
        """Return whether there was one that was not dying already."""
        with contextlib.suppress(psutil.NoSuchProcess):
            if worker := self.worker:
                worker.kill()
                return True
        return False

    def freeze(self) -> None:
        """It stands still."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        self.process.terminate()
        self.process.wait()

    def close(self) -> None:
        self.client.close()
        self.end()

    # Jobs

    def submit(self, prompt: str = "a cup", steps: int = 4, **fields: Any) -> str:
        """A job that is accepted; returns its id."""
        request = {"prompt": prompt, "num_inference_steps": steps, "seed": 7} | fields
        answer = self.client.post("/api/jobs", json={"request": request})
        if answer.status_code != 201:
            raise RuntimeError(f"refused with {answer.status_code}: {answer.text}")
        return str(answer.json()["id"])

    def job(self, name: str) -> Any:
        """A job as it is now."""
        return self.client.get(f"/api/jobs/{name}").raise_for_status().json()

    def kinds(self, name: str) -> list[str]:
        """Return the kinds of events of a job that has ended, in order."""
        story = self.client.get(f"/api/jobs/{name}/events").raise_for_status().text
        return [line[7:] for line in story.splitlines() if line.startswith("event: ")]

    def ended(self, name: str, seconds: float = PATIENCE) -> Any:
        """A job once it has ended."""
        states = ("queued", "running")
        until(lambda: self.job(name)["state"] not in states, f"{name} does not end", seconds)
        return self.job(name)
