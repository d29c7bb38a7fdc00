"""A scripted engine, to test programs that use an Overpaint server without a model or torch.

    from functools import partial
    from overpaint.server.app import create_app
    from overpaint.server.settings import ServerSettings
    from overpaint.testing import ScriptedEngine

    app = create_app(ServerSettings(data=folder), partial(ScriptedEngine, 0.01))

The server, its store and its worker process are the real ones. Only the pictures are not painted:
each has 8 x 8 pixels, whose color depends on the seed.
"""

import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from PIL import Image

from overpaint.engine.counters import Counters
from overpaint.errors import RequestError
from overpaint.events import Canceled, Event, Failed, Finished, Notice, Preview, Spent, Step
from overpaint.provenance import metadata
from overpaint.request import Request

STEP_COST_S = 0.001
"""Seconds of device time that the engine reports for each step of a job."""

PICTURE_SIDE_PX = 8

EngineEvent = Event | Failed | Canceled | Spent


@dataclass(frozen=True)
class ScriptedModel:
    """The model that the metadata of scripted pictures names."""

    name: str = "fake"
    sha256: str = "0" * 64
    device: str = "cpu"
    dtype_name: str = "fp32"
    parts: Mapping[str, metadata.AddonFile] = field(default_factory=dict[str, metadata.AddonFile])

    @property
    def family(self) -> "ScriptedModel":
        """The model itself, because its family has the same name."""
        return self


@dataclass
class ScriptedJob:
    """A job in the engine, and the number of its steps that are done."""

    request: Request
    preview_every: int
    steps_done: int = 0


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _freeze() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def _hang() -> None:
    time.sleep(3600)


DISASTERS: dict[str, Callable[[], None]] = {"die": _die, "freeze": _freeze, "hang": _hang}
"""Words of a prompt that stop the worker's process when half of the job's steps are done.

`die` kills it, `freeze` stops it as SIGSTOP does, and `hang` makes one step take an hour.
"""

FAILURES: dict[str, Exception] = {
    "refuse": RequestError("prompt", "Refused"),
    "break": ZeroDivisionError("a defect"),
}
"""Words of a prompt that fail the job when half of its steps are done."""


class ScriptedEngine:
    """An engine whose prompts say what happens; it has the interface of `engine.Engine`.

    Each tick makes one step of every job. Besides the words of `DISASTERS` and `FAILURES`, the word
    `note` in a prompt makes the engine report a notice at the first step.

    Attributes:
        step_s: seconds of one tick.
        counters: totals that the worker sends to the server; None for none.
        jobs: jobs that have not ended, by name.
    """

    def __init__(self, step_s: float = 0.0, counters: Counters | None = None) -> None:
        """Make an engine without jobs.

        Args:
            step_s: seconds of one tick.
            counters: totals to report, such as the models in memory; None to report none.
        """
        self.step_s = step_s
        self.counters = counters
        self.jobs: dict[str, ScriptedJob] = {}
        self._events: list[tuple[str, EngineEvent]] = []

    @property
    def busy(self) -> bool:
        """Return whether there is a job or an event."""
        return bool(self.jobs or self._events)

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
        """Add a job; the model, API key and priority have no effect."""
        del model, key, priority
        self.jobs[name] = ScriptedJob(request, preview_every)

    def cancel(self, name: str) -> None:
        """Cancel a job, if the engine has it."""
        if name in self.jobs:
            self._end(name, Canceled())

    def release(self, name: str) -> None:
        """Do nothing: this engine counts no memory."""

    def tick(self) -> list[tuple[str, EngineEvent]]:
        """Make one step of every job; return the events with the names of their jobs."""
        time.sleep(self.step_s)
        for name, job in list(self.jobs.items()):
            self._step(name, job)
        events, self._events = self._events, []
        return events

    def _step(self, name: str, job: ScriptedJob) -> None:
        request = job.request
        job.steps_done += 1
        done, total = job.steps_done, request.num_inference_steps
        if done * 2 >= total:
            for word, stop in DISASTERS.items():
                if word in request.prompt:
                    stop()
            for word, error in FAILURES.items():
                if word in request.prompt:
                    self._end(name, Failed(error))
                    return
        if "note" in request.prompt and done == 1:
            self._events.append((name, Notice("noted")))
        self._events.append((name, Step(done, total, float(total - done))))
        color = (request.seed % 256, request.seed // 256 % 256, 7)
        picture = Image.new("RGB", (PICTURE_SIDE_PX, PICTURE_SIDE_PX), color)
        if job.preview_every and done % job.preview_every == 0:
            self._events.append((name, Preview(0, picture)))
        if done >= total:
            indices = range(request.num_images)
            records = tuple(
                metadata.make_record(request, i, picture.size, ScriptedModel()) for i in indices
            )
            seeds = request.picture_seeds
            self._end(name, Finished((picture,) * len(seeds), seeds, records))

    def _end(self, name: str, event: Failed | Canceled | Finished) -> None:
        job = self.jobs.pop(name)
        megapixels = PICTURE_SIDE_PX**2 * job.request.num_images / 1e6
        spent = Spent(job.steps_done * STEP_COST_S, job.steps_done * megapixels)
        self._events += [(name, spent), (name, event)]
