"""Output for the user: notes and progress bars on stderr, results on stdout."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import typer
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
from overpaint.system.plain_text import escape_control_characters


def echo(text: object) -> None:
    """Print a line on stdout without the control characters in it."""
    typer.echo(escape_control_characters(text))


def print_facts(facts: Mapping[str, Any]) -> None:
    """Print names and values in two columns on stdout, without empty values."""
    width = max(map(len, facts))
    for key, value in facts.items():
        if value not in (None, (), {}, ""):
            text = ", ".join(map(str, value)) if isinstance(value, tuple) else value
            echo(f"{key:<{width}}  {text}")


class Terminal:
    """Stderr: it shows bars only on a terminal, and is silent if `quiet`.

    Attributes:
        notes: all notes, shown or not.
    """

    def __init__(self, *, quiet: bool = False):
        self._console = Console(  # emoji: prompts hold words in colons
            stderr=True, quiet=quiet, highlight=False, soft_wrap=True, emoji=False
        )
        self._lively = self._console.is_terminal and not quiet
        self.notes: list[str] = []

    def say(self, text: str) -> None:
        """Print one line."""
        self._console.print(escape_control_characters(text), markup=False)

    def note(self, text: str) -> None:
        """Print a note for the user; the same note appears once."""
        if text not in self.notes:
            self.notes.append(text)
            self.say(f"note: {text}")

    @contextmanager
    def waiting(self, text: str) -> Generator[None]:
        """Show a spinner and a text while the block runs."""
        if not self._lively:
            yield
            return
        # Redirecting stderr would turn every refresh of a download's bar into a line.
        spinner = Spinner("dots", escape_control_characters(text))
        with Live(spinner, console=self._console, transient=True, redirect_stderr=False):
            yield

    @contextmanager
    def progress(self, requests: int) -> Generator["Bar"]:
        """Show a bar with the steps and the remaining time of a number of requests."""
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
    """A progress bar for `Step` events; it assumes as many steps for each request."""

    def __init__(self, progress: Progress, task: TaskID, requests: int):
        self._progress, self._task, self._requests = progress, task, requests

    def show(self, request: int, step: Step) -> None:
        """Show the progress of a request, numbered from 0."""
        self._progress.update(
            self._task,
            total=self._requests * step.total,
            completed=request * step.total + step.done,
        )
