"""What dialects share that understand every field of `Request` beside their own."""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from overpaint.errors import MAX_NAME_CHARS, RequestError, did_you_mean
from overpaint.request import Request
from overpaint.request_fields import resolve_field_aliases
from overpaint.server.api.fields import with_checked_mask
from overpaint.server.api.image_inputs import find_nested_urls, load_nested_images
from overpaint.server.outbound.image_fetch import ImageSources
from overpaint.server.store.jobs import Job

FieldMapping = tuple[str, str, Any]
"""A field of a dialect that was given, and the field and value of ours that it is."""

FIELD_ERROR = re.compile(r"(\w+)(?:\.[\w.]+)?: ")
"""What a job's error begins with if a field of its request is at fault."""


def build_request(
    given: BaseModel, words: Sequence[FieldMapping], own: Collection[str], sources: ImageSources
) -> tuple[Request, dict[str, str]]:
    """What the fields ask for, and by which of their words what of ours was given.

    Args:
        given: the dialect's fields; its extra ones are ours.
        words: what the dialect's are of ours.
        own: fields of ours that come under their own names.
        sources: where uploads are, and what was fetched.

    Raises:
        RequestError: they contradict each other, are unknown or out of range; in their words.
        PictureError: a picture cannot be read.
    """
    fields: dict[str, Any] = {}
    for name, value in resolve_field_aliases(given.model_extra or {}).items():
        if name not in own:
            known = {*own, *type(given).model_fields}
            raise RequestError(
                name[:MAX_NAME_CHARS], f"there is no such field here.{did_you_mean(name, known)}"
            )
        if value is not None:
            fields[name] = load_nested_images(value, sources, name)
    theirs: dict[str, str] = {}
    for name, ours, value in words:
        if ours in fields:
            raise RequestError(name, f"contradicts {theirs.get(ours, ours)}; give one of the two.")
        fields[ours], theirs[ours] = value, name
    try:
        return with_checked_mask(Request(**fields)), theirs
    except RequestError as error:
        raise translate_error(error, theirs) from None


def find_extra_urls(given: BaseModel, own: Collection[str]) -> dict[str, str]:
    """The URLs to be fetched that a dialect's extra fields name, by where they are.

    Args:
        given: the dialect's fields.
        own: fields of ours that come under their own names; what is none is refused later.
    """
    extra = (given.model_extra or {}).items()
    return find_nested_urls({name: value for name, value in extra if name in own})


def translate_error(error: RequestError, theirs: Mapping[str, str]) -> RequestError:
    """An error that names the dialect's field in place of ours, if `build_request` said of one."""
    return RequestError(theirs.get(error.field, error.field), error.message)


def get_field_error(job: Job) -> RequestError | None:
    """What of its request a failed job is at fault for, in the words that it came by."""
    message = job.error or ""
    fault = FIELD_ERROR.match(message)
    if fault is None or fault[1] not in Request.model_fields:
        return None
    error = RequestError(fault[1], message.removeprefix(f"{fault[1]}: "))
    return translate_error(error, job.origin.field_names)
