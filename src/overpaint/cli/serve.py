"""`overpaint serve`: its options are those settings of the server that have a flag."""

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

import typer
from annotated_types import Ge, Le
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from overpaint.errors import RequestError
from overpaint.server.settings import Flag, ServerSettings
from overpaint.server.settings_sources import load_settings

if TYPE_CHECKING:
    from overpaint.server.telemetry.traces import TraceExporter

ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/*\s]+")


@dataclass(frozen=True)
class Option:
    """A setting that has a flag.

    Attributes:
        path: names of the groups that it is in, then its own.
        field: its description, default and constraints.
        flag: its option.
    """

    path: tuple[str, ...]
    field: FieldInfo
    flag: Flag

    @property
    def name(self) -> str:
        """The name of the command's parameter."""
        return self.flag.name.removeprefix("--").replace("-", "_")

    def parameter(self) -> inspect.Parameter:
        """Return the command's parameter; its value is None without the flag."""
        limits = {type(limit): limit for limit in self.field.metadata}
        minimum = self.flag.minimum
        if minimum is None and Ge in limits:
            minimum = limits[Ge].ge
        option = typer.Option(
            self.flag.name,
            help=" ".join((self.field.description or "").split()),
            show_default=self._shown_default(),
            min=minimum,
            max=limits[Le].le if Le in limits else None,
        )
        return inspect.Parameter(
            self.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[_command_line_type(self.field.annotation) | None, option],
        )

    def _shown_default(self) -> str | bool:
        if self.flag.shown_default:
            return self.flag.shown_default
        default = self.field.default
        return False if default in (None, False, ()) else str(default)


def options(settings: type[BaseModel] = ServerSettings, *path: str) -> Iterator[Option]:
    """Yield the settings that have a flag, in their order."""
    for name, field in settings.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from options(annotation, *path, name)
        for flag in field.metadata:
            if isinstance(flag, Flag):
                yield Option((*path, name), field, flag)


def _command_line_type(annotation: Any) -> Any:
    """Return the type that typer reads for a setting: a list of texts for a tuple of texts."""
    if get_origin(annotation) in (Union, UnionType):
        (annotation,) = (part for part in get_args(annotation) if part is not NoneType)
    return list[str] if get_origin(annotation) is tuple else annotation


def _with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command one option for each setting that has a flag."""
    own = [
        parameter
        for parameter in inspect.signature(command).parameters.values()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    parameters = [*(option.parameter() for option in options()), *own]
    command.__annotations__ = {one.name: one.annotation for one in parameters}
    signature = inspect.Signature(parameters)
    command.__signature__ = signature  # pyright: ignore[reportFunctionMemberAccess]
    return command


@_with_options
def serve(
    *,
    config: Annotated[
        Path | None,
        typer.Option(
            help="TOML file of settings. Flags and OVERPAINT_… environment variables override it.",
            show_default=False,
        ),
    ] = None,
    **flags: Any,
) -> None:
    """Serve jobs over HTTP; an accepted job is never lost."""
    given: dict[str, Any] = {}
    for option in options():
        value = flags[option.name]
        if value in (None, []):
            continue
        *groups, name = option.path
        group = given
        for outer in groups:
            group = group.setdefault(outer, {})
        group[name] = value
    start(load_settings(given, config))


def start(settings: ServerSettings) -> None:
    """Check the settings that need more than their own value, then serve until a signal comes.

    Raises:
        RequestError: an origin is not valid, the server would be open to others without an API key,
            the certificate, the profile or OpenTelemetry cannot be used, or the port is in use.
        ModelNotFoundError, CheckpointError: a model or the safety checker cannot be used.
        OutputError: the profile cannot be read.
        StoreError: the job store or the folder cannot be used.
        OverpaintError: the worker cannot load the first model.
    """
    for origin in settings.allowed_origins:
        if not ORIGIN.fullmatch(origin):
            raise RequestError(
                "allowed_origin",
                f"{origin!r} is not an origin. Write it like https://example.org.",
            )

    from overpaint.models.library.index import LibraryIndex
    from overpaint.models.library.served import check_served_model
    from overpaint.server.app import run
    from overpaint.server.http.listening import bind_sockets
    from overpaint.server.jobs.store_access import explain_store_errors, prepare_store
    from overpaint.server.telemetry.logs import configure_logging

    settings.postprocess_config().check()
    settings.read_profile()
    index = LibraryIndex(settings.home, settings.models_dirs)
    config = settings.engine_config()
    for model in settings.models:
        check_served_model(model, index, config.list_parts(model))
    configure_logging(settings.log)
    with ExitStack() as bound:
        sockets = [bound.enter_context(s) for s in bind_sockets(settings.host, settings.port)]
        prepare_store(settings.data, settings.store)
        with explain_store_errors(settings.data):
            _check_access(settings)
        models, port = ", ".join(settings.models), sockets[0].getsockname()[1]
        print(f"http://{settings.host}:{port}/docs  models: {models}", file=sys.stderr)
        run(settings, traces=_traces() if settings.otel else None, sockets=sockets)


def _check_access(settings: ServerSettings) -> None:
    """Refuse to listen beyond this machine without an API key."""
    from overpaint.network.addresses import is_loopback
    from overpaint.server.store.api_keys import open_api_keys
    from overpaint.server.store.database import get_store_url

    if settings.api_keys or is_loopback(settings.host):
        return
    with open_api_keys(get_store_url(settings.data, settings.store)) as stored:
        if not stored.has_active():
            raise RequestError(
                "host",
                f"Other machines can reach {settings.host}. Require an API key: give --key, or "
                "create one with `overpaint keys create`.",
            )


def _traces() -> "TraceExporter":
    """Return the exporter of traces.

    Raises:
        RequestError: OpenTelemetry is not installed.
    """
    try:
        from overpaint.server.telemetry.traces import make_otlp_exporter
    except ModuleNotFoundError as error:
        raise RequestError(
            "otel", f"{error.name} is not installed. Install it: pip install 'overpaint[otel]'."
        ) from error
    return make_otlp_exporter()
