"""Jobs of an engine, and the batches that it makes of their pictures."""

import threading
from collections.abc import Callable, Hashable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ParamSpec, Protocol, TypeVar

from overpaint.diffusion.denoise import Trajectory
from overpaint.diffusion.run import Run
from overpaint.engine.scheduler import Task
from overpaint.events import Canceled, Event, Failed, Finished, Spent

if TYPE_CHECKING:
    from overpaint.models.cache import Cache
    from overpaint.request import Request


P = ParamSpec("P")
T = TypeVar("T")


class Models(Protocol):
    """The source of models; see `overpaint.engine.model_pool.ModelPool`."""

    @property
    def resident(self) -> Mapping[str, int]:
        """Models in memory, with the side in pixels that each draws."""
        ...

    @property
    def cache(self) -> "Cache":
        """Results that the models keep between requests."""
        ...

    def begin(self, model: str, request: "Request") -> Run:
        """Plan a request for a model; load the model if it is not in memory."""
        ...

    def use_less_memory(self, model: str) -> str | None:
        """Keep fewer weights of a model on its device; return a message, or None if it cannot."""
        ...

    def load_seconds(self, model: str) -> float:
        """Return the seconds until a model can plan a request: 0 if it is in memory."""
        ...

    def fits(self, model: str, beside: Iterable[str]) -> bool:
        """Return whether the memory holds a model beside the models that run requests use."""
        ...


class Planners(Protocol):
    """Threads that plan requests; see `overpaint.system.fair_threads.FairThreads`."""

    def submit(self, key: str, call: Callable[P, T], /, *args: P.args, **kw: P.kwargs) -> Future[T]:
        """Run a call when its key has its turn."""
        ...

    def shutdown(self) -> None:
        """Cancel the calls that wait, and let the others end."""
        ...


End = Finished | Failed | Canceled
EngineEvent = Event | Failed | Canceled | Spent
DECODE = "decode"
"""The scheduler's group of pictures that wait to be decoded."""


@dataclass(eq=False)
class Job:
    """A request in the engine.

    Attributes:
        remaining_s: seconds until the request is done if it runs alone.
        step_s: seconds of one step of one picture if the request runs alone; known once planned.
        planning: the planning, once it has begun.
        run: the planned request.
        previews_made: number of previews so far.
        served_s: seconds of steps and decodings that the request took part in.
        device_s: the request's share of these, by rows.
        pixel_steps: pixels that the network has evaluated for the request.
        abandoned: set if the request was canceled, so that its planning ends early.
        memory_bytes: estimate of the memory that the request needs beside the weights.
    """

    name: str
    request: "Request"
    model: str
    key: str
    priority: int
    arrived: float
    preview_every: int
    remaining_s: float
    step_s: float = 0.0
    planning: Future[Run] | None = None
    run: Run | None = None
    previews_made: int = 0
    served_s: float = 0.0
    device_s: float = 0.0
    pixel_steps: int = 0
    memory_bytes: float = 0.0
    abandoned: threading.Event = field(default_factory=threading.Event)

    def give_up(self) -> None:
        """End the planning: at once if it waits, or else between two of its parts."""
        self.abandoned.set()
        if self.planning:
            self.planning.cancel()


PictureOfJob = tuple[Job, int]
"""A job, and the index of one of its pictures."""


@dataclass(frozen=True)
class Batch:
    """Pictures that the next network call steps together, or one picture to decode.

    Attributes:
        tasks: for the scheduler.
        pictures: one for each task.
    """

    tasks: list[Task]
    pictures: list[PictureOfJob]

    @property
    def group(self) -> Hashable:
        """`DECODE`, or the network and latent shape of all tasks."""
        return self.tasks[0].group


def pixel_count(job: Job, trajectory: Trajectory) -> int:
    """Return the pixels of the picture that one step of a trajectory evaluates."""
    assert job.run is not None
    _, height, width = trajectory.plan.shape
    return height * width * job.run.model.vae_factor**2


def trajectory_of(job: Job, index: int) -> Trajectory:
    """Return the trajectory of one picture of a planned job."""
    assert job.run is not None
    return job.run.trajectories[index]


def make_task(job: Job, group: Hashable, index: int = 0, rows: int = 1) -> Task:
    """Return the scheduler's task to step or decode a picture of a job."""
    return Task(
        job=f"{job.name}/{index}",
        key=job.key,
        group=group,
        rows=rows,
        remaining=job.remaining_s,
        arrived=job.arrived,
        priority=job.priority,
        served=job.served_s,
        last=group == DECODE,
    )
