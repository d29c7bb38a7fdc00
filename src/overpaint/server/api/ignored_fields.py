"""Fields that a client sends and that have no effect: the server accepts and reports them.

A dialect accepts what the original API accepts (decision 0014). A field has no effect if the
dialect does not know it, if its value is null or empty, or if the dialect only accepts values of it
that change nothing. The server lists such fields in the response header `X-Ignored-Fields` and in
its log. How a dialect uses this module:

1. Its models derive from `TolerantModel`. Fields without effect have the type `Ignored`; fields of
   which only some values can be honored are annotated with `UnsupportedExcept`.
2. Its routes call `report_ignored_fields` with the model that they received.
3. Code that finds another field without effect calls `report_ignored` with its name.

`DialectRoute` collects the names of a request and writes the header and the log.
"""

import logging
from collections.abc import Collection, Generator, Iterable, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Annotated, Any, Self
from urllib.parse import quote

from fastapi import Request as Incoming
from fastapi import Response
from pydantic import (
    AliasChoices,
    BaseModel,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ModelWrapValidatorHandler,
    PrivateAttr,
    ValidationError,
    model_validator,
)
from pydantic_core import core_schema

from overpaint.errors import MAX_NAME_CHARS, quote_value
from overpaint.server.telemetry.logs import log_event

IGNORED_HEADER = "X-Ignored-Fields"
"""Response header with the names of the fields that had no effect."""

MAX_REPORTED_NAMES = 50
"""Largest number of names in the header, the log and a body."""

_names: ContextVar[dict[str, None] | None] = ContextVar("ignored_fields", default=None)
"""The names of the request that the current task handles, in the order of their reports.

Threads of the request have a copy of the context, and so the same dictionary."""


# Reports


@contextmanager
def collect_ignored() -> Generator[None]:
    """Collect the names that `report_ignored` receives in this context."""
    token = _names.set({})
    try:
        yield
    finally:
        _names.reset(token)


def report_ignored(*names: str) -> None:
    """Report fields of the current request that have no effect.

    Args:
        names: paths of fields in the client's words, such as `override_settings.samples_save`.
    """
    collected = _names.get()
    if collected is None:
        return
    for name in names:
        if len(collected) < MAX_REPORTED_NAMES:
            collected[_printable(name)] = None


def report_ignored_fields(given: BaseModel, path: str = "") -> None:
    """Report all fields of a model that have no effect, and those of models inside it.

    Args:
        given: the fields that the client sent.
        path: the path of the model in the request, with a dot at its end.
    """
    report_ignored(*(f"{path}{name}" for name in _list_ignored(given)))
    for name in given.model_fields_set:
        match getattr(given, name, None):
            case BaseModel() as inner:
                report_ignored_fields(inner, f"{path}{name}.")
            case list() as values:
                for index, inner in enumerate(_only_models(values)):
                    report_ignored_fields(inner, f"{path}{name}.{index}.")
            case _:
                pass


def list_ignored() -> list[str]:
    """Return the names that the current request has reported so far."""
    return list(_names.get() or ())


def add_ignored_header(incoming: Incoming, response: Response) -> None:
    """Add the names that the current request has reported to its response, and log them."""
    names = ", ".join(list_ignored())
    if not names:
        return
    response.headers[IGNORED_HEADER] = names
    route = getattr(incoming.scope.get("route"), "path", None)
    log_event(
        logging.INFO,
        "fields ignored",
        key=getattr(incoming.state, "key", None),
        route=route,
        fields=names,
    )


def _printable(name: str) -> str:
    """Return a field's path as ASCII without spaces, for a header. Clients choose the names."""
    # A header that ended in the comma before an empty name would be malformed.
    return quote(name[:MAX_NAME_CHARS], safe="[]:", errors="replace") or '""'


def _list_ignored(given: BaseModel) -> Iterable[str]:
    if isinstance(given, TolerantModel):
        yield from given.ignored_names
    for name, field in type(given).model_fields.items():
        if name in given.model_fields_set and any(isinstance(m, NoEffect) for m in field.metadata):
            yield name


def _only_models(values: list[Any]) -> list[BaseModel]:
    return [value for value in values if isinstance(value, BaseModel)]


# Models


class TolerantModel(BaseModel):
    """A model that accepts unknown fields, and null and empty values, as absent fields.

    A null is always absent. An empty text, list or object is absent if the field does not accept
    it. A subclass with `extra="allow"` keeps unknown fields in `model_extra` and judges them.
    """

    _ignored_names: tuple[str, ...] = PrivateAttr(())

    @property
    def ignored_names(self) -> tuple[str, ...]:
        """Names of the fields of this model that the client sent and that count as absent."""
        return self._ignored_names

    @classmethod
    def list_unused(cls, fields: Mapping[str, Any]) -> Collection[str]:
        """Return the names of fields that have no effect beside the others, with any values.

        Args:
            fields: the fields as the client sent them.
        """
        return ()

    @model_validator(mode="wrap")
    @classmethod
    def _drop_ignored(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(data, Mapping):
            return handler(data)
        fields: dict[str, Any] = {str(name): value for name, value in data.items()}
        unused = cls.list_unused(fields)
        kept = {n: value for n, value in fields.items() if value is not None and n not in unused}
        if cls.model_config.get("extra") != "allow":
            known = _names_of_fields(cls)
            kept = {name: value for name, value in kept.items() if name in known}
        try:
            made = handler(kept)
        except ValidationError as error:
            wrong = {str(each["loc"][0]) for each in error.errors() if each["loc"]}
            empty = {name for name in wrong if name in kept and is_empty(kept[name])}
            if not empty:
                raise
            kept = {name: value for name, value in kept.items() if name not in empty}
            made = handler(kept)
        made._ignored_names = tuple(name for name in fields if name not in kept)
        return made


def _names_of_fields(model: type[BaseModel]) -> set[str]:
    """Return the names that a model accepts."""
    names = set(model.model_fields)
    for field in model.model_fields.values():
        match field.validation_alias:
            case str(alias):
                names.add(alias)
            case AliasChoices(choices=choices):
                names |= {choice for choice in choices if isinstance(choice, str)}
            case _:
                pass
    return names


def is_empty(value: Any) -> bool:
    """Return whether a value is null, or an empty text, list or object."""
    return value is None or (isinstance(value, str | bytes | list | Mapping) and not value)


class NoEffect:
    """Annotation of a field that never has an effect."""


class UnsupportedExcept(NoEffect):
    """Annotation of a field without effect: it accepts only values that change nothing.

    Those are the given values, null, and empty texts, lists and objects.
    """

    def __init__(self, *values: Any):
        """Accept these values.

        Args:
            values: the values that change nothing.
        """
        self.values = values

    def check(self, value: Any) -> Any:
        """Return the value.

        Raises:
            ValueError: the value would change something.
        """
        if value not in self.values and not is_empty(value):
            raise ValueError(f"{quote_value(value)} is not supported; leave the field out.")
        return value

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        own = {
            "enum": list(self.values),
            "description": "Not supported: other values than these and empty ones are rejected.",
        }
        return {**handler(schema), **own}


Ignored = Annotated[
    Any, Field(exclude=True, description="Accepted without effect; not stored."), NoEffect()
]
"""Type of a field that has no effect."""
