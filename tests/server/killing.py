"""Jobs for a server whose processes are killed at random: what was acknowledged must end once.

`python -m tests.server.killing KILLS JOBS` prints what came of it, as JSON.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import httpx
import psutil
from PIL import Image

from overpaint.server.database import Database
from overpaint.server.files import Files
from overpaint.server.jobs import ENDED, Jobs

ROOT = Path(__file__).parents[2]
PROMPTS = ("a cup", "note", "a car", "refuse", "a fish")
CLIENTS = 4
PATIENCE = 300.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A server that is started again whenever it was killed."""

    def __init__(self, folder: Path, port: int):
        self.command = [sys.executable, "-m", "tests.server.fake_server", str(folder), str(port)]
        self.url = f"http://127.0.0.1:{port}"
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, cwd=ROOT, stderr=subprocess.DEVNULL)
        until(lambda: answers(self.url), "the server does not start")

    def kill(self) -> None:
        """As the machine would: its worker notices."""
        self.process.kill()
        self.process.wait()
        self.start()

    def kill_worker(self) -> bool:
        """One of its children, which are the worker and what Python starts with it."""
        killed = 0
        for child in psutil.Process(self.process.pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):  # it was dying already
                if "spawn_main" in " ".join(child.cmdline()):
                    child.kill()
                    killed += 1
        return killed > 0

    def end(self) -> None:
        self.process.terminate()
        self.process.wait()


def answers(url: str, path: str = "healthz") -> bool:
    try:
        return httpx.get(f"{url}/{path}", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def until(true: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        if time.monotonic() > end:
            raise TimeoutError(what)
        time.sleep(0.02)


@dataclass
class Found:
    """What came of the jobs that were acknowledged."""

    kills: int = 0
    of_servers: int = 0
    acknowledged: int = 0
    states: dict[str, int] = field(default_factory=dict[str, int])
    lost: int = 0  # not there, or never ended
    ended_twice: int = 0
    results_missing: int = 0
    given_up: int = 0  # failed since something died under them too often
    most_attempts: int = 0
    seconds: float = 0.0


def run(folder: Path, kills: int, count: int, seed: int = 0, pause: float = 0.5) -> Found:
    """Submit so many jobs while processes are killed so many times."""
    began = time.monotonic()
    rng = random.Random(seed)
    server = Server(folder, free_port())
    acknowledged, numbers, lock = list[str](), itertools.count(), threading.Lock()
    killed, broken = threading.Event(), list[str]()

    def submit() -> None:
        own = random.Random(threading.get_ident())
        with httpx.Client(base_url=server.url, timeout=30) as client:
            while True:
                with lock:
                    number = next(numbers)
                if number >= count and killed.is_set():
                    return
                fields = {
                    "prompt": own.choice(PROMPTS),
                    "num_inference_steps": own.randint(1, 15),
                    "seed": number,
                }
                token = {"Idempotency-Key": f"job {number}"}
                while True:  # until it is acknowledged, however often the server dies meanwhile
                    try:
                        answer = client.post("/api/jobs", json={"request": fields}, headers=token)
                    except httpx.HTTPError:
                        time.sleep(0.02)
                        continue
                    if answer.status_code == 201:
                        with lock:
                            acknowledged.append(answer.json()["id"])
                        break
                    broken.append(f"{answer.status_code} {answer.text}")
                    time.sleep(0.02)

    clients = [threading.Thread(target=submit, daemon=True) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    found = Found()
    while found.kills < kills:
        if rng.random() < 0.8:  # mostly while jobs are under way, sometimes while it starts
            until(lambda: answers(server.url, "readyz"), "the worker does not start")
        time.sleep(rng.uniform(0, pause))
        if rng.random() < 0.5:
            server.kill()
            found.of_servers += 1
            found.kills += 1
        else:
            found.kills += server.kill_worker()
    killed.set()
    for client in clients:
        client.join()
    jobs, files = Jobs(Database(f"sqlite:///{folder / 'jobs.db'}")), Files(folder)
    try:
        until(lambda: not jobs.page(None, 1, states=("queued", "running")), "jobs do not end")
        check(found, jobs, files, acknowledged)
    finally:
        server.end()
        jobs.database.close()
    if unexpected := [answer for answer in broken if not answer.startswith(("429", "503"))]:
        raise AssertionError(f"answered {unexpected[:3]}")
    found.seconds = round(time.monotonic() - began, 1)
    return found


def check(found: Found, jobs: Jobs, files: Files, acknowledged: list[str]) -> None:
    """Every job that was acknowledged, by what is stored and on the disk."""
    found.acknowledged = len(set(acknowledged))
    states = Counter[str]()
    for name in set(acknowledged):
        job = jobs.get(name)
        if job is None or job.state not in ENDED:
            found.lost += 1
            continue
        states[job.state] += 1
        found.most_attempts = max(found.most_attempts, job.attempt)
        found.ended_twice += sum(said.kind in ENDED for said in jobs.history(name)) != 1
        found.given_up += "given up" in (job.error or "")
        if job.state == "succeeded":
            found.results_missing += not all(
                whole(files.results(name) / made) for made in (job.result or {})["files"]
            )
    found.states = dict(states)


def whole(path: Path) -> bool:
    """Whether a picture can be read to its end."""
    try:
        with Image.open(path) as image:
            image.load()
            return image.size == (8, 8)
    except OSError:
        return False


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(asdict(run(Path(folder), int(sys.argv[1]), int(sys.argv[2])))))
