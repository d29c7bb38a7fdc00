"""Jobs of an engine, and the batches that it makes of their pictures."""

from collections.abc import Hashable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from overpaint.diffusion.denoise import Trajectory
from overpaint.diffusion.run import Run
from overpaint.engine.scheduler import Task
from overpaint.events import Canceled, Event, Failed, Finished, Spent

if TYPE_CHECKING:
    from overpaint.models.cache import Cache
    from overpaint.request import Request


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

    def load_seconds(self, model: str) -> float:
        """Return the seconds until a model can plan a request: 0 if it is in memory."""
        ...

    def fits(self, model: str, beside: Iterable[str]) -> bool:
        """Return whether the memory holds a model beside the models that run requests use."""
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
