"""Use every dialect for a long time; memory, file handles and threads must stay constant.

`python -m tests.stress.soak SECONDS [--engine miniature]` prints the report as JSON. In a round,
each dialect makes pictures, reads the results, and sends a request that the server rejects. After
the round no job runs, and the program measures the processes.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import math
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import linear_regression
from typing import Any

import httpx
import numpy as np
import psutil
from PIL import Image

from tests.server.processes import Server

WARM_UP = 0.25
"""Share of the rounds after which memory must be constant."""

FLAT = 1.0
"""Allowed growth of memory after that, in MB per hour."""

ROUND = 0.5
"""Shortest interval in seconds between the starts of two rounds."""

POOLS = 4
"""Threads and store connections that pools may add after the warm-up. A leak adds some each
round."""

STEPS = 4
SIDE = 128
"""Side in pixels of pictures, which is the miniature's native size."""


@dataclass
class Sample:
    """Measurements of a process between two rounds."""

    at: float
    bytes: int
    handles: int
    threads: int


@dataclass
class Report:
    """Measurements of the server and of the worker.

    Attributes:
        jobs: finished jobs by dialect.
        errors: number of unexpected responses by text.
        slope: growth of memory after the warm-up, in MB per hour.
        megabytes: memory after the warm-up and at the end.
        course: memory in MB at each tenth of the time, the mean of that tenth.
        handles: largest number of open file handles during the warm-up, and after it.
        threads: largest number of threads during the warm-up, and after it.
    """

    seconds: float
    rounds: int = 0
    jobs: dict[str, int] = field(default_factory=dict[str, int])
    errors: dict[str, int] = field(default_factory=dict[str, int])
    slope: dict[str, float] = field(default_factory=dict[str, float])
    megabytes: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    course: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    handles: dict[str, list[int]] = field(default_factory=dict[str, list[int]])
    threads: dict[str, list[int]] = field(default_factory=dict[str, list[int]])

    @property
    def flat(self) -> bool:
        """Return whether responses were right, and handles and threads constant."""
        kinds = (*self.handles.values(), *self.threads.values())
        return not self.errors and all(late <= early + POOLS for early, late in kinds)

    @property
    def passed(self) -> bool:
        """Return whether memory was also constant."""
        return self.flat and max(self.slope.values()) < FLAT


def run(folder: Path, seconds: float, engine: str = "fake") -> Report:
    """Use every dialect for `seconds`."""
    with Server(folder, "--engine", engine, "--seconds", "0.005", "--fetch", "all") as server:
        return asyncio.run(_run(server.until_ready(), seconds))


async def _run(server: Server, seconds: float) -> Report:
    report = Report(seconds)
    jobs, errors = Counter[str](), Counter[str]()
    worker = server.worker
    assert worker is not None
    processes = {"server": psutil.Process(server.process.pid), "worker": worker}
    samples: dict[str, list[Sample]] = {name: [] for name in processes}
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:

        async def speak(name: str, dialect: Dialect, number: int) -> None:
            try:
                await dialect(client, number)
            except (httpx.HTTPError, UnexpectedError) as error:
                errors[f"{name}: {error!r}"[:300]] += 1
            else:
                jobs[name] += 1

        began = time.monotonic()
        while (now := time.monotonic()) < began + seconds:
            number, report.rounds = report.rounds, report.rounds + 1
            spoken = (speak(name, dialect, number) for name, dialect in DIALECTS.items())
            await asyncio.gather(*spoken)
            for name, process in processes.items():
                samples[name].append(_look(process))
            await asyncio.sleep(now + ROUND - time.monotonic())
    report.jobs, report.errors = dict(jobs), dict(errors)
    for name, taken in samples.items():
        warm = math.ceil(WARM_UP * len(taken))
        early, late = taken[:warm], taken[warm:]
        fitted = linear_regression([one.at for one in late], [one.bytes for one in late])
        report.slope[name] = round(fitted.slope * 3600 / 2**20, 2)
        report.megabytes[name] = [round(one.bytes / 2**20, 1) for one in (late[0], late[-1])]
        parts = np.array_split([one.bytes / 2**20 for one in taken], 10)
        report.course[name] = [round(float(np.mean(part)), 1) for part in parts if len(part)]
        report.handles[name] = [max(one.handles for one in part) for part in (early, late)]
        report.threads[name] = [max(one.threads for one in part) for part in (early, late)]
    return report


def _look(process: psutil.Process) -> Sample:
    with process.oneshot():
        info, threads = process.memory_info(), process.num_threads()
        # Without pages of files, which the system drops when other programs need memory.
        size = int(info.rss - getattr(info, "shared", 0))
    return Sample(time.monotonic(), size, process.num_fds(), threads)


# Requests in each dialect


class UnexpectedError(Exception):
    """An unexpected response."""


def good(answer: httpx.Response, status: int = 200) -> Any:
    if answer.status_code != status:
        raise UnexpectedError(answer.request.url.path, answer.status_code, answer.text[:100])
    return answer.json()


def shown(data: bytes) -> None:
    """Check that a picture can be read."""
    with Image.open(io.BytesIO(data)) as image:
        image.verify()


def png(number: int) -> bytes:
    """Return a different picture each time."""
    buffer = io.BytesIO()
    color = (number % 256, number // 256 % 256, 7)
    Image.new("RGB", (SIDE, SIDE), color).save(buffer, "PNG")
    return buffer.getvalue()


def uri(number: int) -> str:
    return f"data:image/png;base64,{base64.b64encode(png(number)).decode()}"


def of_uri(text: str) -> bytes:
    return base64.b64decode(text.partition(",")[2])


async def native(client: httpx.AsyncClient, number: int) -> None:
    """Upload a picture, run a job, follow its events, read its result, and cancel another job."""
    file = good(await client.post("/api/files", content=png(number)), 201)["file"]
    request = {"prompt": "a cup", "seed": number, "num_inference_steps": STEPS}
    body = {"request": request | {"image": {"file": file}}, "output": {"preview_every": 2}}
    name = good(await client.post("/api/jobs", json=body), 201)["id"]
    story = await client.get(f"/api/jobs/{name}/events")
    if "event: succeeded" not in story.text:
        raise UnexpectedError(story.text[-200:])
    job = good(await client.get(f"/api/jobs/{name}"))
    shown((await client.get(job["results"][0]["url"])).content)
    long = {"request": request | {"num_inference_steps": 1000}}
    name = good(await client.post("/api/jobs", json=long), 201)["id"]
    good(await client.post(f"/api/jobs/{name}/cancel"))
    job = good(await client.get(f"/api/jobs/{name}", params={"wait": 30}))
    if job["state"] != "canceled":
        raise UnexpectedError(job["state"])
    good(await client.post("/api/jobs", json={"request": {"steps_": 1}}), 422)


async def replicate(client: httpx.AsyncClient, number: int) -> None:
    inputs = {"prompt": "a cup", "seed": number, "num_inference_steps": STEPS, "image": uri(number)}
    body = {"version": "owner/miniature", "input": inputs}
    made = good(await client.post("/v1/predictions", json=body, headers={"Prefer": "wait=50"}), 201)
    if made["status"] != "succeeded":
        raise UnexpectedError(made["status"], made["error"])
    shown((await client.get(made["output"][0])).content)
    stored = await client.get(
        f"/v1/predictions/{made['id']}", headers={"Prefer": "output=data-uri"}
    )
    shown(of_uri(good(stored)["output"][0]))
    good(await client.post("/v1/predictions", json=body | {"input": {"image": "%"}}), 422)


async def cog(client: httpx.AsyncClient, number: int) -> None:
    inputs = {"prompt": "a cup", "seed": number, "num_inference_steps": STEPS}
    made = good(await client.post("/predictions", json={"input": inputs}))
    shown(of_uri(made["output"][0]))
    good(await client.get("/health-check"))
    good(await client.post("/predictions", json={"input": {"mask": uri(number)}}), 422)


async def openai(client: httpx.AsyncClient, number: int) -> None:
    """Edit by a form, and create by a stream."""
    fields = {"prompt": "a cup", "seed": number, "steps": STEPS}
    files = {"image": ("house.png", png(number))}
    made = good(await client.post("/v1/images/edits", data=fields, files=files))
    shown(base64.b64decode(made["data"][0]["b64_json"]))
    streamed = fields | {"stream": True, "partial_images": 1}
    answer = await client.post("/v1/images/generations", json=streamed)
    if "image_generation.completed" not in answer.text:
        raise UnexpectedError(answer.text[-200:])
    good(await client.post("/v1/images/generations", json=fields | {"n": 0}), 400)


async def a1111(client: httpx.AsyncClient, number: int) -> None:
    body = {"prompt": "a cup", "seed": number, "steps": STEPS}
    made = good(await client.post("/sdapi/v1/txt2img", json=body))
    shown(base64.b64decode(made["images"][0]))
    good(await client.get("/sdapi/v1/progress"))
    good(await client.post("/sdapi/v1/txt2img", json=body | {"steps": 0}), 422)


async def fal(client: httpx.AsyncClient, number: int) -> None:
    """Queue and follow a request, then repaint its picture by URL."""
    body = {"prompt": "a cup", "seed": number, "num_inference_steps": STEPS}
    name = good(await client.post("/fal/queue/owner/miniature", json=body))["request_id"]
    path = f"/fal/queue/owner/miniature/requests/{name}"
    followed = await client.get(f"{path}/status/stream", params={"logs": True})
    if '"COMPLETED"' not in followed.text:
        raise UnexpectedError(followed.text[-200:])
    url = good(await client.get(path))["images"][0]["url"]
    shown((await client.get(url)).content)
    good(await client.post("/fal/run/owner/miniature", json=body | {"image_url": url}))
    good(await client.post("/fal/run/owner/miniature", json=body | {"num_images": 0}), 422)


Dialect = Callable[[httpx.AsyncClient, int], Awaitable[None]]
DIALECTS: dict[str, Dialect] = {
    each.__name__: each for each in (native, replicate, cog, openai, a1111, fal)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--engine", choices=("fake", "miniature"), default="fake")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = run(Path(folder), given.seconds, given.engine)
    print(json.dumps(asdict(report) | {"passed": report.passed}))
    raise SystemExit(not report.passed)


if __name__ == "__main__":
    main()
