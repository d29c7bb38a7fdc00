"""What the user sees on stderr: notes and a progress bar. Results alone go to stdout."""

from collections.abc import Generator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.spinner import Spinner

from overpaint.events import Step


class Terminal:
    """Stderr; without bars where it is no terminal, silent when `quiet`.

    Attributes:
        notes: all that were made, shown or not.
    """

    def __init__(self, *, quiet: bool = False):
        self._console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
        self._lively = self._console.is_terminal and not quiet
        self.notes: list[str] = []

    def say(self, text: str) -> None:
        """One line, for whoever watches."""
        self._console.print(text, markup=False)

    def note(self, text: str) -> None:
        """Something the user should know; each is shown once."""
        if text not in self.notes:
            self.notes.append(text)
            self.say(f"note: {text}")

    @contextmanager
    def waiting(self, text: str) -> Generator[None]:
        """Show that something takes a while."""
        if not self._lively:
            yield
            return
        # Not redirected, or every refresh of a download's own bar would become a line.
        spinner = Spinner("dots", text)
        with Live(spinner, console=self._console, transient=True, redirect_stderr=False):
            yield

    @contextmanager
    def progress(self, requests: int) -> Generator["Bar"]:
        """A bar with steps and the time that is left, over all `requests`."""
        with Progress(
            TextColumn("painting"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps,"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=self._console,
            transient=True,
            disable=not self._lively,
        ) as progress:
            yield Bar(progress, progress.add_task("", total=None), requests)


class Bar:
    """A progress bar that is fed `Step`s; every request counts the steps of the current one."""

    def __init__(self, progress: Progress, task: TaskID, requests: int):
        self._progress, self._task, self._requests = progress, task, requests

    def show(self, request: int, step: Step) -> None:
        """Request number `request`, from 0, has got as far as `step`."""
        self._progress.update(
            self._task,
            total=self._requests * step.total,
            completed=request * step.total + step.done,
        )
