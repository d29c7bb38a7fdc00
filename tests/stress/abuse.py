"""Measure requests that once stopped the server or its worker for everybody.

`python -m tests.stress.abuse` prints the report as JSON:

- 96 KB of BREAK, and the longest prompt of BREAKs that the server accepts;
- a mask that grows by 512 pixels over a picture of 8192², with small jobs of another client;
- an upload that sends 1 KiB a second of 60 MB.
"""

from __future__ import annotations

import io
import json
import socket
import tempfile
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from overpaint.request.fields import MAX_PROMPT_CHUNKS
from tests.server.processes import Server

MANY_BREAKS = "BREAK " * 16_384
SIDE = 8192
UPLOAD_BYTES = 60_000_000
SMALL_JOBS = 8
"""Small jobs, one after the other, from which the usual time of one is measured."""

MAX_WAIT_RATIO = 5.0
"""Allowed median duration of a small job beside the large mask, in durations of one alone. The
arithmetic of the large picture shares the processors."""

MAX_UPLOAD_S = 70.0
"""Two windows of `request_body_timeout_s`, and a moment."""


@dataclass
class Report:
    """Measurements; seconds, and bytes of the worker beyond those before.

    Attributes:
        refused_status: of the prompt of 96 KB.
        refused_s: until that answer.
        longest_prompt_bytes: memory while a job with the largest number of chunks runs.
        small_job_s: a small job alone.
        beside_mask_s: small jobs beside the large mask.
        mask_job_s: the job with the large mask, until it has ended.
        mask_bytes: memory while it runs.
        cancel_s: from the cancellation of another such job until it has ended.
        upload_s: until the server ends the slow upload.
    """

    refused_status: int = 0
    refused_s: float = 0.0
    longest_prompt_bytes: int = 0
    small_job_s: float = 0.0
    beside_mask_s: list[float] = field(default_factory=list[float])
    mask_job_s: float = 0.0
    mask_bytes: int = 0
    cancel_s: float = 0.0
    upload_s: float = 0.0
    states: list[str] = field(default_factory=list[str])

    @property
    def passed(self) -> bool:
        return (
            self.refused_status == 422
            and set(self.states) == {"succeeded"}
            and median(self.beside_mask_s) < MAX_WAIT_RATIO * self.small_job_s
            and self.upload_s < MAX_UPLOAD_S
        )


def run(server: Server) -> Report:
    """Send each of the requests to a server with the miniature."""
    report = Report()
    run_small_job(server, report)  # warms up
    report.small_job_s = median(run_small_job(server, report) for _ in range(SMALL_JOBS))
    send_breaks(server, report)
    grow_mask(server, report)
    report.upload_s = upload_slowly(server.url)
    return report


def run_small_job(server: Server, report: Report) -> float:
    start = time.monotonic()
    report.states.append(server.ended(server.submit(seed=len(report.states)))["state"])
    return round(time.monotonic() - start, 2)


def send_breaks(server: Server, report: Report) -> None:
    start = time.monotonic()
    fields = {"prompt": MANY_BREAKS, "num_inference_steps": 4}
    report.refused_status = server.client.post("/api/jobs", json={"request": fields}).status_code
    report.refused_s = round(time.monotonic() - start, 3)
    with peak_memory(server) as peak:
        longest = "a cup" + " BREAK a cup" * (MAX_PROMPT_CHUNKS - 1)
        report.states.append(server.ended(server.submit(longest))["state"])
    report.longest_prompt_bytes = peak[0]


def grow_mask(server: Server, report: Report) -> None:
    picture = upload(server, Image.new("RGB", (SIDE, SIDE), "gray"))
    mask = Image.new("L", (SIDE, SIDE))
    mask.paste(255, (4000, 4000, 4100, 4100))
    fields: dict[str, Any] = {"image": picture, "mask": upload(server, mask), "mask_grow": 512}
    with peak_memory(server) as peak:
        start = time.monotonic()
        name = server.submit(**fields)
        while server.job(name)["state"] in ("queued", "running"):
            report.beside_mask_s.append(run_small_job(server, report))
        report.mask_job_s = round(time.monotonic() - start, 2)
        report.states.append(server.job(name)["state"])
    report.mask_bytes = peak[0]
    name = server.submit(**fields, seed=8)
    while server.job(name)["state"] == "queued":
        time.sleep(0.02)
    start = time.monotonic()
    server.client.post(f"/api/jobs/{name}/cancel").raise_for_status()
    server.ended(name)
    report.cancel_s = round(time.monotonic() - start, 2)


def upload(server: Server, picture: Image.Image) -> dict[str, str]:
    """Upload a picture; return the reference to it."""
    encoded = io.BytesIO()
    picture.save(encoded, "png", compress_level=1)
    answer = server.client.post(
        "/api/files", content=encoded.getvalue(), headers={"Content-Type": "image/png"}
    )
    return {"file": str(answer.raise_for_status().json()["file"])}


def upload_slowly(url: str) -> float:
    """Send 1 KiB a second; return the seconds until the server ends the connection."""
    address = urlsplit(url)
    head = f"POST /api/files HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {UPLOAD_BYTES}\r\n\r\n"
    start = time.monotonic()
    with socket.create_connection((address.hostname or "", address.port or 0)) as connection:
        connection.sendall(head.encode())
        connection.settimeout(1.0)
        while time.monotonic() - start < 2 * MAX_UPLOAD_S:
            try:
                connection.sendall(b"x" * 1024)
                if not connection.recv(4096):
                    break
            except TimeoutError:
                continue
            except OSError:
                break
    return round(time.monotonic() - start, 1)


@contextmanager
def peak_memory(server: Server) -> Generator[list[int]]:
    """Watch the worker; afterwards the list has its largest memory beyond that before."""
    worker = server.worker
    if worker is None:
        raise RuntimeError("the server has no worker")
    before, peak, done = worker.memory_info().rss, [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], worker.memory_info().rss - before)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        Server(Path(folder), "--engine", "miniature") as server,
    ):
        report = run(server.until_ready())
    found: dict[str, Any] = asdict(report) | {"passed": report.passed}
    print(json.dumps(found))
    raise SystemExit(not report.passed)


if __name__ == "__main__":
    main()
