"""OpenAI's images API, as its clients speak it.

A model here is one of this server's; names of OpenAI's own stand for the first. Beside the fields
of the dialect every field of `Request` is understood under its own name, which their clients send
by `extra_body`.
"""

from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, HTTPException, Response
from fastapi import Request as Incoming
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.background import BackgroundTask
from starlette.datastructures import UploadFile

from overpaint.errors import ModelNotFoundError, RequestError, did_you_mean
from overpaint.request import Request
from overpaint.server.api.deps import IdempotencyKey, ServiceDep, get_base_url
from overpaint.server.api.event_stream import event_stream_response
from overpaint.server.api.extended_fields import find_extra_urls, translate_error
from overpaint.server.api.fields import hash_body, run_in_reader_pool
from overpaint.server.api.openai.protocol import (
    ERROR,
    OWN,
    TEXTS,
    Asked,
    Edit,
    Generation,
    Variation,
    described,
    error_response,
    failure,
    model_of,
    output_of,
    shown,
    to_request,
    unfinished,
)
from overpaint.server.api.openai.stream import streamed
from overpaint.server.api.results import EVENT_STREAM_RESPONSES, wait_until_ended
from overpaint.server.api.route import make_route_class
from overpaint.server.http.auth import KeyDep
from overpaint.server.http.json_body import check_json_size, parse_json
from overpaint.server.http.problems import error_responses
from overpaint.server.jobs.service import Service
from overpaint.server.outbound.image_fetch import ImageSources
from overpaint.server.settings import Limits
from overpaint.server.store.jobs import ENDED
from overpaint.server.store.origins import OpenAIOrigin

# Errors


router = APIRouter(
    prefix="/v1",
    tags=["OpenAI"],
    route_class=make_route_class(error_response),
    responses=error_responses(ERROR),
)


# From their words to ours


A = TypeVar("A", bound=Asked)


async def from_form(incoming: Incoming, kind: type[A]) -> A:
    """The fields of a form.

    What is empty was not given. Values of `Request`'s fields are JSON where they are not text.

    Raises:
        HTTPException: 400, 413, 415, it is no form, or too large.
        RequestError: a field comes more than once.
        RequestValidationError: a field is missing or wrong.
    """
    if not incoming.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise HTTPException(415, "send a form: Content-Type: multipart/form-data.")
    limits: Limits = incoming.app.state.settings.limits
    given: dict[str, list[Any]] = {}
    async with incoming.form(max_files=64) as form:
        check_json_size(
            limits, *(value for _, value in form.multi_items() if isinstance(value, str))
        )
        for name, value in form.multi_items():
            plain = name.removesuffix("[]")
            if "[" in plain:
                plain = plain.partition("[")[0]
                raise RequestError(plain, "in a form give it as a text of JSON.")
            if isinstance(value, UploadFile):
                read = await value.read(limits.upload_bytes + 1)
                if len(read) > limits.upload_bytes:
                    raise HTTPException(
                        413, f"{plain} is larger than {limits.upload_bytes:,} bytes."
                    )
            elif not value and plain != "prompt":
                continue
            else:
                read = value if plain in kind.model_fields else _decoded(plain, value)
            given.setdefault(name, []).append(read)
    fields: dict[str, Any] = {}
    for name, values in given.items():
        plain = name.removesuffix("[]")
        listed = name.endswith("[]") and plain != "image"
        if plain in fields or (len(values) > 1 and not listed):
            message = "one picture is repainted at a time." if plain == "image" else "give it once."
            raise RequestError(plain, f"came more than once; {message}")
        fields[plain] = values if listed else values[0]
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None


def _decoded(name: str, text: str) -> Any:
    if name in TEXTS:
        return text
    try:
        return parse_json(text)
    except (ValueError, RecursionError):
        return text


# From our words to theirs


async def make(
    service: Service, key: str, incoming: Incoming, given: Asked, token: str | None
) -> Response:
    """Accept what is asked for, and answer when it has ended, or as it goes on.

    It ends with the client's connection: nobody could ask for it later. With an idempotency key
    or a webhook somebody can.
    """

    def read(sources: ImageSources) -> tuple[Request, OpenAIOrigin]:
        request, theirs = to_request(given, sources)
        drawn = given if isinstance(given, Generation) else None
        origin = OpenAIOrigin(
            output=output_of(given, request),
            base_url=get_base_url(incoming),
            field_names=theirs,
            response_format=given.response_format or "b64_json",
            output_format=(drawn and drawn.output_format) or "png",
            quality=(drawn and drawn.quality) or "auto",
        )
        return request, origin

    body = await hash_body(token, given)
    job = await service.repeated(key, token, body)
    if job is None:
        urls = await run_in_reader_pool(find_extra_urls, given, OWN)
        async with service.sources(key, urls) as sources:
            request, origin = await run_in_reader_pool(read, sources)
        try:
            job = await service.submit(
                request,
                model=model_of(service, given.model),
                key=key,
                origin=origin,
                webhook=given.webhook,
                webhook_events=("completed",),
                token=token,
                body=body,
            )
        except RequestError as error:
            raise translate_error(error, origin.field_names) from None
    headers = {"X-Request-ID": job.id}
    kept = token is not None or given.webhook is not None
    if isinstance(given, Generation) and given.stream:
        kind = "image_edit" if isinstance(given, Edit) else "image_generation"
        return event_stream_response(
            streamed(service, job, kind, given.partial_images or 0),
            headers=headers,
            background=None if kept else BackgroundTask(service.cancel, job.id),
        )
    job = await wait_until_ended(service, job, incoming)
    if job.state not in ENDED:
        if not kept:
            await service.cancel(job.id)
        raise unfinished(job)
    if error := failure(job):
        raise error
    return JSONResponse(await shown(service, job), headers=headers)


# Routes


@router.post("/images/generations", responses=EVENT_STREAM_RESPONSES)
async def generate(
    body: Generation,
    incoming: Incoming,
    service: ServiceDep,
    key: KeyDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Make pictures of a prompt."""
    return await make(service, key, incoming, body, idempotency_key)


def form_of(kind: type[Asked]) -> dict[str, Any]:
    """What the API's description says of a form."""
    content = {"multipart/form-data": {"schema": kind.model_json_schema()}}
    return {"requestBody": {"required": True, "content": content}}


async def edit_of(incoming: Incoming) -> Edit:
    """The form of an edit."""
    return await from_form(incoming, Edit)


async def variation_of(incoming: Incoming) -> Variation:
    """The form of a variation."""
    return await from_form(incoming, Variation)


@router.post("/images/edits", responses=EVENT_STREAM_RESPONSES, openapi_extra=form_of(Edit))
async def edit(
    incoming: Incoming,
    service: ServiceDep,
    key: KeyDep,
    body: Annotated[Edit, Depends(edit_of)],
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Repaint a picture."""
    return await make(service, key, incoming, body, idempotency_key)


@router.post("/images/variations", openapi_extra=form_of(Variation))
async def vary(
    incoming: Incoming,
    service: ServiceDep,
    key: KeyDep,
    body: Annotated[Variation, Depends(variation_of)],
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Repaint a picture without a prompt."""
    return await make(service, key, incoming, body, idempotency_key)


@router.get("/models/{name}")
async def model(name: str, service: ServiceDep, key: KeyDep) -> dict[str, Any]:
    """A model."""
    if name not in service.settings.models:
        raise ModelNotFoundError(
            f"no model {name!r} here.{did_you_mean(name, service.settings.models)}"
        )
    return described(name)
