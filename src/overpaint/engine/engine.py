"""Runs many requests at once on one device.

    engine.submit("a", request)
    while engine.busy:
        for name, event in engine.tick():
            ...

One thread calls `tick`. Other threads plan requests (loading, prompts, pictures), so that planning
does not stop the requests that already run. Keys share these threads.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import torch

from overpaint.diffusion.denoise import advance, evaluate
from overpaint.diffusion.run import Run
from overpaint.engine.counters import Counters
from overpaint.engine.job import (
    DECODE,
    Batch,
    End,
    EngineEvent,
    Job,
    Models,
    PictureOfJob,
    Planners,
    make_task,
    pixel_count,
    trajectory_of,
)
from overpaint.engine.memory import estimate_bytes
from overpaint.engine.planning_threads import make_planning_threads
from overpaint.engine.row_limits import RowLimits
from overpaint.engine.scheduler import Costs, Scheduler, Task
from overpaint.errors import DeviceError
from overpaint.events import Canceled, Event, Failed, Notice, Spent
from overpaint.system.abandon import abandonable

if TYPE_CHECKING:
    from overpaint.engine.profile import Profile
    from overpaint.request import Request

MAX_PLANNED_AHEAD = 4
"""Requests that are planned before there is room to run them, so that no step waits for
planning."""

MAX_CONCURRENT_PLANS = 4
"""Requests of a key that the planning threads have at once, so that they need not wait for a step
to end."""

DEFAULT_NATIVE_SIDE_PX = 1024
"""Side in pixels that a model draws, as long as it is not in memory."""

IDLE_WAIT_S = 0.05
"""Seconds that a tick without work waits for planning."""


class Engine:
    """Runs requests, many at once. Only one thread may call it, except for `release`."""

    def __init__(
        self,
        models: Models,
        profile: "Profile",
        *,
        live: int = 64,
        job_memory_bytes: float = float("inf"),
        beside: Planners | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Make an engine without requests.

        Args:
            models: source of models.
            profile: step times, and rows of a step.
            live: requests that run at once, at most.
            job_memory_bytes: bytes that begun requests may need together beside the weights. A
                request that needs more begins alone.
            beside: plans requests; by default in threads that keys share.
            clock: returns seconds.
        """
        self._models = models
        self._profile = profile
        self._live = live
        self._job_memory_bytes = job_memory_bytes
        self._clock = clock
        self._scheduler = Scheduler()
        self._jobs: dict[str, Job] = {}
        self._held_bytes: dict[str, float] = {}
        self._released = threading.Event()
        self._beside = beside or make_planning_threads()
        self._unpublished: list[tuple[Job, Event | Failed | Canceled]] = []
        self._row_limits = RowLimits(profile)
        self._batches = Counter[int]()
        self._step_seconds = 0.0

    @property
    def busy(self) -> bool:
        """Return whether there is work to do or an event to publish."""
        return bool(self._jobs or self._unpublished)

    @property
    def jobs(self) -> list[Job]:
        """The requests that have not ended."""
        return list(self._jobs.values())

    @property
    def room(self) -> int:
        """How many more requests the engine can begin at once."""
        return max(0, self._live + MAX_PLANNED_AHEAD - len(self._jobs))

    @property
    def counters(self) -> Counters:
        """Totals of the engine's work, and its memory."""
        hits, misses = self._models.cache.counts()
        return Counters(
            dict(self._batches),
            self._step_seconds,
            self._row_limits.halvings,
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
        """Add a request; `tick` returns its events."""
        now = self._clock()
        remaining_s = self._profile.alone(request)
        job = Job(name, request, model, key, priority, now, preview_every, remaining_s)
        native = self._models.resident.get(model, DEFAULT_NATIVE_SIDE_PX)
        job.memory_bytes = estimate_bytes(request, native)
        self._jobs[name] = job

    def cancel(self, name: str) -> None:
        """End a request before its next step; do nothing if it has ended."""
        if job := self._jobs.pop(name, None):
            job.give_up()
            self._unpublished.append((job, Canceled()))

    def release(self, name: str) -> None:
        """Free the memory of a finished request: its pictures are written. Any thread may call it.

        Until then the pictures count as memory in use.
        """
        self._held_bytes.pop(name, None)
        self._released.set()

    def close(self) -> None:
        """Drop all requests, and stop the planning threads."""
        for job in self._jobs.values():
            job.give_up()
        self._jobs.clear()
        self._beside.shutdown()

    def tick(self) -> list[tuple[str, EngineEvent]]:
        """Step the next batch of pictures, or decode one picture.

        Returns:
            Events with the names of their requests, in order. The last event of a request is
            `Finished`, `Failed` or `Canceled`, and `Spent` comes just before it.
        """
        self._begin_waiting()
        batch = self._next_batch()
        if batch:
            self._run(batch)
        elif not self._unpublished:
            self._wait_for_planning()
        return self._publish()

    # Begin the requests that wait

    def _begin_waiting(self) -> None:
        """Collect finished plans, and plan the most urgent of the other requests next."""
        self._scheduler.enter(job.key for job in self._jobs.values())
        while True:
            for job in self.jobs:
                if job.run is None and job.planning and job.planning.done():
                    self._take_plan(job, job.planning)
            planned = [job for job in self._jobs.values() if job.planning]
            if len(planned) >= self._live + MAX_PLANNED_AHEAD or not self._plan_next(planned):
                return

    def _plan_next(self, begun: list[Job]) -> bool:
        """Hand the most urgent request to the planning threads; return whether there was one.

        If its model or its pictures do not fit into memory yet, the requests that run end first,
        and no other request begins.
        """
        unfinished = Counter(j.key for j in begun if j.planning and not j.planning.done())
        waiting = {
            make_task(j, j.model): j
            for j in self._jobs.values()
            if not j.planning and unfinished[j.key] < MAX_CONCURRENT_PLANS
        }
        costs = Costs(lambda group: 1, lambda group: self._models.load_seconds(str(group)))
        chosen = self._scheduler.pick(waiting, self._clock(), costs)
        if not chosen:
            return False
        job = waiting[chosen[0]]
        in_use = {other.model for other in begun}
        unwritten = list(self._held_bytes.values())  # a copy, since another thread may release one
        needed_bytes = sum(unwritten) + sum(other.memory_bytes for other in [*begun, job])
        fits = not (begun or unwritten) or needed_bytes <= self._job_memory_bytes
        if not fits or not self._models.fits(job.model, in_use):
            return False
        job.planning = self._beside.submit(job.key, self._plan, job)
        return True

    def _plan(self, job: Job) -> Run:
        with abandonable(job.abandoned):
            return self._models.begin(job.model, job.request)

    def _take_plan(self, job: Job, planning: Future[Run]) -> None:
        with self._failing(job):
            try:
                job.run = planning.result()
            except torch.OutOfMemoryError:
                if not self._use_less_memory(job):
                    raise
                job.planning = None  # so that it is planned again
                return
            job.step_s = job.remaining_s / max(1, job.run.progress.total)
            self._add_events(job, *map(Notice, job.run.notices))
            self._finish_if_complete(job)

    def _wait_for_planning(self) -> None:
        if planning := [job.planning for job in self._jobs.values() if job.planning]:
            wait(planning, IDLE_WAIT_S)
        elif self._released.wait(IDLE_WAIT_S):
            self._released.clear()

    # Choose the next batch

    def _next_batch(self) -> Batch | None:
        """Return the most urgent tasks that can run together; None if there is nothing to run."""
        pictures = dict(self._tasks())
        chosen = self._scheduler.pick(pictures, self._clock(), Costs(self._row_limits.get))
        if not chosen:
            return None
        # The same order at every step: results that a network keeps for its rows serve the next
        # step.
        tasks = sorted(chosen, key=lambda task: (task.arrived, task.job))
        return Batch(tasks, [pictures[task] for task in tasks])

    def _tasks(self) -> Iterator[tuple[Task, PictureOfJob]]:
        """Yield the possible tasks: to step or to decode each picture of each planned request."""
        for job in self._jobs.values():
            if (run := job.run) is None:
                continue
            for index in run.undecoded:
                yield make_task(job, DECODE, index), (job, index)
            for index, trajectory in enumerate(run.trajectories):
                if not trajectory.done:
                    group = (trajectory.plan.network, trajectory.plan.shape)
                    rows = len(trajectory.rows())
                    yield make_task(job, group, index, rows), (job, index)

    # Run it

    def _run(self, batch: Batch) -> None:
        """Step or decode the pictures of a batch, and charge the time to their requests."""
        began = self._clock()
        if batch.group == DECODE:
            self._decode(*batch.pictures[0])
        else:
            self._step(batch.pictures, batch.group)
        seconds = self._clock() - began
        if batch.group != DECODE:
            self._step_seconds += seconds
        shares = self._scheduler.charge(batch.tasks, seconds)
        for (job, _), share in zip(batch.pictures, shares, strict=True):
            job.device_s += share
        for job in {job for job, _ in batch.pictures}:
            job.served_s += seconds

    def _decode(self, job: Job, index: int) -> None:
        assert job.run is not None
        with self._failing(job):
            try:
                self._add_events(job, *job.run.decode_picture(index))
            except torch.OutOfMemoryError:
                if not self._use_less_memory(job):
                    raise
                return  # a later tick decodes it
            self._finish_if_complete(job)

    def _use_less_memory(self, job: Job) -> bool:
        """Keep fewer weights of a request's model on the device; return whether that is possible.

        The halves of a batch come first. A request fails only if this does not help either.
        """
        message = self._models.use_less_memory(job.model)
        if message:
            self._add_events(job, Notice(message))
        return message is not None

    def _step(self, pictures: Sequence[PictureOfJob], group: Hashable) -> None:
        """Call the network once for all pictures.

        If the call fails, each half is tried by itself. So only the requests fail that cause it.
        """
        trajectories = [(job, trajectory_of(job, index)) for job, index in pictures]
        rows = sum(len(trajectory.rows()) for _, trajectory in trajectories)
        try:
            predictions = evaluate([trajectory for _, trajectory in trajectories])
        except torch.AcceleratorError:
            raise  # the device fails every request from now on: the process must be replaced
        except Exception as error:
            if len(pictures) == 1:
                is_full = isinstance(error, torch.OutOfMemoryError)
                if not (is_full and self._use_less_memory(pictures[0][0])):
                    self._fail(pictures[0][0], error)
                return  # a later tick steps it
            if isinstance(error, torch.OutOfMemoryError):
                self._row_limits.halve(group, rows)
        else:
            self._batches[rows] += 1
            for (job, trajectory), own in zip(trajectories, predictions, strict=True):
                with self._failing(job):
                    job.pixel_steps += pixel_count(job, trajectory)
                    advance(trajectory, own)
            for job in dict.fromkeys(job for job, _ in trajectories):
                if job.name in self._jobs and job.run:
                    indices = [index for owner, index in pictures if owner is job]
                    with self._failing(job):
                        self._report_progress(job, job.run, indices)
            return
        # Outside the handler, where the error keeps the tensors of its call.
        half = len(pictures) // 2
        for part in (pictures[:half], pictures[half:]):
            if remaining := [picture for picture in part if picture[0].name in self._jobs]:
                self._step(remaining, group)

    def _report_progress(self, job: Job, run: Run, indices: list[int]) -> None:
        progress = run.progress
        job.remaining_s = (progress.total - progress.done) * job.step_s
        self._add_events(job, progress)
        stepped = run.trajectories[indices[0]]
        if job.preview_every and stepped.steps_done // job.preview_every > job.previews_made:
            job.previews_made = stepped.steps_done // job.preview_every
            if not stepped.done:
                # Previews are optional: without memory for them there are none.
                with suppress(torch.OutOfMemoryError):
                    self._add_events(job, *run.render_previews(indices))

    def _finish_if_complete(self, job: Job) -> None:
        """End a request that has all its pictures."""
        if job.run and job.run.complete:
            self._add_events(job, job.run.finish())
            self._held_bytes[job.name] = job.memory_bytes
            del self._jobs[job.name]

    @contextmanager
    def _failing(self, job: Job) -> Generator[None]:
        """Fail a request, and no other, with any error of the block; pass on a broken device."""
        try:
            yield
        except torch.AcceleratorError:
            raise
        except Exception as error:
            self._fail(job, error)

    def _fail(self, job: Job, error: Exception) -> None:
        if isinstance(error, torch.OutOfMemoryError):
            text = f"there is too little memory for this request alone: {error}. Make it smaller."
            error = DeviceError(text)
        if self._jobs.pop(job.name, None):
            self._unpublished.append((job, Failed(error)))

    # Publish the events

    def _add_events(self, job: Job, *events: Event) -> None:
        self._unpublished += [(job, event) for event in events]

    def _publish(self) -> list[tuple[str, EngineEvent]]:
        """Return the new events; a request's costs come before its last one."""
        unpublished, self._unpublished = self._unpublished, []
        published: list[tuple[str, EngineEvent]] = []
        for job, event in unpublished:
            if isinstance(event, End):
                published.append((job.name, Spent(job.device_s, job.pixel_steps / 1e6)))
            published.append((job.name, event))
        return published
