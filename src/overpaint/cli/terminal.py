"""Output for the user: notes and progress bars on stderr, results on stdout."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console

from overpaint.cli.progress import Bar, show_loading
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


def print_error(text: str) -> None:
    """Print an error on stderr, also with `--quiet`, while the command goes on."""
    typer.echo(f"overpaint: {escape_control_characters(text)}", err=True)


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
        """Show a text, and the bytes that are read, while the block runs."""
        if not self._lively:
            yield
            return
        with show_loading(self._console, text):
            yield

    def make_bar(self, requests: int) -> Bar:
        """Make a bar for the steps and the remaining time of a number of requests."""
        return Bar(self._console, requests, disable=not self._lively)
