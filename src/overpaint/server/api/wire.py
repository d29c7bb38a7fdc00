"""What all wire formats share: who asks, uploads, and errors as RFC 9457 tells them."""

import asyncio
import base64
import errno
import hashlib
import json
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Annotated, Any, Literal, ParamSpec, TypeVar
from urllib.parse import unquote_to_bytes

from fastapi import Depends, FastAPI, Header, HTTPException, Response
from fastapi import Request as Incoming
from fastapi.dependencies.models import Dependant
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field
from python_multipart.multipart import parse_options_header
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException as StarletteHTTPException

from overpaint.errors import (
    LONGEST_NAME,
    FormatError,
    IdempotencyError,
    ModelError,
    OverpaintError,
    PictureError,
    QueueFullError,
    RequestError,
    StoreError,
    shown,
)
from overpaint.imaging import images
from overpaint.request import Picture, Request
from overpaint.server.jobs.service import Service
from overpaint.server.store.api_keys import Keys, digest_of
from overpaint.server.store.files import LARGEST_UPLOAD
from overpaint.server.store.jobs import ENDED, Job
from overpaint.server.telemetry.logs import SHOWN

MEDIA_TYPES = {"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp"}
"""Of pictures, by what their names end with."""

MOST_SAID = 100_000
"""Brackets and commas in JSON: what is between them takes dozens of times the memory that it came
in. Prompts may have tens of thousands; base64, which is most of a large body, has none."""

MOST_WRONG = 100
"""Things that a request is told are wrong with it."""

LARGEST_QUOTED = 2**20
"""Characters of a data: URI with percent signs, which take seventy times as many bytes to read."""

LARGE = 2**18
"""Bytes of JSON from which on it is read beside the loop, which all others wait for."""

READERS = ThreadPoolExecutor(2, "overpaint-read")
"""Threads that look at the pictures of requests, which may take seconds: in asyncio's own, whoever
sends many would have all others wait for their jobs."""

P = ParamSpec("P")
T = TypeVar("T")

LISTENERS = 1024
"""Clients of a key that may listen to jobs at once."""

LOOK = 5.0
"""Seconds after which it is looked whether a client that waits is still there."""

RETRY = 5
"""Seconds until a client should try again, at least."""


def service_of(incoming: Incoming) -> Service:
    """The running server."""
    service: Service = incoming.app.state.service
    return service


def base_of(incoming: Incoming) -> str:
    """Where the client reaches this server."""
    return str(incoming.base_url).rstrip("/")


def key_of(incoming: Incoming) -> str:
    """On whose account a request is: the digest of its key, or "" where none is asked for.

    Raises:
        HTTPException: 401, the key is missing or unknown.
        SQLAlchemyError: the store, which knows, is out of order.
    """
    keys: Keys = incoming.app.state.keys
    if not keys.demanded():
        return ""
    alone = incoming.headers.get("x-api-key")
    default = f"key {alone}" if alone else ""
    scheme, _, given = incoming.headers.get("authorization", default).partition(" ")
    if scheme.lower() == "basic":
        given = _password(given)
    digest = digest_of(given.strip())
    if scheme.lower() in ("bearer", "token", "key", "basic") and keys.knows(digest):
        incoming.state.key = digest[:SHOWN]
        return digest
    raise HTTPException(
        401,
        "give a key of this server's: `Authorization: Bearer KEY`.",
        {"WWW-Authenticate": "Bearer"},
    )


def _password(given: str) -> str:
    """Of HTTP's Basic credentials; "" where they are none."""
    try:
        return base64.b64decode(given, validate=True).decode().partition(":")[2]
    except ValueError:
        return ""


def viewer_of(
    incoming: Incoming,
    name: str,
    file: str,
    expires: int | None = None,
    signature: str | None = None,
) -> str | None:
    """Who looks at a picture: as `key_of`, or None for whoever has a link to it.

    Raises:
        HTTPException: 401, as `key_of`; 403, the link is none of ours, or has expired.
    """
    if expires is None and signature is None:
        return key_of(incoming)
    if service_of(incoming).links.fits(name, file, expires or 0, signature or ""):
        return None
    raise HTTPException(403, "the link is wrong or has expired; ask for another.")


async def found(service: Service, key: str | None, name: str) -> Job:
    """A job of a key, or of any (None); others' are not there.

    Raises:
        HTTPException: 404, there is none.
    """
    job = await asyncio.to_thread(service.jobs.get, name)
    if job is None or key not in (None, job.key):
        raise HTTPException(404, f"there is no job {name}.")
    return job


async def awaited(service: Service, job: Job, incoming: Incoming) -> Job:
    """A job at its end; before that, if the client goes away or the server ends.

    Raises:
        HTTPException: 404, it was forgotten meanwhile.
    """
    while job.state not in ENDED and not service.drained and not await incoming.is_disconnected():
        now = await service.ended(job.id, LOOK)
        if now is None:
            raise HTTPException(404, f"job {job.id} was forgotten.")
        job = now
    return job


async def painted(incoming: Incoming, key: str | None, name: str, file: str) -> FileResponse:
    """A picture that a job made; `key` as of `found`.

    Raises:
        HTTPException: 404, it made none by that name; 410, it is not kept any more; 416, too many
            parts of it are asked for.
    """
    service = service_of(incoming)
    job = await found(service, key, name)
    if file not in (job.result or {}).get("files", ()):
        raise HTTPException(404, f"job {name} made no {file}.")
    path = service.files.results(name) / file
    if not await asyncio.to_thread(path.exists):
        raise HTTPException(410, f"{file} of job {name} is not kept any more.")
    if incoming.headers.get("range", "").count(",") >= FileResponse.max_ranges:
        raise HTTPException(416, f"ask for {FileResponse.max_ranges} ranges at most.")
    headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": "private, max-age=604800"}
    return FileResponse(path, media_type=MEDIA_TYPES[path.suffix[1:]], headers=headers)


async def listening(
    incoming: Incoming, key: Annotated[str, Depends(key_of)]
) -> AsyncGenerator[None]:
    """Count somebody who listens to a job, until they do not any more.

    Raises:
        HTTPException: 429, as many of this key listen as may.
    """
    listeners: Counter[str] = incoming.app.state.listeners
    if listeners[key] >= LISTENERS:
        message = f"{LISTENERS:,} clients listen already; end some of their streams."
        raise HTTPException(429, message, {"Retry-After": str(RETRY)})
    listeners[key] += 1
    try:
        yield
    finally:
        listeners[key] -= 1


LISTENS = [Depends(listening)]
"""For routes that tell of a job for as long as it goes on."""

Serves = Annotated[Service, Depends(service_of)]
Key = Annotated[str, Depends(key_of)]
Viewer = Annotated[str | None, Depends(viewer_of)]
Webhook = Annotated[str | None, Field(max_length=2048, pattern="^https?://[^/]")]
Event = Literal["start", "output", "logs", "completed"]
LastEvent = Annotated[int, Header(alias="Last-Event-ID", ge=0, le=2**31 - 1)]
"""The number of the event behind which a story goes on."""

Token = Annotated[str | None, Header(alias="Idempotency-Key", max_length=256)]


def link(service: Service, job: Job, path: str, file: str) -> str:
    """A link to a job's picture under `path`, signed if the job is of a key."""
    return f"{path}/{file}" + (f"?{service.links.query(job.id, file)}" if job.key else "")


def from_base64(field: str, text: str) -> bytes:
    """The bytes of a field.

    Raises:
        RequestError: it is not base64.
    """
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:  # of its alphabet or padding, or beyond ASCII
        raise RequestError(field, f"is not base64: {error}.") from None


def from_data_uri(field: str, uri: str) -> bytes:
    """The bytes of a field that is a data: URI (RFC 2397).

    Raises:
        RequestError: it is none, or not base64 though it is large.
    """
    head, comma, body = uri.partition(",")
    if not head.startswith("data:") or not comma:
        raise RequestError(field, f"{shown(uri)} is no data: URI.")
    if head.endswith(";base64"):
        return from_base64(field, body)
    if len(body) > LARGEST_QUOTED:
        raise RequestError(field, "is a large data: URI without base64; encode it by that.")
    return unquote_to_bytes(body)


async def read_beside(read: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """As `asyncio.to_thread`, for what looks at the pictures of a request: by `READERS`."""
    call = partial(copy_context().run, read, *args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(READERS, call)


async def fingerprint(token: str | None, given: BaseModel, *beside: str) -> str:
    """What tells a body from all others, for an idempotency key; "" where there is none.

    Args:
        token: the idempotency key.
        given: the body.
        beside: what else makes a request another one.
    """

    def taken() -> str:
        # Nothing is refused here: halves of surrogate pairs and NaN are, by their names, later.
        try:
            text = json.dumps([type(given).__name__, *beside, dict(given)], default=_inner)
        except RecursionError:
            raise RequestError("request", "is nested deeper than any field of it.") from None
        return hashlib.sha256(text.encode()).hexdigest()

    return "" if token is None else await read_beside(taken)


def _inner(value: object) -> object:
    """What is no JSON, as something that is."""
    match value:
        case BaseModel():
            return dict(value)
        case bytes():
            return ["bytes", hashlib.sha256(value).hexdigest()]
        case _:
            return str(value)  # times


async def uploaded(service: Service, name: str) -> bytes:
    """An upload. Whoever names it may have it: its name is the hash of what it holds.

    Raises:
        HTTPException: 404, it is not there, or no hash.
    """
    try:
        return await asyncio.to_thread(service.files.get, name)
    except (PictureError, StoreError) as error:
        raise HTTPException(404, str(error)) from None


def with_fitting_mask(request: Request) -> Request:
    """The request, if its mask is of its image's size.

    Raises:
        RequestError: it is not.
    """
    if request.image and request.mask:
        fits(request.image, request.mask)
    return request


def fits(image: Picture, mask: Picture) -> None:
    """Make sure that a mask is of an image's size.

    Raises:
        RequestError: it is not.
    """
    try:
        images.check_mask(mask, images.upright_size(image))
    except PictureError as error:
        raise RequestError("mask", str(error)) from None


def data_uri(data: bytes, media_type: str) -> str:
    """A file as a data: URI."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


async def upload(incoming: Incoming) -> bytes:
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


STATUS: tuple[tuple[type[Exception], int, str, str], ...] = (
    (QueueFullError, 429, "the queue is full", "queue_full"),
    (IdempotencyError, 422, "the idempotency key was used for something else", "idempotency"),
    (RequestError, 422, "the request cannot be carried out", "request"),
    (FormatError, 415, "a picture is of a format that is not read", "picture"),
    (PictureError, 422, "a picture cannot be used", "picture"),
    (ModelError, 422, "a model cannot be used", "model"),
    (StoreError, 422, "a name is wrong", "name"),
    (OverpaintError, 500, "this went wrong", "defect"),
    (SQLAlchemyError, 503, "the job store is out of order", "store"),
)
"""How errors are answered, and the reason that is counted: the first that fits."""

BY_STATUS = {
    400: "request",
    401: "unauthorized",
    406: "request",
    413: "body_too_large",
    415: "encoding",
    422: "request",
}
"""Reasons of errors that are raised as a status. Others refuse no work: 404, 409, 410 …"""

REASONS = sorted(
    {"forbidden_host", "forbidden_origin", "disk_full", "disk", *BY_STATUS.values()}
    | {reason for *_, reason in STATUS}
)
"""All that are counted: those of the doors, of disks, and the above."""


FULL = (errno.ENOSPC, errno.EDQUOT)
"""What systems say of disks that are full."""


REFUSALS = {
    400: "the body cannot be read, or the server does not go by that name",
    401: "a key is missing or unknown",
    403: "the link, or the page that asks, is refused",
    404: "it is not there, or not yours",
    408: "the body came too slowly",
    409: "it is not in the state for that",
    410: "it is not kept any more",
    413: "the body is too large",
    415: "the body, or a picture, is of another kind",
    416: "too many parts of a picture are asked for",
    422: "the request cannot be carried out",
    429: "the queue is full",
    503: "the server, its store or its disk is out of order",
    507: "the disk is full",
}
"""Statuses that any route may answer with, and why."""

PROBLEM = {
    "type": "object",
    "required": ["title", "status", "detail"],
    "properties": {"title": {"type": "string"}, "status": {"type": "integer"}, "detail": {}},
}
"""The schema of `problem`."""


def refusals(
    schema: Mapping[str, Any], media_type: str = "application/json"
) -> dict[int | str, dict[str, Any]]:
    """What the API's description says of `REFUSALS`, by the schema of a dialect's errors."""
    content = {media_type: {"schema": schema}}
    return {status: {"description": why, "content": content} for status, why in REFUSALS.items()}


PROBLEMS = refusals(PROBLEM, "application/problem+json")
EVENT_STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}
PICTURES: dict[int | str, dict[str, Any]] = {
    200: {"content": {kind: {} for kind in MEDIA_TYPES.values()}}
}


def problem(status: int, title: str, detail: Any, headers: Any = None) -> JSONResponse:
    """An error as `application/problem+json`."""
    body = {"title": title, "status": status, "detail": detail}
    return JSONResponse(body, status, headers, media_type="application/problem+json")


ANSWERED = (
    OverpaintError,
    SQLAlchemyError,
    OSError,
    StarletteHTTPException,
    RequestValidationError,
)
"""Errors that `answer` knows an answer to."""


class Strict(Incoming):
    """A request whose JSON must say each thing once: else all but the last would be dropped."""

    async def json(self) -> Any:
        """What the body says.

        Raises:
            HTTPException: 400, a name comes twice, or it says more than `MOST_SAID` things.
            ValueError, RecursionError: it is no JSON, or none that is read.
        """
        body = await self.body()
        if len(body) < LARGE:
            return from_json(body)
        return await asyncio.to_thread(from_json, body)


def from_json(text: str | bytes) -> Any:
    """What JSON says, each thing once.

    Raises:
        HTTPException: 400, a name comes twice, or it says more than `MOST_SAID` things.
        ValueError, RecursionError: it is no JSON, or none that is read.
    """
    check_said(text)
    return json.loads(text, object_pairs_hook=_once)


def check_said(*texts: str | bytes) -> None:
    """Make sure that JSON, in one request, says no more than `MOST_SAID` things.

    Raises:
        HTTPException: 400, it says more.
    """
    parts = [text.encode(errors="replace") if isinstance(text, str) else text for text in texts]
    if sum(part.count(sign) for part in parts for sign in (b"{", b"[", b",")) > MOST_SAID:
        raise HTTPException(400, f"JSON has {MOST_SAID:,} brackets and commas at most.")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, count in Counter(n for n, _ in pairs).items() if count > 1)
        raise HTTPException(400, f"{twice[:100]!r} comes twice in one object; give it once.")
    return found


def telling(answered: Callable[[Exception], Response]) -> type[APIRoute]:
    """A kind of route that is strict, and tells what is wrong in a dialect's own words.

    Args:
        answered: the answer to one of `ANSWERED`.
    """

    class Telling(APIRoute):
        def get_route_handler(self) -> Callable[[Incoming], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()
            demanding = self.body_field is not None and _demands_key(self.dependant)

            async def handled(incoming: Incoming) -> Response:
                try:
                    if demanding:
                        await _check_key(incoming)
                    await _check_charset(incoming)
                    return await handle(Strict(incoming.scope, incoming.receive))
                except ANSWERED as error:
                    return tell(incoming, error)

            return handled

    def tell(incoming: Incoming, error: Exception) -> Response:
        told = _brief(error)
        _note(incoming, told)
        answer = answered(told)
        if answer.status_code < 500:  # of others the log says where they come from
            _let_go(error)
            _let_go(told)
        return answer

    return Telling


def _demands_key(dependant: Dependant) -> bool:
    """Whether a route is for clients with a key."""
    return dependant.call is key_of or any(map(_demands_key, dependant.dependencies))


async def _check_charset(incoming: Incoming) -> None:
    """Refuse texts that are not UTF-8: readers would obey, and some take for ever or fail.

    Raises:
        HTTPException: 415, they are not.
    """
    _, options = parse_options_header(incoming.headers.get("content-type", ""))
    charset = options.get(b"charset", b"").decode("latin-1").strip("'\" ").lower()
    if charset not in ("", "utf-8", "utf8", "us-ascii"):
        await _hear_out(incoming)
        raise HTTPException(415, f"the charset {charset[:LONGEST_NAME]!r} is not read; send UTF-8.")


async def _check_key(incoming: Incoming) -> None:
    """Make sure of a client before its body is kept and read, as FastAPI does first of all.

    Raises:
        HTTPException, SQLAlchemyError: as `key_of`.
    """
    try:
        await asyncio.to_thread(key_of, incoming)
    except HTTPException:
        await _hear_out(incoming)
        raise


async def _hear_out(incoming: Incoming) -> None:
    """Let a client say all, before which it hears no answer, and keep nothing of it."""
    async for _ in incoming.stream():
        pass


def _brief(error: Exception) -> Exception:
    """An error as it is answered: the first of many things that are wrong; the beginning of names.

    Forms of too many parts are too large: 413. Starlette says 400, as of broken ones.
    """
    if isinstance(error, StarletteHTTPException) and str(error.detail).startswith("Too many "):
        error.status_code = 413
    if isinstance(error, RequestValidationError):
        wrong = [
            {
                **each,
                "loc": tuple(p[:LONGEST_NAME] if isinstance(p, str) else p for p in each["loc"]),
            }
            for each in error.errors()[:MOST_WRONG]
        ]
        return RequestValidationError(wrong, body=error.body)
    return error


def _let_go(error: BaseException | None) -> None:
    """Forget where an error came from.

    Else what was sent, which frames there hold, stays with it until garbage is collected.
    """
    while error is not None:
        error.__traceback__ = None
        error = error.__context__


def plain(error: Exception) -> JSONResponse:
    """One of `ANSWERED` as a problem."""
    return problem(*answer(error))


def answer(error: Exception) -> tuple[int, str, Any, Mapping[str, str] | None]:
    """How one of `ANSWERED` is answered: the status, a title, what is wrong, and headers."""
    match error:
        case StarletteHTTPException():
            return error.status_code, "refused", error.detail, error.headers
        case RequestValidationError():
            wrong = [
                {"loc": list(e["loc"]), "msg": e["msg"], "type": e["type"]} for e in error.errors()
            ]
            return 422, "the request cannot be carried out", wrong, None
        case OSError():
            full = error.errno in FULL
            title = "the disk is full" if full else "the disk is out of order"
            return 507 if full else 503, title, "nothing was accepted; try again later.", None
        case _:
            status, title, _ = _answer_of(error)
    if isinstance(error, SQLAlchemyError):
        return status, title, "try again later.", {"Retry-After": str(RETRY)}
    headers = None
    if isinstance(error, QueueFullError):
        headers = {"Retry-After": str(max(RETRY, min(3600, round(error.seconds / 2))))}
    return status, title, str(error), headers


def _answer_of(error: Exception) -> tuple[int, str, str]:
    """The row of `STATUS`, less its type."""
    return next(row[1:] for row in STATUS if isinstance(error, row[0]))


def reason_of(error: Exception) -> str | None:
    """Why one of `ANSWERED` refuses work, in a word that metrics may have as a label."""
    match error:
        case StarletteHTTPException():
            return BY_STATUS.get(error.status_code)
        case RequestValidationError():
            return "request"
        case OSError():
            return "disk_full" if error.errno in FULL else "disk"
        case _:
            return _answer_of(error)[2]


def _note(incoming: Incoming, error: Exception) -> None:
    """Leave what was wrong to those that count it and write of it."""
    incoming.state.refused = reason_of(error)
    if not isinstance(error, StarletteHTTPException):
        incoming.state.error = error


def answer_errors(app: FastAPI) -> None:
    """Have every error answered as a problem."""

    async def told(incoming: Incoming, error: Exception) -> JSONResponse:
        _note(incoming, error)
        return plain(error)

    for kind in ANSWERED:
        app.add_exception_handler(kind, told)
