"""Fields."""

import asyncio
import base64
import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Annotated, Literal, ParamSpec, TypeVar
from urllib.parse import unquote_to_bytes

from fastapi import HTTPException
from fastapi import Request as Incoming
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
from overpaint.server.jobs.service import Service
from overpaint.server.store.files import LARGEST_UPLOAD

MAX_PERCENT_ENCODED_CHARS = 2**20
"""Characters of a data: URI with percent signs, which take seventy times as many bytes to read."""


READER_POOL = ThreadPoolExecutor(2, "overpaint-read")
"""Threads that look at the pictures of requests, which may take seconds: in asyncio's own, whoever
sends many would have all others wait for their jobs."""


P = ParamSpec("P")


T = TypeVar("T")


WebhookUrl = Annotated[str | None, Field(max_length=2048, pattern="^https?://[^/]")]


WebhookEvent = Literal["start", "output", "logs", "completed"]


def decode_base64(field: str, text: str) -> bytes:
    """The bytes of a field.

    Raises:
        RequestError: it is not base64.
    """
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:  # of its alphabet or padding, or beyond ASCII
        raise RequestError(field, f"is not base64: {error}.") from None


def decode_data_uri(field: str, uri: str) -> bytes:
    """The bytes of a field that is a data: URI (RFC 2397).

    Raises:
        RequestError: it is none, or not base64 though it is large.
    """
    head, comma, body = uri.partition(",")
    if not head.startswith("data:") or not comma:
        raise RequestError(field, f"{quote_value(uri)} is no data: URI.")
    if head.endswith(";base64"):
        return decode_base64(field, body)
    if len(body) > MAX_PERCENT_ENCODED_CHARS:
        raise RequestError(field, "is a large data: URI without base64; encode it by that.")
    return unquote_to_bytes(body)


async def run_in_reader_pool(read: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """As `asyncio.to_thread`, for what looks at the pictures of a request: by `READER_POOL`."""
    call = partial(copy_context().run, read, *args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(READER_POOL, call)


async def hash_body(token: str | None, given: BaseModel, *beside: str) -> str:
    """What tells a body from all others, for an idempotency key; "" where there is none.

    Args:
        token: the idempotency key.
        given: the body.
        beside: what else makes a request another one.
    """

    def taken() -> str:
        # Nothing is refused here: halves of surrogate pairs and NaN are, by their names, later.
        try:
            text = json.dumps([type(given).__name__, *beside, dict(given)], default=_to_json)
        except RecursionError:
            raise RequestError("request", "is nested deeper than any field of it.") from None
        return hashlib.sha256(text.encode()).hexdigest()

    return "" if token is None else await run_in_reader_pool(taken)


def _to_json(value: object) -> object:
    """What is no JSON, as something that is."""
    match value:
        case BaseModel():
            return dict(value)
        case bytes():
            return ["bytes", hashlib.sha256(value).hexdigest()]
        case _:
            return str(value)  # times


async def get_upload_or_404(service: Service, name: str) -> bytes:
    """An upload. Whoever names it may have it: its name is the hash of what it holds.

    Raises:
        HTTPException: 404, it is not there, or no hash.
    """
    try:
        return await asyncio.to_thread(service.files.get, name)
    except (PictureError, StoreError) as error:
        raise HTTPException(404, str(error)) from None


def with_checked_mask(request: Request) -> Request:
    """The request, if its mask is of its image's size.

    Raises:
        RequestError: it is not.
    """
    if request.image and request.mask:
        check_mask_size(request.image, request.mask)
    return request


def check_mask_size(image: Picture, mask: Picture) -> None:
    """Make sure that a mask is of an image's size.

    Raises:
        RequestError: it is not.
    """
    try:
        codec.check_mask_size(mask, codec.upright_size(image))
    except PictureError as error:
        raise RequestError("mask", str(error)) from None


def encode_data_uri(data: bytes, media_type: str) -> str:
    """A file as a data: URI."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


async def read_upload(incoming: Incoming) -> bytes:
    """A body, of which no more is read than may be.

    Raises:
        HTTPException: 413, it is too large.
    """
    parts, size = list[bytes](), 0
    async for part in incoming.stream():
        size += len(part)
        if size > LARGEST_UPLOAD:
            raise HTTPException(413, f"the body is larger than {LARGEST_UPLOAD:,} bytes.")
        parts.append(part)
    return b"".join(parts)
