"""Many requests at once: each is begun beside the loop, and a tick steps those that go together.

    engine.submit("a", request)
    while engine.busy:
        for name, event in engine.tick():
            ...

One thread ticks. What needs no step (loading, planning, encoding prompts and pictures) is done by
another one beside it, so that whoever runs goes on.
"""

import time
from collections import Counter
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary

import torch

from overpaint.diffusion.denoise import Trajectory, advance, evaluate
from overpaint.diffusion.run import Run
from overpaint.engine.counters import Counters
from overpaint.engine.scheduler import Costs, Scheduler, Task
from overpaint.errors import DeviceError
from overpaint.events import Canceled, Event, Failed, Finished, Notice, Spent

if TYPE_CHECKING:
    from overpaint.engine.profile import Profile
    from overpaint.models.cache import Cache
    from overpaint.request import Request

AHEAD = 4
"""Requests that are begun before there is room for them, so that no step waits for a beginning."""

COMING = 4
"""Of these, those that are handed over at once, so that none waits for a step to end."""

SHARE = 4
"""Of the CPU's cores, one in so many is for beginnings."""

PATIENCE = 0.05
"""Seconds that a tick without work waits for a beginning to end."""


class Models(Protocol):
    """Where models come from."""

    @property
    def resident(self) -> Mapping[str, int]:
        """Those in memory, and the sides in pixels that they draw."""
        ...

    @property
    def cache(self) -> "Cache":
        """What they keep between requests."""
        ...

    def begin(self, model: str, request: "Request") -> Run:
        """Plan a request for a model by name, loading that if need be."""
        ...

    def entry(self, model: str) -> float:
        """Seconds until a model can begin anything: 0 if it is there."""
        ...

    def fits(self, model: str, beside: Iterable[str]) -> bool:
        """Whether there is room for a model beside those that requests are under way with."""
        ...


End = Finished | Failed | Canceled
Told = tuple[str, Event | Failed | Canceled | Spent]
DECODE = "decode"


@dataclass(eq=False)
class Job:
    """A request in the engine.

    Attributes:
        left: seconds that it needs alone until it is done.
        pace: seconds that a step of one picture takes alone, once it is planned.
        beginning: its planning, once that is under way.
        painting: what is stepped, once it is planned.
        shown: how many previews were made.
        served: seconds in which one of its pictures was stepped or decoded.
        seconds: of these, its rows' share.
        pixel_steps: pixels that its evaluations of the network painted.
    """

    name: str
    request: "Request"
    model: str
    key: str
    priority: int
    arrived: float
    preview_every: int
    left: float
    pace: float = 0.0
    beginning: Future[Run] | None = None
    painting: Run | None = None
    shown: int = 0
    served: float = 0.0
    seconds: float = 0.0
    pixel_steps: int = 0


Work = tuple[Job, int]
"""A job, and which of its pictures."""


class Engine:
    """Carries out requests, many at once; one thread calls it."""

    def __init__(
        self,
        models: Models,
        profile: "Profile",
        *,
        live: int = 64,
        beside: Executor | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Nothing runs yet.

        Args:
            models: by name.
            profile: how many rows a step takes, and how long.
            live: requests that are under way at once, at most.
            beside: where requests are begun; by default in a thread.
            clock: seconds.
        """
        self._models = models
        self._profile = profile
        self._live = live
        self._clock = clock
        self._scheduler = Scheduler()
        self._jobs: dict[str, Job] = {}
        self._beside = beside or ThreadPoolExecutor(1, "overpaint-begin", _yield_cores)
        self._told: list[tuple[Job, Event | Failed | Canceled]] = []
        self._caps: WeakKeyDictionary[Any, dict[Any, int]] = WeakKeyDictionary()
        self._batches = Counter[int]()
        self._step_seconds = 0.0
        self._halvings = 0

    @property
    def busy(self) -> bool:
        """Whether there is anything to do or to tell."""
        return bool(self._jobs or self._told)

    @property
    def jobs(self) -> list[Job]:
        """The requests that have not ended."""
        return list(self._jobs.values())

    @property
    def room(self) -> int:
        """How many more requests it takes up at once."""
        return max(0, self._live + AHEAD - len(self._jobs))

    @property
    def counters(self) -> Counters:
        """What it has done, and what it holds."""
        hits, misses = self._models.cache.counts()
        return Counters(
            dict(self._batches),
            self._step_seconds,
            self._halvings,
            hits,
            misses,
            self._models.cache.size,
            self._models.resident,
        )

    def submit(
        self,
        name: str,
        request: "Request",
        model: str = "miniature",
        *,
        key: str = "",
        priority: int = 0,
        preview_every: int = 0,
    ) -> None:
        """Take up a request; what comes of it is told by `tick`."""
        now = self._clock()
        left = self._profile.alone(request)
        job = Job(name, request, model, key, priority, now, preview_every, left)
        self._jobs[name] = job

    def cancel(self, name: str) -> None:
        """End a request before its next step; nothing happens if it has ended."""
        if job := self._jobs.pop(name, None):
            if job.beginning:
                job.beginning.cancel()
            self._told.append((job, Canceled()))

    def close(self) -> None:
        """Let go of everything."""
        self._jobs.clear()
        self._beside.shutdown(cancel_futures=True)

    def tick(self) -> list[Told]:
        """Do the next thing: a step of rows that go together, or the decoding of a picture.

        Returns:
            What there is to tell, in order; the last of a request is `Finished`, `Failed` or
            `Canceled`, after what it has `Spent`.
        """
        self._scheduler.enter(job.key for job in self._jobs.values())
        self._begin()
        now = self._clock()
        work = dict(self._tasks())
        chosen = self._scheduler.pick(work, now, Costs(self._cap))
        if chosen:
            if chosen[0].group == DECODE:
                self._decode(*work[chosen[0]])
            else:
                # In one order at every step: what a network keeps for its rows serves the next one.
                together = sorted(chosen, key=lambda task: (task.arrived, task.job))
                self._step([work[task] for task in together], chosen[0].group)
            spent = self._clock() - now
            self._step_seconds += spent * (chosen[0].group != DECODE)
            for task, share in zip(chosen, self._scheduler.spent(chosen, spent), strict=True):
                work[task][0].seconds += share
            for job in {work[task][0] for task in chosen}:
                job.served += spent
        elif not self._told:
            wait([j.beginning for j in self._jobs.values() if j.beginning], PATIENCE)
        told, self._told = self._told, []
        return [(job.name, said) for job, event in told for said in _with_costs(job, event)]

    # Beginning

    def _begin(self) -> None:
        """Take over what was planned, and have the most urgent of the others planned next."""
        while True:
            for job in self.jobs:
                if job.painting is None and job.beginning and job.beginning.done():
                    self._take_over(job, job.beginning)
            begun = [job.beginning for job in self._jobs.values() if job.beginning]
            coming = sum(not beginning.done() for beginning in begun)
            if len(begun) >= self._live + AHEAD or coming >= COMING:
                return
            waiting = {self._task(j, j.model): j for j in self._jobs.values() if not j.beginning}
            costs = Costs(lambda group: 1, lambda group: self._models.entry(str(group)))
            chosen = self._scheduler.pick(waiting, self._clock(), costs)
            if not chosen:
                return
            job = waiting[chosen[0]]
            in_use = {other.model for other in self._jobs.values() if other.beginning}
            if not self._models.fits(job.model, in_use):
                return  # those under way end first, and nothing else begins meanwhile
            job.beginning = self._beside.submit(self._models.begin, job.model, job.request)

    def _take_over(self, job: Job, beginning: Future[Run]) -> None:
        with self._failing(job):
            job.painting = beginning.result()
            job.pace = job.left / max(1, job.painting.progress.total)
            self._say(job, *map(Notice, job.painting.notices))
            self._settle(job)

    # Running

    def _tasks(self) -> Iterator[tuple[Task, Work]]:
        """What could be done next: of each picture its decoding, or its next step."""
        for job in self._jobs.values():
            if (painting := job.painting) is None:
                continue
            for index in painting.undecoded:
                yield self._task(job, DECODE, index), (job, index)
            for index, trajectory in enumerate(painting.trajectories):
                if not trajectory.done:
                    group = (trajectory.plan.network, trajectory.plan.shape)
                    rows = len(trajectory.rows())
                    yield self._task(job, group, index, rows), (job, index)

    @staticmethod
    def _task(job: Job, group: Hashable, index: int = 0, rows: int = 1) -> Task:
        name = f"{job.name}/{index}"
        last = group == DECODE
        served = job.served
        return Task(name, job.key, group, rows, job.left, job.arrived, job.priority, served, last)

    def _cap(self, group: Hashable) -> int:
        if not isinstance(group, tuple):
            return 1
        network, shape = group
        _, height, width = shape
        return self._caps.get(network, {}).get(shape) or self._profile.cap(height, width)

    def _decode(self, job: Job, index: int) -> None:
        assert job.painting is not None
        with self._failing(job):
            self._say(job, *job.painting.decode_picture(index))
            self._settle(job)

    def _step(self, together: Sequence[Work], group: Hashable) -> None:
        """One network call; if it fails, of its halves, so that one fails alone that must."""
        painting = [(job, _running(job, index)) for job, index in together]
        rows = sum(len(trajectory.rows()) for _, trajectory in painting)
        try:
            predictions = evaluate([trajectory for _, trajectory in painting])
        except torch.AcceleratorError:
            raise  # from now on the device fails everybody: another process must go on
        except Exception as error:
            if len(together) == 1:
                self._fail(together[0][0], error)
                return
            half = len(together) // 2
            if isinstance(error, torch.OutOfMemoryError) and isinstance(group, tuple):
                self._halvings += 1
                network, shape = group
                self._caps.setdefault(network, {})[shape] = max(1, rows // 2)
            for part in (together[:half], together[half:]):
                if left := [work for work in part if work[0].name in self._jobs]:
                    self._step(left, group)
            return
        self._batches[rows] += 1
        for (job, trajectory), own in zip(painting, predictions, strict=True):
            with self._failing(job):
                job.pixel_steps += _pixels(job, trajectory)
                advance(trajectory, own)
        for job in dict.fromkeys(job for job, _ in together):
            if job.name in self._jobs and job.painting:
                indices = [index for of, index in together if of is job]
                with self._failing(job):
                    self._progress(job, job.painting, indices)

    def _progress(self, job: Job, painting: Run, indices: list[int]) -> None:
        progress = painting.progress
        job.left = (progress.total - progress.done) * job.pace
        self._say(job, progress)
        reached = painting.trajectories[indices[0]]
        if job.preview_every and reached.steps_done // job.preview_every > job.shown:
            job.shown = reached.steps_done // job.preview_every
            if not reached.done:
                # Where there is no room for a preview there is none.
                with suppress(torch.OutOfMemoryError):
                    self._say(job, *painting.render_previews(indices))

    # Ending

    def _settle(self, job: Job) -> None:
        """Tell the end of a job whose pictures are all there."""
        if job.painting and job.painting.complete:
            self._say(job, job.painting.finish())
            del self._jobs[job.name]

    @contextmanager
    def _failing(self, job: Job) -> Generator[None]:
        """End a job with whatever goes wrong in here, and nobody else; but not a broken device."""
        try:
            yield
        except torch.AcceleratorError:
            raise
        except Exception as error:
            self._fail(job, error)

    def _fail(self, job: Job, error: Exception) -> None:
        if isinstance(error, torch.OutOfMemoryError):
            said = f"there is too little memory for this request alone: {error}. Make it smaller."
            error = DeviceError(said)
        if self._jobs.pop(job.name, None):
            self._told.append((job, Failed(error)))

    def _say(self, job: Job, *events: Event) -> None:
        self._told += [(job, event) for event in events]


def _yield_cores() -> None:
    """Leave most cores to the steps: two teams on the same ones wait for each other."""
    torch.set_num_threads(max(1, torch.get_num_threads() // SHARE))


def _with_costs(
    job: Job, event: Event | Failed | Canceled
) -> Iterator[Event | Failed | Canceled | Spent]:
    """What is told of a job; before its end, what it has cost until then."""
    if isinstance(event, End):
        yield Spent(job.seconds, job.pixel_steps / 1e6)
    yield event


def _pixels(job: Job, trajectory: Trajectory) -> int:
    """Of the picture that a step of a trajectory paints."""
    assert job.painting is not None
    _, height, width = trajectory.plan.shape
    return height * width * job.painting.model.vae_factor**2


def _running(job: Job, index: int) -> Trajectory:
    assert job.painting is not None
    return job.painting.trajectories[index]
