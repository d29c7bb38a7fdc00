"""Progress on the terminal while a command works: bytes, steps and the time that is left."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import timedelta
from time import perf_counter

from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
)
from rich.text import Text

from overpaint.events import Step
from overpaint.system.plain_text import escape_control_characters
from overpaint.system.progress import ByteCount, Estimate, watch_bytes

Clock = Callable[[], float]


class TimeLeft(ProgressColumn):
    """The time until the end of an `Estimate`, which counts down between two updates."""

    def __init__(self, estimate: Estimate):
        super().__init__()
        self._estimate = estimate

    def render(self, task: Task) -> Text:
        """Return the time as text; it is empty before any work is done."""
        return Text(describe_seconds(self._estimate.seconds_left))


def describe_seconds(seconds: float | None) -> str:
    """Return a time that is left as text, such as ", 0:01:30 left"; "" if it is unknown."""
    return "" if seconds is None else f", {timedelta(seconds=round(seconds))} left"


def describe_bytes(count: ByteCount) -> str:
    """Return how many bytes are read, such as "1.2 GB of 6.9 GB"; "" before any is read."""
    if not count.total:
        return decimal(count.done) if count.done else ""
    return f"{decimal(min(count.done, count.total))} of {decimal(count.total)}"


@contextmanager
def show_loading(console: Console, text: str, clock: Clock = perf_counter) -> Generator[None]:
    """Show a spinner, a text, and the bytes that the block reads with the time that is left."""
    estimate = Estimate(clock)
    # Redirecting stderr would turn every refresh of a download's bar into a line.
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description} {task.fields[bytes]}", markup=False),
        TimeLeft(estimate),
        console=console,
        transient=True,
        redirect_stderr=False,
        redirect_stdout=False,
    ) as progress:
        task = progress.add_task(escape_control_characters(text), total=None, bytes="")

        def show(count: ByteCount) -> None:
            if not count.done:
                estimate.restart()  # imports read no bytes
            elif count.total:
                estimate.update(count.done / count.total)
            progress.update(task, bytes=describe_bytes(count))

        with watch_bytes(show):
            yield


class Bar:
    """A progress bar for the steps of several requests, each with about as many steps."""

    def __init__(
        self, console: Console, requests: int, *, disable: bool, clock: Clock = perf_counter
    ):
        """Make a bar; `painting` shows it.

        Args:
            console: the terminal.
            requests: the number of requests.
            disable: show nothing.
            clock: returns seconds.
        """
        self._console, self._requests, self._disable = console, requests, disable
        self._clock = clock
        self._estimate: Estimate | None = None
        self._request, self._done, self._steps = 0, 0, 1
        self._progress: Progress | None = None

    @property
    def visible(self) -> bool:
        """True if the bar is shown while a request runs."""
        return not self._disable

    @contextmanager
    def painting(self, request: int, steps: int) -> Generator[None]:
        """Show the bar during a request.

        Args:
            request: the request, from 0.
            steps: the number of its steps, as far as it is known before.
        """
        self._estimate = estimate = self._estimate or Estimate(self._clock)
        self._request, self._done, self._steps = request, 0, max(steps, 1)
        several = f" picture {request + 1} of {self._requests}:" if self._requests > 1 else ""
        with Progress(
            TextColumn(f"painting{several}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps"),
            TimeLeft(estimate),
            console=self._console,
            transient=True,
            disable=self._disable,
            redirect_stdout=False,  # paths of pictures go to stdout
        ) as self._progress:
            self._progress.add_task("", total=self._steps)
            yield
        self._progress = None
        self._done = self._steps

    def show(self, step: Step) -> None:
        """Show a step of the request."""
        self._done, self._steps = step.done, max(step.total, 1)
        self._update(step.done)
        if self._progress:
            self._progress.update(self._progress.task_ids[0], completed=step.done, total=step.total)

    def show_calls(self, calls: float) -> None:
        """Show the time that is left from a part of the first network call, before its step."""
        if self._done == 0:
            self._update(min(calls, 1.0))

    def _update(self, steps: float) -> None:
        share = (self._request + steps / self._steps) / self._requests
        if self._estimate:
            self._estimate.update(share)
