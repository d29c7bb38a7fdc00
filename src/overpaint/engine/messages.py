"""Messages between the server's process and the worker's process.

The server sends `RunJob` and `CancelJob`. The worker sends `WorkerReady` or `WorkerFailed` once, a
`Heartbeat` a few times a second, and lists of job messages in order. `JobSucceeded`, `JobFailed` or
`JobCanceled` is the last message about a job.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from overpaint.engine.counters import Counters
from overpaint.errors import OverpaintError
from overpaint.events import Notice, Spent, Step
from overpaint.provenance.safety import Flag
from overpaint.request import Request

DEFECT_PREFIX = "there is a defect in Overpaint: "
"""Start of a job's error if neither the request nor the machine caused it."""


@dataclass(frozen=True)
class RunJob:
    """Run one attempt of a job.

    Attributes:
        tag: name of the attempt. Messages about the attempt contain it.
        folder: where the worker writes the pictures.
        stem: start of the pictures' file names.
        kind: "png", "jpg" or "webp".
        options: Pillow's options for that format.
        preview_every: steps between previews; 0 for none.
        checked: whether the worker's safety checker, if it has one, checks the pictures. A checked
            job has no previews, because nothing checks those.
    """

    tag: str
    request: Request
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
class CancelJob:
    """End an attempt before its next step."""

    tag: str


@dataclass(frozen=True)
class WorkerReady:
    """The worker accepts jobs."""


@dataclass(frozen=True)
class WorkerFailed:
    """The worker cannot start, and ends.

    Attributes:
        error: why it could not load its first model or the safety checker.
    """

    error: OverpaintError


@dataclass(frozen=True)
class Heartbeat:
    """The worker's loop runs.

    Attributes:
        counters: of the worker's engine; None if the engine counts nothing.
    """

    counters: Counters | None = None


@dataclass(frozen=True)
class PreviewImage:
    """A preview.

    Attributes:
        index: which picture of the job, from 0.
        data: JPEG.
    """

    index: int
    data: bytes


@dataclass(frozen=True)
class JobSucceeded:
    """A job's pictures are on the disk.

    Attributes:
        files: paths of the pictures, without flagged ones.
        seeds: of these pictures.
        sizes: width and height of these pictures in pixels.
        flagged: pictures that the safety checker flagged.
    """

    files: tuple[Path, ...]
    seeds: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]
    flagged: tuple[Flag, ...] = ()


@dataclass(frozen=True)
class JobFailed:
    """A job failed.

    Attributes:
        message: for the client.
        expected: whether the request caused the error. If not, the operator's log has it too.
        flagged: the job's pictures, if the safety checker flagged all of them.
    """

    message: str
    expected: bool
    flagged: tuple[Flag, ...] = ()


@dataclass(frozen=True)
class JobCanceled:
    """A job ended because of a `CancelJob`."""


JobMessage = Step | Notice | PreviewImage | Spent | JobSucceeded | JobFailed | JobCanceled
"""Something that happened to a job."""

WorkerMessage = WorkerReady | WorkerFailed | Heartbeat | list[tuple[str, JobMessage]]
"""A message of the worker. Job messages come with the tag of their attempt."""


def job_failed(error: BaseException) -> JobFailed:
    """Return the message for an error.

    It contains the error's own text if Overpaint raised the error on purpose.
    """
    if isinstance(error, OverpaintError):
        return JobFailed(str(error), True)
    if isinstance(error, OSError):
        return JobFailed(f"the result cannot be written: {error.strerror}.", False)
    try:
        text = str(error)
    except Exception:  # raised by code outside Overpaint
        text = "the error has no text"
    return JobFailed(f"{DEFECT_PREFIX}{type(error).__name__}: {text}.", False)
