"""Requests of dialects that accept every field of `Request` in addition to their own fields."""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from overpaint.errors import RequestError
from overpaint.request import Request
from overpaint.request.fields import resolve_field_aliases
from overpaint.server.api.fields import mark_defaults, with_checked_mask
from overpaint.server.api.ignored_fields import is_empty, report_ignored
from overpaint.server.api.image_inputs import find_nested_urls, load_nested_images
from overpaint.server.outbound.image_fetch import ImageSources
from overpaint.server.store.job_rows import Job

FieldMapping = tuple[str, str, Any]
"""A field that the client sent, the field of `Request` that it sets, and the value for that."""

IMAGE_FIELDS = ("strength", "fit")
"""Fields of `Request` without effect unless there is an image."""

PROMPT_FIELDS = ("prompt_2", "negative_prompt", "negative_prompt_2")
"""Native fields of which an empty text differs from an absent one."""

FIELD_ERROR = re.compile(r"(\w+)(?:\.[\w.]+)?: ")
"""The beginning of a job's error that names a field of its request."""


def build_request(
    given: BaseModel, words: Sequence[FieldMapping], own: Collection[str], sources: ImageSources
) -> tuple[Request, dict[str, str]]:
    """Make a request from a dialect's fields.

    Args:
        given: the fields that the client sent. Its extra fields have the names of `Request`.
        words: the dialect's own fields, as fields of `Request`.
        own: fields of `Request` that the dialect accepts under their own names. Other extra fields
            are reported as ignored.
        sources: uploads and fetched pictures.

    Returns:
        The request, and the dialect's names of the fields that set it, by the names of `Request`.

    Raises:
        RequestError: fields contradict each other or are out of range. The error names the
            dialect's field.
        PictureError: a picture is not valid.
    """
    fields: dict[str, Any] = {}
    for name, value in resolve_field_aliases(given.model_extra or {}).items():
        if name in own and (not is_empty(value) or (value == "" and name in PROMPT_FIELDS)):
            fields[name] = load_nested_images(value, sources, name)
        else:
            report_ignored(name)
    dialect_names: dict[str, str] = {}
    for name, field, value in words:
        if field in fields:
            raise RequestError(
                name,
                f"This field contradicts {dialect_names.get(field, field)}. Send one of the two.",
            )
        fields[field], dialect_names[field] = value, name
    if "image" not in fields:
        for field in IMAGE_FIELDS:
            if fields.pop(field, None) is not None:
                report_ignored(dialect_names.pop(field, field))
    try:
        request = with_checked_mask(Request.model_validate(fields))
        names = {field: (name,) for name, field, _ in words}
        return mark_defaults(request, given, names), dialect_names
    except RequestError as error:
        raise translate_error(error, dialect_names) from None


def find_extra_urls(given: BaseModel, own: Collection[str]) -> dict[str, str]:
    """Find the URLs in a dialect's extra fields that the server must fetch, by field name.

    Args:
        given: the fields that the client sent.
        own: fields of `Request` that the dialect accepts under their own names. `build_request`
            ignores other fields.
    """
    extra = (given.model_extra or {}).items()
    return find_nested_urls({name: value for name, value in extra if name in own})


def translate_error(error: RequestError, dialect_names: Mapping[str, str]) -> RequestError:
    """Return an error that names the dialect's field in place of the field of `Request`.

    Args:
        error: names a field of `Request`.
        dialect_names: the dialect's field names, from `build_request`.
    """
    return RequestError(dialect_names.get(error.field, error.field), error.message)


def get_field_error(job: Job) -> RequestError | None:
    """Return the error of a job that failed because of a request field, by the dialect's name.

    Returns:
        None if the job did not fail because of a field.
    """
    message = job.error or ""
    fault = FIELD_ERROR.match(message)
    if fault is None or fault[1] not in Request.model_fields:
        return None
    error = RequestError(fault[1], message.removeprefix(f"{fault[1]}: "))
    return translate_error(error, job.origin.field_names)
