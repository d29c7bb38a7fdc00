"""Output for the user: notes and progress bars on stderr, results on stdout."""

import os
import sys
import traceback
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from overpaint.cli.progress import Bar, show_loading
from overpaint.system.plain_text import escape_control_characters

NOTHING_WRITTEN = "interrupted. No file was written."
"""Message of an interrupted command that has written no file."""


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


def print_error(text: str) -> None:
    """Print an error on stderr, also with `--quiet`, while the command goes on."""
    with suppress(OSError):  # There is no other place for it.
        typer.echo(f"overpaint: {escape_control_characters(text)}", err=True)


@contextmanager
def explain_interrupt(complete: Sequence[object]) -> Generator[None]:
    """Print the files that stay when Ctrl-C ends the block.

    Args:
        complete: names of the files that the block has written so far; it adds to them.
    """
    try:
        yield
    except KeyboardInterrupt:
        names = ", ".join(map(str, complete))
        print_error(f"interrupted. Complete: {names}" if names else NOTHING_WRITTEN)
        raise


@contextmanager
def explain_full_stdout(saved: Sequence[object]) -> Generator[None]:
    """Print the files that are saved when the block cannot write to stdout."""
    try:
        yield
    except OSError:
        if saved:
            print_error(f"saved, but not printed: {', '.join(map(str, saved))}")
        raise


def discard_broken_stdout(error: OSError) -> bool:
    """Return whether an error comes from printing; then stdout drops its unprinted text.

    Only typer and rich print. Every other error of a file is an `OverpaintError`, or a defect.
    """
    printers = {"typer", "rich"}
    if printers.isdisjoint(Path(traceback.extract_tb(error.__traceback__)[-1].filename).parts):
        return False
    with open(os.devnull, "w") as nowhere, suppress(OSError, ValueError):
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
    return True


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
        """Print one line. If stderr is full, the line is lost, and the command goes on."""
        with suppress(OSError):
            self._console.print(escape_control_characters(text), markup=False)

    def note(self, text: str) -> None:
        """Print a note for the user; the same note appears once."""
        if text not in self.notes:
            self.notes.append(text)
            self.say(f"note: {text}")

    @contextmanager
    def waiting(self, text: str) -> Generator[None]:
        """Show a text, and the bytes that are read, while the block runs."""
        if not self._lively:
            yield
            return
        with show_loading(self._console, text):
            yield

    def make_bar(self, requests: int) -> Bar:
        """Make a bar for the steps and the remaining time of a number of requests."""
        return Bar(self._console, requests, disable=not self._lively)
