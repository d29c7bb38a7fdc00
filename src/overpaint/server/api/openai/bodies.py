"""Bodies of OpenAI's routes that can be forms."""

import re
from typing import Any, TypeVar

from fastapi import HTTPException
from fastapi import Request as Incoming
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile

from overpaint.errors import RequestError
from overpaint.request import Request
from overpaint.server.api.ignored_fields import report_ignored
from overpaint.server.api.openai.protocol import (
    TEXT_FIELDS,
    Edit,
    ImageFields,
    JsonEdit,
    Variation,
)
from overpaint.server.http.json_body import check_json_size, parse_json
from overpaint.server.settings import Limits

MAX_FORM_FILES = 64

LIST_NAME = re.compile(r"(\w+)\[\d*\]")
"""A form field that is an item of a list: `image[]` or `image[0]`."""

FieldsT = TypeVar("FieldsT", bound=ImageFields)


async def parse_form(incoming: Incoming, model: type[FieldsT]) -> FieldsT:
    """Read and validate the fields of a form.

    An empty value counts as absent, except for the prompt. Values of native fields are JSON,
    unless the field is text. Of several images, only the first one is read.

    Raises:
        HTTPException: 400, 413 or 415: the body is not a form, or is too large.
        RequestError: a field occurs more than once.
        RequestValidationError: a field is missing or invalid.
    """
    if not incoming.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise HTTPException(415, "This route needs a form; send Content-Type: multipart/form-data.")
    async with incoming.form(max_files=MAX_FORM_FILES) as form:
        fields = await _read_fields(form, model, incoming.app.state.settings.limits)
    return _validate(model, fields)


def _validate(model: type[FieldsT], fields: Any) -> FieldsT:
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None


async def _read_fields(form: FormData, model: type[ImageFields], limits: Limits) -> dict[str, Any]:
    """Return the values of a form by field name, files as bytes."""
    check_json_size(limits, *(value for _, value in form.multi_items() if isinstance(value, str)))
    fields: dict[str, Any] = {}
    lists: set[str] = set()
    images = 0
    for name, value in form.multi_items():
        item = LIST_NAME.fullmatch(name)
        plain = item[1] if item else name
        if "[" in plain:
            plain = plain.partition("[")[0]
            if plain not in {*model.model_fields, *Request.model_fields}:
                report_ignored(plain)
                continue
            raise RequestError(plain, "A form cannot nest fields; send the value as JSON text.")
        if plain == "image":
            images += 1
            if images > 1:
                report_ignored(f"image[{images - 1}]")
                continue
        read = await _read_value(plain, value, model, limits)
        if not read and isinstance(read, str | bytes) and plain not in ("prompt", "image"):
            report_ignored(plain)
        elif item and plain not in model.model_fields and plain in lists:
            fields[plain].append(read)
        elif plain in fields:
            raise RequestError(plain, "The field occurs more than once; send it once.")
        elif item and plain not in model.model_fields:
            lists.add(plain)
            fields[plain] = [read]
        else:
            fields[plain] = read
    return fields


async def _read_value(
    name: str, value: str | UploadFile, model: type[ImageFields], limits: Limits
) -> Any:
    if isinstance(value, UploadFile):
        read = await value.read(limits.upload_bytes + 1)
        if len(read) > limits.upload_bytes:
            message = f"The file {name} is larger than {limits.upload_bytes:,} bytes."
            raise HTTPException(413, message)
        return read
    return _parse_value(name, value) if value and name not in model.model_fields else value


def _parse_value(name: str, text: str) -> Any:
    if name in TEXT_FIELDS:
        return text
    try:
        return parse_json(text, name)
    except (ValueError, RecursionError):
        return text


def form_schema(model: type[ImageFields], json: type[ImageFields] | None = None) -> dict[str, Any]:
    """Return the OpenAPI description of a form, or of a body that is a form or JSON."""
    content = {"multipart/form-data": {"schema": model.model_json_schema()}}
    if json:
        content["application/json"] = {"schema": json.model_json_schema()}
    return {"requestBody": {"required": True, "content": content}}


async def parse_edit(incoming: Incoming) -> Edit | JsonEdit:
    """Read the body of an edit: a form, or JSON with links to images.

    Raises:
        HTTPException: 400, the body is not JSON; others as for `parse_form`.
        RequestError, RequestValidationError: see `parse_form`.
    """
    if not incoming.headers.get("content-type", "").lower().startswith("application/json"):
        return await parse_form(incoming, Edit)
    try:
        fields = await incoming.json()
    except (ValueError, RecursionError):
        raise HTTPException(400, "The body is not valid JSON.") from None
    return _validate(JsonEdit, fields)


async def parse_variation(incoming: Incoming) -> Variation:
    """Read the form of a variation."""
    return await parse_form(incoming, Variation)
