"""Fields and bodies that several dialects read: webhooks, base64, uploads, fingerprints."""

import asyncio
import base64
import hashlib
import json
import re
from collections.abc import Collection, Mapping
from io import BytesIO
from typing import Annotated, Any, Literal
from urllib.parse import unquote_to_bytes

from fastapi import HTTPException
from fastapi import Request as Incoming
from PIL import Image, ImageOps
from pydantic import BaseModel, Field

from overpaint.errors import (
    PictureError,
    RequestError,
    StoreError,
    quote_value,
)
from overpaint.imaging import codec
from overpaint.picture import Picture
from overpaint.request import Request
from overpaint.server.http.threads import run_in_picture_thread
from overpaint.server.jobs.service import Service
from overpaint.server.settings import Limits

MAX_PERCENT_ENCODED_CHARS = 2**20
"""Largest length of a percent-encoded data: URI. Decoding takes 70 times its size in memory."""


NO_NUL = r"^[^\x00]*$"
"""Pattern of texts without NUL characters, which Postgres does not store."""


WHITESPACE = re.compile("[ \t\r\n]+")
"""Spaces and line ends, which encoders of mail (RFC 2045) put into base64."""


SIZE_PATTERN = re.compile(r"(\d{1,5})[xX*](\d{1,5})")
"""Width and height in pixels, such as "1024x768"."""


WebhookUrl = Annotated[str | None, Field(max_length=2048, pattern="^https?://[^/]")]
"""The http or https URL that receives webhooks."""


WebhookEvent = Literal["start", "output", "logs", "completed"]
"""Events of a job that webhooks report."""


def none_if_empty(value: Any) -> Any:
    """Return None for an empty query parameter."""
    return value or None


def parse_preferences(header: str | None) -> dict[str, str]:
    """Parse a `Prefer` header (RFC 7240).

    Returns:
        Values by the names of the preferences, both in lower case; "" without a value.
    """
    parts = (part.partition("=") for part in re.split("[,;]", header or ""))
    return {name.strip().lower(): value.strip().strip('"').lower() for name, _, value in parts}


def decode_base64(field: str, text: str) -> bytes:
    """Decode a field that contains base64, with or without line ends.

    Raises:
        RequestError: the text is not base64.
    """
    try:
        return base64.b64decode(WHITESPACE.sub("", text), validate=True)
    except ValueError as error:  # The alphabet or the padding is wrong.
        raise RequestError(field, f"The text is not base64: {error}.") from None


def decode_data_uri(field: str, uri: str) -> bytes:
    """Decode a field that contains a data: URI (RFC 2397).

    Raises:
        RequestError: the text is not a data: URI, or is large and not base64.
    """
    head, comma, body = uri.partition(",")
    if not head.startswith("data:") or not comma:
        raise RequestError(field, f"{quote_value(uri)} is not a data: URI.")
    if head.endswith(";base64"):
        return decode_base64(field, body)
    if len(body) > MAX_PERCENT_ENCODED_CHARS:
        raise RequestError(
            field, "The data: URI is large and not base64. Encode its data as base64."
        )
    return unquote_to_bytes(body)


def parse_pair(field: str, text: str, pattern: re.Pattern[str], example: str) -> tuple[int, int]:
    """Return the two numbers of an input.

    Raises:
        RequestError: the input has another form, or a number is 0.
    """
    found = pattern.fullmatch(text.strip())
    if found is None or not int(found[1]) * int(found[2]):
        raise RequestError(field, f"{text!r} is not valid; write {example}, or leave it out.")
    return int(found[1]), int(found[2])


def parse_size(field: str, text: str) -> tuple[int, int]:
    """Return the width and the height that a text such as "1024x768" names, in pixels.

    Raises:
        RequestError: the text is not a size.
    """
    return parse_pair(field, text, SIZE_PATTERN, '"1024x1024"')


async def hash_body(token: str | None, given: BaseModel, *beside: str) -> str:
    """Hash a request body, for requests that repeat an idempotency key.

    Args:
        token: the idempotency key.
        given: the body.
        beside: other values that distinguish requests, such as parts of the URL.

    Returns:
        A SHA-256 in hexadecimal; "" without an idempotency key.

    Raises:
        RequestError: the body is nested too deeply.
    """

    def compute_hash() -> str:
        # Validation refuses lone surrogates and NaN later, with the name of the field.
        try:
            text = json.dumps([type(given).__name__, *beside, dict(given)], default=_to_json)
        except RecursionError:
            raise RequestError("request", "The request is nested too deeply.") from None
        return hashlib.sha256(text.encode()).hexdigest()

    return "" if token is None else await run_in_picture_thread(compute_hash)


def _to_json(value: object) -> object:
    """Replace a value that JSON cannot represent."""
    match value:
        case BaseModel():
            return dict(value)
        case bytes():
            return ["bytes", hashlib.sha256(value).hexdigest()]
        case _:
            return str(value)  # A time.


async def measure_upload_or_404(service: Service, name: str) -> int:
    """Check an upload and return its bytes' number. Any client may name it: by its SHA-256.

    Raises:
        HTTPException: 404, there is no such upload, or the name is not a SHA-256.
    """
    try:
        return await asyncio.to_thread(service.files.measure, name)
    except (PictureError, StoreError) as error:
        raise HTTPException(404, str(error)) from None


def mark_defaults(
    request: Request, given: BaseModel, sources: Mapping[str, Collection[str]]
) -> Request:
    """Return a request whose values from a dialect's defaults do not count as set.

    A few-step LoRA or checkpoint sets these fields, as it does if a native request lacks them.

    Args:
        request: the request.
        given: the fields that the client sent.
        sources: the dialect's fields that each field of `Request` comes from.
    """
    sent = given.model_fields_set
    defaults = {field for field, names in sources.items() if sent.isdisjoint(names)}
    return request.mark_set(request.model_fields_set - defaults)


def with_checked_mask(request: Request) -> Request:
    """Return the request if its mask has the size of its image.

    Raises:
        RequestError: the sizes differ.
    """
    if request.image and request.mask:
        check_mask_size(request.image, request.mask)
    return request


def check_mask_size(image: Picture, mask: Picture) -> None:
    """Check that a mask has the size of an image.

    Raises:
        RequestError: the sizes differ.
    """
    try:
        codec.check_mask_size(mask, codec.upright_size(image))
    except PictureError as error:
        raise RequestError("mask", str(error)) from None


def stretch_mask(mask: Picture, image: Picture) -> Picture:
    """Return a mask stretched to the size of an image, as the original programs do.

    Raises:
        PictureError: one of them cannot be read; see `codec.receive_picture`.
    """
    size = codec.upright_size(image)
    if codec.upright_size(mask, "the mask") == size:
        return mask
    with codec.open_upload(mask.data, "the mask") as opened:
        opened.load()
        ImageOps.exif_transpose(opened, in_place=True)
        plain = opened.convert("RGBA" if codec.extract_alpha(opened) else "L")
    return encode_mask(plain.resize(size, Image.Resampling.BILINEAR))


def encode_mask(mask: Image.Image) -> Picture:
    """Return a mask as a picture."""
    file = BytesIO()
    mask.save(file, "PNG")
    return Picture(data=file.getvalue())


def encode_base64(data: bytes) -> str:
    """Return bytes as base64 text."""
    return base64.b64encode(data).decode()


def encode_data_uri(data: bytes, media_type: str) -> str:
    """Encode a file as a data: URI."""
    return f"data:{media_type};base64,{encode_base64(data)}"


async def read_upload(incoming: Incoming) -> bytes:
    """Read a body that is an upload.

    Raises:
        HTTPException: 413, the body is larger than `Limits.upload_bytes`.
    """
    limits: Limits = incoming.app.state.settings.limits
    parts, size = list[bytes](), 0
    async for part in incoming.stream():
        size += len(part)
        if size > limits.upload_bytes:
            raise HTTPException(
                413, f"The body is larger than the limit of {limits.upload_bytes:,} bytes."
            )
        parts.append(part)
    return b"".join(parts)
