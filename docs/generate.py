"""Write the reference pages of the documentation from the code that they describe.

    python -m docs.generate [FOLDER]

The Sphinx configuration calls it before each build, so the pages are not committed.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from inspect import cleandoc
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel

from overpaint.engine.planning_threads import PLANNING_THREADS, PLANNING_THREADS_PER_KEY
from overpaint.engine.worker import WRITER_THREADS, WRITER_THREADS_PER_KEY
from overpaint.imaging.codec import MAX_JPEG_SCANS, MAX_PIXELS, MAX_UPLOAD_PIXELS, MIN_SIDE_PIXELS
from overpaint.imaging.structure import (
    MAX_EXIF_SEGMENTS,
    MAX_JPEG_SEGMENTS,
    MAX_SMALL_PNG_CHUNKS,
    PNG_BYTES_PER_CHUNK,
)
from overpaint.request.fields import MAX_CONTROLS, MAX_PROMPT_CHARS, MAX_PROMPT_CHUNKS
from overpaint.server.api.a1111.routes import MAX_TEXT_CHARS
from overpaint.server.api.fields import MAX_PERCENT_ENCODED_CHARS
from overpaint.server.api.replicate.routes import MAX_WAIT_S
from overpaint.server.api.route import MAX_REPORTED_ERRORS
from overpaint.server.http.connection import MAX_UNSENT_BYTES, RESERVED_FILES
from overpaint.server.http.threads import PICTURE_THREADS, PICTURE_THREADS_PER_KEY
from overpaint.server.jobs.worker_process import MAX_RESTART_DELAY_S
from overpaint.server.store.crashes import MAX_CRASHES, MAX_LOST_SERVERS

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "docs" / "reference"


# Markdown


def cell(text: object) -> str:
    """Return text that is safe inside a table cell."""
    return re.sub(r"\s+", " ", str(text)).strip().replace("|", "\\|")


def table(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table; a table without rows is an empty string."""
    lines = ["| " + " | ".join(map(cell, row)) + " |" for row in rows]
    if not lines:
        return ""
    head = f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}"
    return "\n".join([head, *lines]) + "\n"


def code(text: object) -> str:
    """Return inline code."""
    return f"`{text}`"


def prose(docstring: str | None) -> str:
    """Return a docstring's text before its sections, with code blocks kept."""
    text = cleandoc(docstring or "")
    return re.split(r"\n\s*(?:Attributes|Args|Raises|Returns|Yields):\n", f"\n{text}")[0].strip()


# Fields of models


def documented_attributes(docstring: str | None) -> dict[str, str]:
    """Return the descriptions in a docstring's `Attributes:` section, by attribute."""
    _, _, section = cleandoc(docstring or "").partition("Attributes:\n")
    found: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        if match := re.match(r"    (\w+)(?: \([^)]*\))?: (.*)", line):
            name = match[1]
            found[name] = match[2]
        elif line.startswith("        ") and name:
            found[name] += f" {line.strip()}"
        elif line and not line.startswith(" "):
            break
    return found


def field_description(model: type[BaseModel], name: str) -> str:
    """Return the description of a field: its own, or its line in the class docstring."""
    if text := model.model_fields[name].description:
        return text
    for base in model.__mro__:
        if text := documented_attributes(base.__doc__).get(name):
            return text
    return ""


def values_of(schema: Mapping[str, Any]) -> str:
    """Return the values that a JSON schema accepts, in words."""
    if "enum" in schema:
        return ", ".join(json.dumps(value) for value in schema["enum"])
    if "const" in schema:
        return json.dumps(schema["const"])
    for union in ("anyOf", "oneOf"):
        if union in schema:
            parts = [part for part in schema[union] if part.get("type") != "null"]
            return " or ".join(dict.fromkeys(filter(None, map(values_of, parts))))
    if "$ref" in schema:
        return code(schema["$ref"].rpartition("/")[2])
    kind = schema.get("type", "")
    if kind in ("integer", "number"):
        return _numbers(schema, "integer" if kind == "integer" else "number")
    if kind == "array":
        if "prefixItems" in schema:
            inner = [values_of(each) for each in schema["prefixItems"]]
            same = len(set(inner)) == 1
            return f"[{len(inner)} × {inner[0]}]" if same else f"[{', '.join(inner)}]"
        inner = values_of(schema.get("items", {}))
        most = f", up to {schema['maxItems']}" if "maxItems" in schema else ""
        return f"list of {inner}{most}" if inner else "list"
    if kind == "string":
        if schema.get("format") in ("binary", "base64url"):
            return "bytes (base64 in JSON)"
        least, most = schema.get("minLength"), schema.get("maxLength")
        if least and most:
            return f"string, {least} to {most:,} characters"
        return f"string, up to {most:,} characters" if most else "string"
    return {"boolean": "true, false", "object": "object"}.get(kind, "")


def _numbers(schema: Mapping[str, Any], noun: str) -> str:
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    above = "above " if "exclusiveMinimum" in schema else ""
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    step = f", a multiple of {schema['multipleOf']}" if "multipleOf" in schema else ""
    if high is not None and high > 10**12:
        high = None
    if low is None:
        return noun + step if high is None else f"{noun}, up to {high:g}{step}"
    if high is None:
        return f"{noun}, {above or 'from '}{low:g}{step}"
    return f"{noun}, {above}{low:g} to {high:g}{step}"


def default_of(model: type[BaseModel], name: str) -> str:
    """Return the default of a field as code, "required" or "" for None and empty values."""
    field = model.model_fields[name]
    if field.is_required():
        return "required"
    if field.default_factory:
        return "random" if name == "seed" else ""
    if field.default in (None, "", (), [], {}):
        return ""
    return code(json.dumps(field.default))


def fields_table(model: type[BaseModel], names: Collection[str] | None = None) -> str:
    """Return the table of a model's fields: name, values, default, meaning."""
    properties: dict[str, Any] = model.model_json_schema()["properties"]
    rows = [
        (code(name), values_of(properties[name]), default_of(model, name), description)
        for name in model.model_fields
        if names is None or name in names
        for description in [field_description(model, name)]
    ]
    return table(("Field", "Values", "Default", "Meaning"), rows)


# Command line


def _commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    subcommands: dict[str, Any] = getattr(command, "commands", {})
    if not subcommands:
        yield name, command
    for key, sub in subcommands.items():
        yield from _commands(sub, f"{name} {key}")


def commands() -> dict[str, Any]:
    """Return every command of the command line by its full name, such as `overpaint edit`."""
    from typer.main import get_command

    from overpaint.cli.main import app

    return dict(_commands(get_command(app), "overpaint"))


def _values_of_parameter(parameter: Any) -> str:
    annotation: Any = parameter.type_descriptor.annotation
    if parameter.is_bool_flag:
        return "flag"
    if choices := getattr(annotation, "__args__", None):
        if all(isinstance(choice, str) for choice in choices):
            return ", ".join(map(code, choices))
        return "text, repeatable"
    name: str = {"Path": "path", "str": "text", "int": "integer", "float": "number"}.get(
        getattr(annotation, "__name__", ""), ""
    )
    low, high = parameter.min, parameter.max
    if low is not None and high is not None:
        return f"{name}, {low:g} to {high:g}"
    return name if low is None else f"{name}, from {low:g}"


def _default_of_parameter(parameter: Any) -> str:
    if parameter.required:
        return "required"
    if isinstance(parameter.show_default, str):
        return {"False": "off", "True": "on"}.get(parameter.show_default, parameter.show_default)
    if parameter.default in (None, False, "") or parameter.show_default is False:
        return ""
    return code(parameter.default)


def cli_page() -> str:
    """Return the page about the command line."""
    parts = [
        "# Command line\n\n"
        "`overpaint COMMAND --help` prints the same texts. `overpaint --version` prints the "
        "version.\n\n"
        "Global environment variables:\n\n"
        + table(
            ("Variable", "Meaning"),
            [
                (
                    "`OVERPAINT_HOME`",
                    "Folder of added models, LoRAs, control nets and embeddings. "
                    "Default: the user's data folder, or `~/.overpaint` if that exists.",
                ),
                (
                    "`OVERPAINT_KEY`",
                    "API key that clients of `overpaint serve` must send; the same as `--key`.",
                ),
            ],
        )
        + "\n## Exit codes\n\n"
        + _exit_codes()
    ]
    for name, command in commands().items():
        rows: dict[str, list[tuple[str, str, str, str]]] = {"argument": [], "option": []}
        for parameter in command.params:
            if parameter.name == "help" or parameter.hidden:
                continue
            kind = parameter.param_type_name
            flags = [*parameter.opts, *parameter.secondary_opts]
            shown = ", ".join(map(code, flags if kind == "option" else [parameter.name.upper()]))
            if parameter.envvar:
                shown += f" (environment: `{parameter.envvar}`)"
            values = _values_of_parameter(parameter) if kind == "option" else ""
            rows[kind].append((shown, values, _default_of_parameter(parameter), parameter.help))
        usage = " ".join(
            [name]
            + [
                p.name.upper() if p.required else f"[{p.name.upper()}]"
                for p in command.params
                if p.param_type_name == "argument"
            ]
            + ["[OPTIONS]"]
        )
        parts.append(
            f"## {name}\n\n{cleandoc(command.help or '')}\n\n```text\n{usage}\n```\n\n"
            + table(
                ("Argument", "Meaning"),
                [(shown, f"{text} Required." if d == "required" else text)
                 for shown, _, d, text in rows["argument"]],
            )
            + ("\n" if rows["argument"] else "")
            + table(("Option", "Values", "Default", "Meaning"), rows["option"])
        )  # fmt: skip
    return "\n".join(parts)


def _exit_codes() -> str:
    from overpaint import errors

    found: list[tuple[int, str, str]] = [
        (0, "", "The command succeeded."),
        (2, "", "The command line cannot be parsed."),
        (130, "", "The command was interrupted (Ctrl-C)."),
    ]
    for value in vars(errors).values():
        if isinstance(value, type) and issubclass(value, errors.OverpaintError):
            found.append((value.exit_code, value.__name__, prose(value.__doc__)))
    rows = [
        (number, code(name) if name else "", text.splitlines()[0])
        for number, name, text in sorted(found, key=lambda row: row[0])
        if name != "OverpaintError"
    ]
    return table(("Exit code", "Error class", "Meaning"), rows) + (
        "\nAny other exception is a defect; the command prints its traceback and exits with 1. "
        "The classes are in `overpaint.errors`; `OverpaintError` is their base.\n"
    )


# Requests


def request_page() -> str:
    """Return the page about the fields of a request."""
    from overpaint.picture import Picture
    from overpaint.request import Request
    from overpaint.request.parts import Control, Lora

    parts = [
        "# Request fields\n\n"
        "`overpaint.Request` in Python, `request` in `POST /api/jobs`, and keyword arguments of "
        "`Painter.edit` and `Painter.create` have these fields. "
        "A request is frozen and validated. "
        "An unknown field, a wrong type, a value out of range and a contradiction raise "
        "`RequestError`; over HTTP the status is `422`.\n"
    ]
    for title, model in (
        ("Request", Request),
        ("Control", Control),
        ("Lora", Lora),
        ("Picture", Picture),
    ):
        parts.append(f"## {title}\n\n{prose(model.__doc__)}\n\n{fields_table(model)}")
    return "\n".join(parts)


# HTTP


@cache
def openapi_document() -> dict[str, Any]:
    """Return the OpenAPI document of the HTTP API, as `GET /openapi.json` answers it."""
    from overpaint.server.app import create_app
    from overpaint.server.settings import ServerSettings

    return create_app(ServerSettings()).openapi()


def _schema_name(schema: Mapping[str, Any]) -> str:
    """Return the values of a schema, with links to the schemas that it names."""
    known = openapi_document()["components"]["schemas"]

    def linked(match: re.Match[str]) -> str:
        name = match[1]
        return f"[{match[0]}](#{name.lower()})" if name in known else match[0]

    text = re.sub(r"`(\w+)`", linked, values_of(schema))
    nullable = any(part.get("type") == "null" for part in schema.get("anyOf", ()))
    return f"{text} or null" if nullable and text else text


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> str:
    parts = [f"### {method.upper()} {path}\n"]
    if text := operation.get("description") or operation.get("summary"):
        parts.append(f"{cleandoc(text)}\n")
    rows = [
        (
            code(each["name"]),
            each["in"],
            _schema_name(each["schema"]) or "text",
            code(each["schema"]["default"]) if each["schema"].get("default") is not None else "",
            each.get("description", ""),
        )
        for each in operation.get("parameters", ())
        if each["in"] != "path"
    ]
    parts.append(table(("Parameter", "In", "Values", "Default", "Meaning"), rows))
    bodies = operation.get("requestBody", {}).get("content", {})
    for kind, body in bodies.items():
        parts.append(f"Request body: `{kind}`, {_schema_name(body['schema']) or 'any JSON'}.\n")
    answers: list[tuple[str, ...]] = []
    for status, answer in operation["responses"].items():
        if int(status) < 400:
            content: dict[str, Any] = answer.get("content", {})
            schemas = filter(None, (_schema_name(b.get("schema", {})) for b in content.values()))
            kinds = ", ".join(map(code, content))
            answers.append((code(status), kinds, ", ".join(schemas), answer["description"]))
    parts.append(table(("Status", "Content type", "Body", "Meaning"), answers))
    return "\n".join(filter(None, parts))


def http_page() -> str:
    """Return the page about the HTTP API."""
    document = openapi_document()
    groups: dict[str, list[str]] = {}
    errors: dict[str, str] = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            tag = (operation.get("tags") or ["other"])[0]
            groups.setdefault(tag, []).append(_operation(method, path, operation))
            for status, answer in operation["responses"].items():
                if int(status) >= 400:
                    errors.setdefault(status, answer["description"])
    parts = [
        "# HTTP API\n\n"
        "A running server publishes this description as OpenAPI at `/openapi.json` and as pages "
        "at `/docs`. [Serve](../guides/serve.md) explains authentication and limits, and [webhooks](../guides/webhooks.md) the deliveries.\n",
        "## Error statuses\n\nEvery route can answer with these statuses. The body of an error of "
        "the native API is `application/problem+json`: "
        '`{"title", "status", "detail"}`. '
        "[Clients](../guides/clients/index.md) describes the error bodies of the other dialects.\n",
        table(
            ("Status", "Meaning"),
            [(code(status), text) for status, text in sorted(errors.items())],
        ),
    ]
    about = {tag["name"]: tag.get("description", "") for tag in document.get("tags", ())}
    parts += [
        f"## Routes: {tag}\n\n{about.get(tag, '')}\n\n" + "\n".join(operations)
        for tag, operations in groups.items()
    ]
    parts.append("## Schemas\n\nBodies that the routes above name.\n")
    for name, schema in sorted(document["components"]["schemas"].items()):
        parts.append(f"### {name}\n\n{prose(schema.get('description'))}\n")
        required = schema.get("required", ())
        documented = documented_attributes(schema.get("description"))
        rows = [
            (
                code(field),
                _schema_name(inner),
                "required" if field in required else _default_in(inner),
                inner.get("description") or documented.get(field, ""),
            )
            for field, inner in schema.get("properties", {}).items()
        ]
        parts.append(table(("Field", "Values", "Default", "Meaning"), rows))
        if "enum" in schema:
            parts.append(f"Values: {values_of(schema)}.\n")
    return "\n".join(filter(None, parts))


def _default_in(schema: Mapping[str, Any]) -> str:
    default = schema.get("default")
    return "" if default in (None, "", [], {}) else code(json.dumps(default))


# Dialects


@dataclass(frozen=True)
class Dialect:
    """A table of the dialects page.

    Attributes:
        title: heading of the table.
        model: the pydantic model that validates what clients send.
        native: the model whose fields these become.
    """

    title: str
    model: type[BaseModel]
    native: type[BaseModel]


@cache
def dialects() -> tuple[Dialect, ...]:
    """Return the models of every dialect, in the order of the page."""
    from overpaint.request import Request
    from overpaint.request.parts import Control
    from overpaint.server.api.a1111.controlnet import Unit
    from overpaint.server.api.a1111.option_fields import Options
    from overpaint.server.api.a1111.protocol import ImageInputs, Inputs, TextInputs
    from overpaint.server.api.fal import protocol as fal
    from overpaint.server.api.openai import protocol as openai
    from overpaint.server.api.replicate.inputs import Input

    return (
        Dialect("Replicate, Synexa and cog", Input, Request),
        Dialect("OpenAI", openai.ImageFields, Request),
        Dialect("OpenAI: generations", openai.Generation, Request),
        Dialect("OpenAI: edits", openai.Edit, Request),
        Dialect("OpenAI: edits in JSON", openai.JsonEdit, Request),
        Dialect("OpenAI: variations", openai.Variation, Request),
        Dialect("fal", fal.Arguments, Request),
        Dialect("fal: `loras`", fal.LoraWeight, Request),
        Dialect("AUTOMATIC1111", Inputs, Request),
        Dialect("AUTOMATIC1111: txt2img", TextInputs, Request),
        Dialect("AUTOMATIC1111: img2img", ImageInputs, Request),
        Dialect("AUTOMATIC1111: options", Options, Request),
        Dialect("AUTOMATIC1111: ControlNet units", Unit, Control),
    )


def native_fields(dialect: Dialect, name: str) -> list[str]:
    """Return the native fields that a dialect's field sets.

    These are the fields that its description quotes, or the field with the same name. A field
    without effect and one that accepts anything set none.
    """
    from overpaint.server.api.ignored_fields import NoEffect

    field = dialect.model.model_fields[name]
    if field.annotation is Any or any(isinstance(each, NoEffect) for each in field.metadata):
        return []
    known = dialect.native.model_fields
    quoted = re.findall(r"`([^`]+)`", field.description or "")
    named = [each for each in quoted if each.partition("[")[0] in known]
    prefix = "controls[]." if dialect.native.__name__ == "Control" else ""
    return [prefix + each for each in named or [name] * (name in known)]


def _dialect_row(dialect: Dialect, name: str, schema: Mapping[str, Any]) -> tuple[str, ...]:
    mapped = native_fields(dialect, name)
    text = field_description(dialect.model, name)
    if len(mapped) == 1:
        text = re.sub("^`[^`]+`[.:;,] *", "", text)
    return (
        code(name),
        values_of(schema) or "anything",
        default_of(dialect.model, name),
        ", ".join(map(code, mapped)),
        text,
    )


def _native_names(names: Collection[str]) -> str:
    from overpaint.request import Request

    return ", ".join(code(name) for name in Request.model_fields if name in names)


def dialects_page() -> str:
    """Return the page about the fields of every dialect."""
    from overpaint.server.api.fal import protocol as fal
    from overpaint.server.api.openai import protocol as openai

    parts = [
        "# Dialect fields\n\n"
        "These tables list the fields of every client API that the server speaks, the values it "
        "accepts, and the native [request field](request.md) that each one sets. "
        "A field with an empty *Native field* sets none.\n"
    ]
    models = {dialect.model: dialect.title for dialect in dialects()}
    for dialect in dialects():
        base = cast(type[BaseModel], dialect.model.__base__)
        own = dialect.model.__annotations__ if base in models else dialect.model.model_fields
        also = f"Additional to the fields under “{models[base]}”:\n\n" if base in models else ""
        properties: dict[str, Any] = dialect.model.model_json_schema()["properties"]
        rows = [
            _dialect_row(dialect, name, properties[name])
            for name in dialect.model.model_fields
            if name in own
        ]
        titles = ("Field", "Values", "Default", "Native field", "Meaning")
        parts.append(f"## {dialect.title}\n\n{also}{table(titles, rows)}")
    parts.append(
        "## Native fields that dialects accept\n\n"
        "OpenAI clients (in `extra_body`) and fal clients can send these native fields by their "
        f"own names:\n\n{_native_names(openai.NATIVE_FIELDS & fal.NATIVE_FIELDS)}.\n\n"
        f"Only OpenAI clients: {_native_names(openai.NATIVE_FIELDS - fal.NATIVE_FIELDS)}.\n\n"
        f"Only fal clients: {_native_names(fal.NATIVE_FIELDS - openai.NATIVE_FIELDS)}.\n"
    )
    return "\n".join(parts)


# Metrics


def metrics_page() -> str:
    """Return the page about Prometheus metrics, from the collector that answers `/metrics`."""
    from types import SimpleNamespace

    from overpaint.engine.counters import Counters
    from overpaint.server.api.metrics import ServiceCollector
    from overpaint.server.http.counting import ResponseCounts

    supervisor: Any = SimpleNamespace(
        counters=Counters(), ended={}, pictures={}, restarts=0, ready=True, held=0
    )
    service: Any = SimpleNamespace(
        supervisor=supervisor,
        jobs=SimpleNamespace(count_by_state=lambda: {"queued": 0}, get_backlog=lambda: (0.0, 0.0)),
        outbox=SimpleNamespace(count_by_state=lambda: {"due": 0}),
    )
    rows: list[tuple[str, str, str, str]] = []
    for metric in ServiceCollector(service, ResponseCounts()).collect():
        name = metric.name + ("_total" if metric.type == "counter" else "")
        labels = ", ".join(map(code, getattr(metric, "_labelnames", ())))
        rows.append((code(name), metric.type, labels, metric.documentation))
    from overpaint.server.http.problems import REJECTION_REASONS

    return (
        "# Metrics\n\n"
        "`GET /metrics` answers in the Prometheus text format. If the server requires API keys, "
        "`/metrics` requires one too; set `authorization: {credentials: KEY}` in the Prometheus "
        "configuration.\n\n"
        "The worker reports steps, cache and resident models four times a second. These counters "
        "start at 0 when the worker is replaced.\n\n"
        + table(("Metric", "Type", "Labels", "Meaning"), rows)
        + "\n## Label values\n\n"
        + table(
            ("Label", "Values"),
            [
                (
                    "`reason` of `overpaint_rejections_total`",
                    ", ".join(map(code, REJECTION_REASONS)),
                ),
                ("`fate` of `overpaint_pictures_total`", "`published`, `flagged`"),
                ("`status` of `overpaint_http_responses_total`", "HTTP statuses"),
                (
                    "`state` of `overpaint_jobs`",
                    "`queued`, `running`, `succeeded`, `failed`, `canceled`",
                ),
                (
                    "`state` of `overpaint_webhooks`",
                    "`later`, `due`, `delivered`, `failed`, `gone`",
                ),
            ],
        )
        + "\nA rejection is a refused `POST` or `PUT`; refused `GET` requests count only in "
        "`overpaint_http_responses_total`.\n"
    )


# Limits


@dataclass(frozen=True)
class Limit:
    """A row of the limits page.

    Attributes:
        subject: name of the limit.
        value: text with `{0}`, `{1}` … for the numbers.
        numbers: names of settings of the server such as `limits.body_bytes`, and numbers that the
            code fixes.
        consequence: the answer beyond the limit.
    """

    subject: str
    value: str
    numbers: tuple[str | float, ...]
    consequence: str


LIMITS: dict[str, tuple[Limit, ...]] = {
    "HTTP requests": (
        Limit("Request headers", "{0:kib}", ("limits.request_head_bytes",), "`400`"),
        Limit("Time for the request headers", "{0:g} s", ("http.request_head_timeout_s",),
              "The server closes the connection."),
        Limit("Request body", "{0:mib}", ("limits.body_bytes",), "`413`"),
        Limit("Requests that are not answered yet, together: their bodies, and the stored files "
              "and URLs that they name",
              "a quarter of the machine's memory; `limits.pending_body_bytes`", (), "`503`"),
        Limit("Rate of a request body", "at least {0:,} bytes per second in each {1:g} s of "
              "waiting for it", ("http.min_body_rate_bytes_per_s", "http.request_body_timeout_s"),
              "`408`"),
        Limit("Time of waiting for a request body", "{0:g} s",
              ("http.request_body_total_timeout_s",), "`408`"),
        Limit("Requests with a body, or event streams, of one API key at once",
              "half of the open connections", (), "`429`"),
        Limit("Open connections", "the limit of open files less {0:g}, or half of it; "
              "`http.max_connections`", (RESERVED_FILES,),
              "The server closes the one that has waited longest for a request."),
        Limit("Time in which a client reads nothing of a response",
              "{0:g} s to twice that time", ("http.response_timeout_s",),
              "The server closes the connection."),
        Limit("Response data sent ahead of a client that does not read", "{0:kib}",
              (MAX_UNSENT_BYTES,),
              "The server waits for the client."),
        Limit("Idle connection between two requests", "{0:g} s", ("http.keep_alive_s",),
              "The server closes the connection."),
        Limit("Brackets and commas in JSON", "{0:,}", ("limits.json_separators",), "`400`"),
        Limit("Form fields, form files", "1,000 each", (), "`413`"),
        Limit("Ranges in a `Range` header", "100", (), "`416`"),
        Limit("Wrong fields that one error lists", "{0:g}", (MAX_REPORTED_ERRORS,),
              "The error lists the first ones."),
        Limit("`Idempotency-Key`", "256 characters", (), "`422`"),
        Limit("Webhook URL", "2,048 characters", (), "`422`"),
        Limit("`X-Request-ID` taken from a client", "1 to 128 printable characters", (),
              "The server makes its own id."),
    ),
    "Pictures": (
        Limit("Formats that the server reads", "PNG, JPEG, WebP, AVIF", (),
              "`415` (OpenAI: `400`; fal and cog: `422`)"),
        Limit("Formats that the library and the command line read",
              "PNG, JPEG, WebP, AVIF, BMP, GIF, TIFF", (), "`PictureError`"),
        Limit("Side of a picture sent to the server", "at least {0:g} pixels",
              (MIN_SIDE_PIXELS,), "`422`"),
        Limit("Pixels of a picture sent to the server", "{0:,} (8192²)",
              (MAX_UPLOAD_PIXELS,), "`422`"),
        Limit("Pixels of a picture in the library and the command line", "{0:,}",
              (MAX_PIXELS,), "`PictureError`"),
        Limit("Frames", "1", (), "`422`"),
        Limit("Scans of a JPEG", "{0:g}", (MAX_JPEG_SCANS,), "`422`"),
        Limit("Chunks of a PNG", "{0:,}, and one for each {1:,} bytes",
              (MAX_SMALL_PNG_CHUNKS, PNG_BYTES_PER_CHUNK), "`422`"),
        Limit("Segments of a JPEG before its first scan", "{0:,}, and {1:g} with EXIF",
              (MAX_JPEG_SEGMENTS, MAX_EXIF_SEGMENTS), "`422`"),
        Limit("Texts of a picture that `/sdapi/v1/png-info` returns", "{0:,} characters",
              (MAX_TEXT_CHARS,), "`422`"),
        Limit("Threads that check pictures", "{0:g}, {1:g} of them for one API key",
              (PICTURE_THREADS, PICTURE_THREADS_PER_KEY), "Requests wait."),
        Limit("Size of a mask", "the size of its picture", (), "`422`"),
        Limit("One upload", "{0:mib}", ("limits.upload_bytes",), "`413`"),
        Limit("Uploads that one job names, together", "{0:mib}", ("limits.body_bytes",), "`422`"),
        Limit("`data:` URI without base64", "{0:mib}", (MAX_PERCENT_ENCODED_CHARS,), "`422`"),
        Limit("Picture URLs in one request", "{0:g}", ("fetching.urls_per_request",), "`422`"),
        Limit("Pictures fetched for one request, together", "{0:mib} in {1:g} s",
              ("limits.upload_bytes", "fetching.timeout_s"), "`422`"),
        Limit("Requests of an API key that fetch pictures",
              "{0:g} at once, {1:g} together with waiting ones",
              ("fetching.concurrent_requests_per_key", "fetching.pending_requests_per_key"),
              "`429`"),
    ),
    "Requests for pictures": (
        Limit("Prompt", "{0:,} characters", (MAX_PROMPT_CHARS,), "`422`"),
        Limit("Chunks of 75 tokens of a prompt", "{0:g}", (MAX_PROMPT_CHUNKS,),
              "`422` for too many `BREAK`s; otherwise the job fails."),
        Limit("Pixels of all results of one request", "{0:,}", ("limits.result_pixels",), "`422`"),
        Limit("Estimated memory of one job beside the weights",
              "half of the machine's memory; `limits.job_memory_gb`", (), "`422`"),
        Limit("Sides of the result", "8 to 8192 pixels, a multiple of 8", (), "`422`"),
        Limit("`num_images`", "1 to 64", (), "`422`"),
        Limit("`num_inference_steps`", "1 to 1000", (), "`422`"),
        Limit("Options of preprocessors", "a range for each option", (), "`422`"),
        Limit("Control nets in one request", "{0:g}", (MAX_CONTROLS,), "`422`"),
        Limit("LoRAs in one request", "32", (), "`422`"),
        Limit("Priority on a server with API keys", "-10 to 0", (), "`422`"),
        Limit("Priority on a server without API keys", "-10 to 10", (), "`422`"),
    ),
    "Jobs": (
        Limit("Queued jobs",
              "{0:,}; in a full queue, an API key that has less than its share still has room, up "
              "to twice the limit", ("limits.queued_jobs",), "`429`"),
        Limit("Queued jobs of one API key", "no own limit; `limits.queued_jobs_per_key`", (),
              "`429`"),
        Limit("Estimated memory of running jobs beside the weights",
              "half of the machine's memory; `limits.job_memory_gb`", (), "Other jobs wait."),
        Limit("Text of a stored request, without pictures", "{0:,} characters as JSON",
              ("limits.stored_chars",), "`422`"),
        Limit("Text of the requests in one page of a list of jobs", "{0:,} characters",
              ("limits.listed_chars",), "The page ends earlier."),
        Limit("Jobs in the worker at once", "{0:g}", ("worker.max_jobs",),
              "Other jobs wait in the queue."),
        Limit("Jobs of one API key in the worker at once", "{0:g}", ("worker.max_jobs_per_key",),
              "Its other jobs wait in the queue."),
        Limit("Threads that begin jobs", "{0:g}, {1:g} of them for one API key",
              (PLANNING_THREADS, PLANNING_THREADS_PER_KEY), "Jobs wait."),
        Limit("Threads that write results", "{0:g}, {1:g} of them for one API key",
              (WRITER_THREADS, WRITER_THREADS_PER_KEY), "Jobs wait."),
        Limit("Crashes of the worker while a job runs", "{0:g}",
              (MAX_CRASHES,), "The job fails at the last of them."),
        Limit("Servers that are lost while a job runs", "{0:g}", (MAX_LOST_SERVERS,),
              "The job fails at the last of them."),
        Limit("Free disk space for new jobs", "at least {0:mib}",
              ("limits.free_disk_bytes",), "`507`"),
        Limit("Clients of one API key that follow events or wait by `GET` at once", "{0:,}",
              ("limits.event_streams_per_key",), "`429`"),
        Limit("`?wait=`", "0 to 60 s", (), "`422`"),
        Limit("Waiting for a Replicate prediction (`Prefer: wait`)", "{0:g} s", (MAX_WAIT_S,),
              "The server answers with the unfinished prediction."),
    ),
    "Worker": (
        Limit("Silence while the worker runs", "{0:g} s", ("worker.step_timeout_s",),
              "The server replaces the worker."),
        Limit("Silence while the worker starts", "{0:g} s", ("worker.start_timeout_s",),
              "The server replaces the worker."),
        Limit("A message that stops halfway", "{0:g} s", ("worker.message_timeout_s",),
              "The server replaces the worker."),
        Limit("Lease of a job", "{0:g} s", ("worker.lease_s",),
              "Another server takes over the job."),
        Limit("Pause before a worker that keeps dying restarts", "up to {0:g} s",
              (MAX_RESTART_DELAY_S,), "`/readyz` answers `503`."),
    ),
    "Webhooks": (
        Limit("Time for the receiver to answer", "{0:g} s", ("webhooks.timeout_s",),
              "The server tries again."),
        Limit("Tries", "10", (), "The webhook's state becomes `failed`."),
        Limit("Webhooks in delivery at once", "{0:g}, {1:g} of one API key",
              ("webhooks.concurrent_deliveries", "webhooks.concurrent_deliveries_per_key"),
              "Other webhooks wait."),
        Limit("Interval between two `logs` webhooks of a job", "{0:g} s",
              ("webhooks.poll_interval_s",), "The server combines updates."),
    ),
    "Data retention": (
        Limit("Jobs and results", "{0:g} days after the job ended", ("keep_days",), "`404`"),
        Limit("Uploads that no job uses", "{0:g} day after the last upload",
              ("keep_uploads_days",), "`404`"),
        Limit("Signed links to results", "{0:g} s", ("http.signed_link_lifetime_s",), "`403`"),
        Limit("Usage entries", "kept when jobs are removed", (), ""),
        Limit("A revoked API key still works", "up to {0:g} s", ("database.key_cache_s",),
              "`401` after that"),
    ),
}  # fmt: skip
"""The tables of the limits page, by heading."""


class _Number(float):
    """A number that formats itself in binary units."""

    def __format__(self, spec: str) -> str:
        match spec:
            case "kib":
                return f"{self / 2**10:g} KiB"
            case "mib":
                return f"{self / 2**20:g} MiB"
            case ",":
                return f"{int(self):,}"
            case _:
                return super().__format__(spec)


def setting_default(name: str) -> float:
    """Return the default of a setting of the server, such as `limits.body_bytes`."""
    from overpaint.server.settings import ServerSettings

    value: Any = ServerSettings()
    for part in name.split("."):
        value = getattr(value, part)
    return float(value)


def limits_page() -> str:
    """Return the page about limits, with the numbers that the code enforces."""
    parts = [
        "# Limits\n\n"
        "A status is the answer of the native HTTP API beyond the limit. "
        "[Clients](../guides/clients/index.md) describes the errors of the other dialects. "
        "Values are defaults; a limit with a [setting](settings.md) can be changed.\n"
    ]
    for title, limits in LIMITS.items():
        rows: list[tuple[str, str, str, str]] = []
        for limit in limits:
            numbers = [
                _Number(setting_default(number) if isinstance(number, str) else number)
                for number in limit.numbers
            ]
            settings = ", ".join(code(name) for name in limit.numbers if isinstance(name, str))
            value = limit.value.format(*numbers)
            rows.append((limit.subject, value, limit.consequence, settings))
        titles = ("Limit", "Value", "Beyond it", "Setting")
        parts.append(f"## {title}\n\n{table(titles, rows)}")
    return "\n".join(parts)


# Settings


def settings_page() -> str:
    """Return the page about the settings of the server."""
    from overpaint.server.settings import Flag, ServerSettings

    def rows_of(model: type[BaseModel], group: str) -> Iterator[tuple[str, ...]]:
        for name, field in model.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                continue
            flag = next((f.name for f in field.metadata if isinstance(f, Flag)), "")
            variable = f"OVERPAINT_{f'{group}__' if group else ''}{name}".upper()
            default = field.default
            shown = "" if default in (None, (), "") else code(_plain_default(default))
            yield (
                code(f"{group}.{name}" if group else name),
                code(variable),
                code(flag) if flag else "",
                shown,
                field.description or "",
            )

    titles = ("Setting", "Environment variable", "Flag", "Default", "Meaning")
    parts = [
        "# Settings of the server\n\n"
        "`overpaint serve` reads its settings from four sources. "
        "A flag has priority over an environment variable, then the file of `--config`, "
        "then the default. [Serve](../guides/serve.md) has an example.\n\n"
        "In the TOML file `limits.body_bytes` is the name `body_bytes` in the table `[limits]`. "
        "Lists in an environment variable are separated by spaces.\n",
        f"## General\n\n{table(titles, rows_of(ServerSettings, ''))}",
    ]
    for name, field in ServerSettings.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            text = field.description or ""
            parts.append(f"## {name}\n\n{text}\n\n{table(titles, rows_of(annotation, name))}")
    return "\n".join(parts)


def _plain_default(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case tuple():
            return " ".join(
                f"{part:g}" if isinstance(part, float) else str(part) for part in cast(Any, value)
            )
        case float():
            return f"{value:g}"
        case _:
            return str(value)


# Python


def _sections(docstring: str | None) -> dict[str, dict[str, str]]:
    """Return the sections of a docstring, such as "Args": names and their descriptions."""
    found: dict[str, dict[str, str]] = {}
    section: dict[str, str] = {}
    name = ""
    for line in cleandoc(docstring or "").splitlines():
        if match := re.fullmatch(r"(Args|Attributes|Raises):", line):
            section, name = found.setdefault(match[1], {}), ""
        elif match := re.match(r"    ([\w, ]+): (.*)", line):
            name = match[1]
            section[name] = match[2]
        elif line.startswith("        ") and name:
            section[name] += f" {line.strip()}"
    return found


def _callable_reference(name: str, function: Callable[..., Any]) -> str:
    """Return the part of a page about a function or method."""
    signature = inspect.signature(function)
    parameters = [each for each in signature.parameters.values() if each.name != "self"]
    shown = ", ".join(
        f"{'**' if each.kind is each.VAR_KEYWORD else ''}{each.name}"
        + ("" if each.default is each.empty else f"={each.default!r}")
        for each in parameters
    )
    parts = _sections(function.__doc__)
    arguments = table(
        ("Argument", "Meaning"),
        [(code(own), text) for own, text in parts.get("Args", {}).items()],
    )
    errors = table(
        ("Error", "Condition"),
        [(code(own), text) for own, text in parts.get("Raises", {}).items()],
    )
    return (
        "\n\n".join(
            filter(
                None, (f"### {name}\n\n```python\n{name}({shown})\n```", prose(function.__doc__))
            )
        )
        + f"\n\n{arguments}\n{errors}\n"
    )


def _class_reference(name: str, own: type[Any]) -> str:
    """Return the part of a page about a class: its attributes, properties and methods."""
    rows = [(code(n), text) for n, text in _described_attributes(own).items()]
    methods = [
        _callable_reference(f"{name}.{n}", function)
        for n, function in vars(own).items()
        if inspect.isfunction(function) and not n.startswith("_")
    ]
    attributes = table(("Attribute", "Meaning"), rows)
    return f"### {name}\n\n{prose(own.__doc__)}\n\n{attributes}\n" + "".join(methods)


def _described_attributes(own: type[Any]) -> dict[str, str]:
    """Return the descriptions of a class's attributes: its docstring's, its fields' and properties'."""
    found = documented_attributes(own.__doc__)
    tree = ast.parse(inspect.getsource(own))
    body = cast("ast.ClassDef", tree.body[0]).body
    for before, after in pairwise(body):
        match before, after:
            case ast.AnnAssign(target=ast.Name(id=n)), ast.Expr(
                value=ast.Constant(value=str(text))
            ):
                found[n] = cleandoc(text)
            case _:
                pass
    properties = inspect.getmembers(own, lambda value: isinstance(value, property))
    return found | {n: prose(each.__doc__) for n, each in properties if n in vars(own)}


def python_page() -> str:
    """Return the page of the library's public names."""
    import overpaint

    events = (overpaint.Notice, overpaint.Step, overpaint.Preview, overpaint.Finished)
    return (
        "# Python\n\n"
        "The guide [Python](../guides/python.md) shows how these names are used. "
        "[Request](request.md) has the fields of `overpaint.Request`, `Control` and `Lora`.\n\n"
        "## Load a model\n\n"
        + _callable_reference("overpaint.load", overpaint.load)
        + "## Paint\n\n"
        + _class_reference("Painter", overpaint.Painter)
        + "## Results\n\n"
        + _class_reference("Result", overpaint.Result)
        + "## Events\n\n"
        + "".join(_class_reference(event.__name__, event) for event in events)
    )


PAGES: dict[str, Callable[[], str]] = {
    "cli.md": cli_page,
    "request.md": request_page,
    "python.md": python_page,
    "http.md": http_page,
    "dialects.md": dialects_page,
    "limits.md": limits_page,
    "settings.md": settings_page,
    "metrics.md": metrics_page,
}
"""The generated pages, by file name."""


def write_pages(folder: Path = REFERENCE) -> None:
    """Write every generated page whose text has changed."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, page in PAGES.items():
        path, text = folder / name, page()
        if not path.exists() or path.read_text("utf-8") != text:
            path.write_text(text, "utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=REFERENCE)
    write_pages(parser.parse_args().folder)
