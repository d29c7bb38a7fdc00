"""The process that has the device: an engine, and a pipe to whoever watches over it.

It knows nothing of stores and clients. When its pipe breaks it ends at once, so that nothing runs
that nobody would hear of. A result is told when its files are on the disk.
"""

import errno
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BytesIO
from multiprocessing.connection import Connection
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol

from overpaint.engine.config import EngineConfig
from overpaint.engine.counters import Counters
from overpaint.engine.postprocess import NO_POSTPROCESSING, Finisher, PostprocessConfig
from overpaint.errors import OverpaintError
from overpaint.events import Canceled, Failed, Finished, Notice, Preview, Spent, Step
from overpaint.provenance import metadata
from overpaint.provenance.safety import Flag
from overpaint.system.atomic_files import write_file
from overpaint.system.malloc import limit_heaps, release_memory

if TYPE_CHECKING:
    from PIL.Image import Image

    from overpaint.events import Event
    from overpaint.request import Request

IDLE = 0.25
"""Seconds that a worker without work waits for some, and between its saying that it is alive."""

PREVIEW_QUALITY = 80

FULL = (errno.ENOSPC, errno.EDQUOT)
"""Errors of a disk that has no room left."""

ALL_FLAGGED = (
    "the safety checker flagged every picture, so none is published; try another prompt or seed."
)

DEFECT = "there is a defect in Overpaint: "
"""What a job's error begins with that is neither the request's fault nor the machine's."""

ROOM = 1.0
"""Seconds until finished pictures are tried again that found no room on the disk."""


class JobRunner(Protocol):
    """What a worker needs of an engine."""

    @property
    def busy(self) -> bool: ...  # noqa: D102

    def submit(  # noqa: D102
        self,
        name: str,
        request: "Request",
        model: str,
        *,
        key: str,
        priority: int,
        preview_every: int,
    ) -> None: ...

    def cancel(self, name: str) -> None: ...  # noqa: D102

    def tick(self) -> "list[tuple[str, Event | Failed | Canceled | Spent]]": ...  # noqa: D102


EngineFactory = Callable[[], JobRunner]
"""Makes the engine of a worker, in the worker's process. It must be picklable."""


@dataclass(frozen=True)
class Order:
    """A job for the worker.

    Attributes:
        name: of the job, and of its attempt: what is told of it goes by both.
        folder: where its pictures go.
        stem: what their names begin with.
        kind: of files: "png", "jpg" or "webp".
        options: Pillow's for that format.
        preview_every: steps between previews; 0 for none.
        checked: its pictures are checked, if the worker has a checker. Then it has no previews,
            which nothing checks.
    """

    name: str
    request: "Request"
    model: str
    folder: Path
    stem: str
    key: str = ""
    priority: int = 0
    kind: str = "png"
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    preview_every: int = 0
    checked: bool = True


@dataclass(frozen=True)
class Cancel:
    """Ends a job before its next step."""

    name: str


@dataclass(frozen=True)
class Ready:
    """The worker can take orders."""


@dataclass(frozen=True)
class Alive:
    """The worker ticks, and this is what its engine has counted, if it counts."""

    counters: Counters | None = None


@dataclass(frozen=True)
class Shown:
    """A preview, as a JPEG."""

    index: int
    data: bytes


@dataclass(frozen=True)
class Done:
    """A job's pictures are on the disk: their paths, seeds, and sizes in pixels.

    Those that were flagged are not among them.
    """

    files: tuple[Path, ...]
    seeds: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]
    flagged: tuple[Flag, ...] = ()


@dataclass(frozen=True)
class Broken:
    """A job failed.

    Attributes:
        message: for whoever asked.
        mine: whether it is the request's own fault.
        flagged: its pictures, if all of them were flagged.
    """

    message: str
    mine: bool
    flagged: tuple[Flag, ...] = ()


@dataclass(frozen=True)
class Stopped:
    """A job was ended because that was asked for."""


Said = Step | Notice | Shown | Spent | Done | Broken | Stopped
"""Something about a job."""

Report = Ready | Alive | list[tuple[str, Said]]
"""What goes through the pipe: what there is to say of jobs by name, in order."""


def main(
    pipe: "Connection[Any, Any]",
    engine_factory: EngineFactory,
    postprocess: PostprocessConfig = NO_POSTPROCESSING,
) -> None:
    """Run until the pipe breaks.

    Args:
        pipe: orders and cancels come, reports go.
        engine_factory: makes the engine.
        postprocess: what is done to pictures before they are written.
    """
    # A terminal, or a service manager, tells all processes of a server to end; this one ends by its
    # pipe, when its server has let its jobs end.
    for told in (signal.SIGINT, signal.SIGTERM):
        signal.signal(told, signal.SIG_IGN)
    limit_heaps()
    worker = _Worker(pipe, engine_factory(), Finisher(postprocess))
    try:
        worker.run()
    except Exception:
        traceback.print_exc()
        os._exit(1)  # at once: where a device is broken, threads would go on to fail jobs by it


def make_engine(config: EngineConfig) -> JobRunner:
    """Return an engine that paints, with its first model loaded; see `model_pool.open_engine`.

    The import happens here, so that only the worker's process imports torch.
    """
    from overpaint.engine.model_pool import open_engine

    return open_engine(config)


class _Worker:
    def __init__(self, pipe: "Connection[Any, Any]", engine: JobRunner, finisher: Finisher):
        self._pipe = pipe
        self._engine = engine
        self._finisher = finisher
        self._orders: dict[str, Order] = {}
        self._unwritten: set[str] = set()
        self._coming: SimpleQueue[Order | Cancel] = SimpleQueue()
        self._sending = threading.Lock()
        self._alive = 0.0
        self._give_back_at = 0.0
        self._writer = ThreadPoolExecutor(1, "overpaint-write")

    def run(self) -> None:
        threading.Thread(target=self._listen, name="overpaint-listen", daemon=True).start()
        self._send(Ready())
        while True:
            self._take()
            if self._engine.busy:
                told = self._engine.tick()
                reports = [self._said(name, event) for name, event in told]
                if said := [report for report in reports if report]:
                    self._send(said)
                for name, event in told:
                    if isinstance(event, Finished):  # now: its end is the last to be said of a job
                        self._writer.submit(self._finish, self._orders.pop(name), event)
            if time.monotonic() - self._alive > IDLE:
                self._alive = time.monotonic()
                self._send(Alive(getattr(self._engine, "counters", None)))
            if time.monotonic() > self._give_back_at:
                self._give_back_at = time.monotonic() + release_memory()

    def _listen(self) -> None:
        try:
            while True:
                self._coming.put(self._pipe.recv())
        finally:
            os._exit(1)  # whoever started us is gone, or has said what cannot be read

    def _take(self) -> None:
        """Take all that came; without work, wait for some."""
        while True:
            try:
                order = self._coming.get(timeout=0 if self._engine.busy else IDLE)
            except Empty:
                return
            if isinstance(order, Cancel):
                self._engine.cancel(order.name)
                self._unwritten.discard(order.name)
                continue
            self._orders[order.name] = order
            self._engine.submit(
                order.name,
                order.request,
                order.model,
                key=order.key,
                priority=order.priority,
                preview_every=0 if self._checks(order) else order.preview_every,
            )

    def _checks(self, order: Order) -> bool:
        return order.checked and self._finisher.checks

    def _said(self, name: str, event: Any) -> tuple[str, Said] | None:
        """What to say of an event now: nothing of an end whose pictures are not on the disk."""
        match event:
            case Finished():
                self._unwritten.add(name)
                return None
            case Failed(error):
                del self._orders[name]
                return name, broken(error)
            case Canceled():
                self._orders.pop(name, None)
                return name, Stopped()
            case Preview(index, image):
                return name, Shown(index, _jpeg(image))
            case _:
                return name, event

    def _finish(
        self,
        order: Order,
        event: Finished,
        tries: int = 0,
        flagged: tuple[Flag, ...] | None = None,
    ) -> None:
        """Bring the pictures to the disk, then tell; what goes wrong ends the job.

        A full disk ends none: the pictures wait for room, unless the job is canceled meanwhile.
        What is flagged is known from the first try on.
        """
        if order.name not in self._unwritten:
            self._send([(order.name, Stopped())])
            return
        try:
            if flagged is None:
                flagged = self._flags(order, event)
            told = self._written(order, event, flagged)
        except BaseException as error:  # also that a checker would end the process
            if isinstance(error, OSError) and error.errno in FULL:
                if not tries:
                    self._send([(order.name, Notice("the disk is full; its pictures wait."))])
                job = (self._finish, order, event, tries + 1, flagged)
                again = threading.Timer(ROOM, self._writer.submit, job)
                again.daemon = True
                again.start()
                return
            told = [broken(error)]
        self._unwritten.discard(order.name)
        try:
            self._send([(order.name, said) for said in told])
        except Exception as error:  # it cannot be pickled
            self._send([(order.name, broken(error))])

    def _flags(self, order: Order, event: Finished) -> tuple[Flag, ...]:
        """Pictures that are not to be published."""
        return self._finisher.flags(event.images, event.seeds) if self._checks(order) else ()

    def _written(self, order: Order, event: Finished, flagged: tuple[Flag, ...]) -> list[Said]:
        """Bring those pictures of a job to the disk that are not flagged; what is to be told."""
        told: list[Said] = [
            Notice(f"{flag} was flagged by the safety checker.") for flag in flagged
        ]
        held = {flag.index for flag in flagged}
        kept = [i for i in range(len(event.images)) if i not in held]
        if not kept:
            return [*told, Broken(ALL_FLAGGED, True, flagged)]
        files: list[Path] = []
        for i in kept:
            image, why = self._finisher.marked(event.images[i])
            if why:
                told.append(Notice(f"picture {i}: {why}"))
            data = metadata.encode_picture(image, order.kind, event.metadata[i], **order.options)
            data = self._finisher.signed(data, order.kind, order.request.image)
            files.append(order.folder / f"{order.stem}-{i}.{order.kind}")
            write_file(files[-1], data)
        done = Done(
            tuple(files),
            tuple(event.seeds[i] for i in kept),
            tuple(event.images[i].size for i in kept),
            flagged,
        )
        return [*told, done]

    def _send(self, report: Report) -> None:
        try:
            with self._sending:
                self._pipe.send(report)
        except (BrokenPipeError, OSError):
            os._exit(1)


def broken(error: BaseException) -> Broken:
    """What to tell of an error: its message if it is ours, else that there is a defect."""
    if isinstance(error, OverpaintError):
        return Broken(str(error), True)
    if isinstance(error, OSError):
        return Broken(f"the result cannot be written: {error.strerror}.", False)
    try:
        said = str(error)
    except Exception:  # of somebody else's
        said = "it does not say what"
    return Broken(f"{DEFECT}{type(error).__name__}: {said}.", False)


def _jpeg(image: "Image") -> bytes:
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=PREVIEW_QUALITY)
    return buffer.getvalue()
