"""An engine without torch for tests of volume and of disasters: the prompt says what happens."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from typing import Any

from PIL import Image

from overpaint.engine.counters import Counters
from overpaint.errors import RequestError
from overpaint.events import Canceled, Event, Failed, Finished, Notice, Preview, Spent, Step
from overpaint.provenance import metadata
from overpaint.request import Request

Told = tuple[str, Event | Failed | Canceled | Spent]


@dataclass(frozen=True)
class FakeModel:
    """What a picture's record says of the model."""

    name: str = "fake"
    sha256: str = "0" * 64
    device: str = "cpu"
    dtype: str = "fp32"

    @property
    def family(self) -> FakeModel:
        return self


class Fake:
    """Every tick is a step for every job.

    "die", "freeze", "hang", "refuse" and "break" do so half-way.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.jobs: dict[str, list[Any]] = {}
        self.told: list[Told] = []

    @property
    def busy(self) -> bool:
        return bool(self.jobs or self.told)

    def submit(
        self,
        name: str,
        request: Request,
        model: str,
        *,
        key: str,
        priority: int,
        preview_every: int,
    ) -> None:
        self.jobs[name] = [request, 0, preview_every]

    def cancel(self, name: str) -> None:
        if name in self.jobs:
            self.end(name, Canceled())

    def tick(self) -> list[Told]:
        time.sleep(self.seconds)
        for name, job in list(self.jobs.items()):
            request, _, every = job
            job[1] += 1
            done, total = job[1], request.num_inference_steps
            if done * 2 >= total:
                if "die" in request.prompt:
                    os.kill(os.getpid(), signal.SIGKILL)
                if "freeze" in request.prompt:
                    os.kill(os.getpid(), signal.SIGSTOP)
                if "hang" in request.prompt:
                    time.sleep(3600)
                if "refuse" in request.prompt:
                    self.end(name, Failed(RequestError("prompt", "refused")))
                    continue
                if "break" in request.prompt:
                    self.end(name, Failed(ZeroDivisionError("a defect")))
                    continue
            if "note" in request.prompt and done == 1:
                self.told.append((name, Notice("noted")))
            self.told.append((name, Step(done, total, float(total - done))))
            picture = Image.new("RGB", (8, 8), (request.seed % 256, request.seed // 256 % 256, 7))
            if every and done % every == 0:
                self.told.append((name, Preview(0, picture)))
            if done >= total:
                count = range(request.num_images)
                records = tuple(
                    metadata.make_record(request, i, picture.size, FakeModel()) for i in count
                )
                seeds = tuple(request.seed + i for i in count)
                self.end(name, Finished((picture,) * len(seeds), seeds, records))
        told, self.told = self.told, []
        return told

    def end(self, name: str, event: Event | Failed | Canceled) -> None:
        """A step of any job takes a millisecond, and its pictures have 8 pixels a side."""
        request, done, _ = self.jobs.pop(name)
        spent = Spent(done / 1000, done * request.num_images * 64 / 1e6)
        self.told += [(name, spent), (name, event)]


class Sized(Fake):
    """Says which sizes its model draws, as the engine that paints does."""

    counters = Counters(resident={"miniature": 128})
