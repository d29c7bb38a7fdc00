"""An option of the command line and the field of `Request` that it sets."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from overpaint.request import Request


@dataclass(frozen=True)
class Setting:
    """An option and the field of `Request` that it sets."""

    field: str
    """The name of the field."""

    flags: tuple[str, ...]
    """The spellings of the option."""

    type: Any
    """The type of the value on the command line."""

    help: str
    """One line for `--help`."""

    default: str | None = None
    """The default that `--help` shows, if it is not the default of the field."""

    parse: Callable[[Any], dict[str, Any]] | None = None
    """Converts the value on the command line to fields. By default the value is the field's."""

    old_flags: str | None = None
    """A former spelling of the option, which is accepted and hidden."""

    def parse_value(self, value: Any) -> dict[str, Any]:
        """Return the fields that a value on the command line sets."""
        return self.parse(value) if self.parse else {self.field: value}

    def parameters(self) -> Iterator[inspect.Parameter]:
        """Yield a command's keyword for the option, and one for its hidden alias."""
        default = self.default or str(Request.model_fields[self.field].default)
        shown = False if default in {"None", "", "False", "PydanticUndefined"} else default
        options = {self.field: typer.Option(*self.flags, help=self.help, show_default=shown)}
        if self.old_flags:
            options[f"{self.field}_alias"] = typer.Option(self.old_flags, hidden=True)
        for name, option in options.items():
            yield inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[self.type | None, option],
            )
