"""Protocol."""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fastapi import HTTPException
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from overpaint.errors import PictureError, RequestError
from overpaint.request import Request
from overpaint.request_fields import MAX_SEED
from overpaint.server.api.extended_fields import FieldMapping, build_request, get_field_error
from overpaint.server.api.fields import encode_data_uri
from overpaint.server.api.image_inputs import load_image
from overpaint.server.api.results import MEDIA_TYPES, moment, progress_line, result_url
from overpaint.server.http.problems import describe_error
from overpaint.server.jobs.service import Service
from overpaint.server.outbound.image_fetch import ImageSources
from overpaint.server.store.jobs import ENDED, Job
from overpaint.server.store.origins import FalOrigin

OWNER = "fal-ai"
"""Whose apps, where none of ours is called like them, are the first of ours."""


SizeName = Literal[
    "square_hd", "square", "portrait_4_3", "portrait_16_9", "landscape_4_3", "landscape_16_9"
]


SIZES: dict[SizeName, tuple[int, int]] = {
    "square_hd": (1024, 1024),
    "square": (512, 512),
    "portrait_4_3": (768, 1024),
    "portrait_16_9": (576, 1024),
    "landscape_4_3": (1024, 768),
    "landscape_16_9": (1024, 576),
}
"""Their names of sizes: width and height in pixels."""


TASKS: dict[str, tuple[str, ...]] = {
    "": (),
    "text-to-image": (),
    "image-to-image": ("image_url",),
    "inpainting": ("image_url", "mask_url"),
}
"""What may stand behind an app, and the fields that must then be given."""


STRENGTH = 0.95
"""What theirs is by default."""


CANCELED = 499
"""How the result of a request is answered that was canceled."""


BLOCKED = "content_policy_violation"
"""What it is called when every picture was flagged."""


class Side(BaseModel):
    """A size in pixels."""

    model_config = ConfigDict(extra="forbid")

    width: int
    height: int


class LoraWeight(BaseModel):
    """A LoRA."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    path: str = Field(
        min_length=1, max_length=100, description="`loras[].name`, in this server's catalogue."
    )
    scale: float = Field(default=1.0, ge=-10, le=10, description="`loras[].scale`.")


class Arguments(BaseModel):
    """The arguments of fal's SDXL apps, and which of ours they are.

    What is not named here is a field of `Request`.
    """

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    prompt: str = Field(max_length=100_000, description="`prompt`.")
    negative_prompt: str = Field(default="", max_length=100_000, description="`negative_prompt`.")
    image_url: str | None = Field(
        default=None, description="`image`: a URL, a data: URI, or an upload to /v1/files."
    )
    mask_url: str | None = Field(default=None, description="`mask`: likewise; white is repainted.")
    strength: float | None = Field(
        default=None, ge=0, le=1, description="`strength`; by default 0.95 with an image."
    )
    image_size: SizeName | Side | None = Field(
        default=None,
        description="`width` and `height`, in pixels or by a name; by default the model's own.",
    )
    num_inference_steps: int = Field(default=25, ge=1, le=1000, description="The same.")
    guidance_scale: float = Field(default=7.5, ge=0, le=50, description="The same.")
    seed: int | None = Field(default=None, ge=0, le=MAX_SEED, description="`seed`.")
    num_images: int = Field(default=1, ge=1, le=64, description="The same.")
    scheduler: str | None = Field(default=None, max_length=200, description="`sampler`.")
    loras: list[LoraWeight] = Field(
        default_factory=list[LoraWeight], max_length=32, description="`loras`."
    )
    format: Literal["png", "jpeg"] = Field(default="png", description="Of the files.")
    sync_mode: bool = Field(
        default=False, description="Pictures come inside, as data: URIs, and not as links."
    )
    enable_safety_checker: bool = Field(
        default=True, description="False is refused where the server checks every picture."
    )
    safety_checker_version: Literal["v1", "v2"] = Field(
        default="v1", description="Accepted: the server has one, or none."
    )
    expand_prompt: Literal[False] = Field(
        default=False, description="Nothing expands prompts; true is refused."
    )


OWN = frozenset(Request.model_fields) - set(Arguments.model_fields) - {"image", "mask"}
"""Fields of `Request` that come under their own names."""


def wrong(field: str, message: str, kind: str = "value_error") -> list[dict[str, Any]]:
    """What is wrong with a field, in their words."""
    return [{"loc": ["body", *_places(field)], "msg": message, "type": kind}]


def _places(field: str) -> list[str | int]:
    parts = (part for part in field.split(".") if part)
    return [int(part) if part.isdecimal() and len(part) < 10 else part for part in parts]


def error_response(error: Exception) -> JSONResponse:
    """The answer to one of `problems.HANDLED_ERRORS`."""
    status, title, detail, headers = describe_error(error)
    if isinstance(error, RequestError):
        detail = wrong(error.field, error.message)
    elif isinstance(error, PictureError) or (status == 422 and isinstance(detail, str)):
        status, detail = 422, wrong("", detail)
    elif status >= 500 and not isinstance(error, HTTPException):
        detail = f"{title}: {detail}"
    return JSONResponse({"detail": detail}, status, headers)


ERROR = {"type": "object", "required": ["detail"], "properties": {"detail": {}}}
"""The schema of an error in their words."""


@dataclass(frozen=True)
class App:
    """What a URL names.

    Attributes:
        name: `OWNER/APP`.
        model: of this server.
        needs: fields that must be given.
    """

    name: str
    model: str
    needs: tuple[str, ...]


def to_request(
    given: Arguments, sources: ImageSources, needs: Sequence[str] = ()
) -> tuple[Request, dict[str, str]]:
    """What the inputs ask for, and by which of their words what of ours was given.

    Raises:
        RequestError: they contradict each other, are unknown, missing or out of range; in their
            words.
        PictureError: a picture cannot be read.
    """
    for name in needs:
        if getattr(given, name) is None:
            raise RequestError(name, "is needed here; give it.")
    if given.mask_url is not None and given.image_url is None:
        raise RequestError("mask_url", "there is no image to repaint a part of; give it too.")
    try:
        return build_request(given, _words(given, sources), OWN, sources)
    except RequestError as error:
        raise in_their_words(error, given) from None


def in_their_words(error: RequestError, given: Arguments) -> RequestError:
    """What is wrong with a LoRA or a webhook, by the field that named it."""
    head, _, rest = error.field.partition(".")
    if head == "webhook":
        field = "fal_webhook"
    elif head == "loras":
        index, _, part = rest.partition(".")
        listed = index.isdecimal() and int(index) < len(given.loras)
        field = f"loras.{index}.{'path' if part == 'name' else part}" if listed else "prompt"
    else:
        return error
    return RequestError(field, error.message)


def _words(given: Arguments, sources: ImageSources) -> list[FieldMapping]:
    """Fields of the dialect, and the fields and values of ours that they are."""
    same = ("prompt", "negative_prompt", "num_inference_steps", "guidance_scale", "num_images")
    words: list[FieldMapping] = [(name, name, getattr(given, name)) for name in same]
    words += [(n, n, v) for n in ("seed", "strength") if (v := getattr(given, n)) is not None]
    if given.scheduler is not None:
        words.append(("scheduler", "sampler", given.scheduler))
    if given.image_size is not None:
        size = given.image_size
        sides = (size.width, size.height) if isinstance(size, Side) else SIZES[size]
        words += [("image_size", n, v) for n, v in zip(("width", "height"), sides, strict=True)]
    loras = [{"name": lora.path, "scale": lora.scale} for lora in given.loras]
    if loras:
        words.append(("loras", "loras", loras))
    if given.image_url is not None:
        words.append(("image_url", "image", load_image("image_url", given.image_url, sources)))
        defaults: dict[str, Any] = {"steps": "truncate"}
        if given.strength is None:
            defaults["strength"] = STRENGTH
        if given.mask_url is not None:
            words.append(("mask_url", "mask", load_image("mask_url", given.mask_url, sources)))
            defaults["fill"] = "original"
        chosen = given.model_extra or {}
        words += [(name, name, value) for name, value in defaults.items() if name not in chosen]
    return words


def result_of(service: Service, job: Job) -> dict[str, Any]:
    """A job's pictures in their words, and of each its seed.

    Raises:
        HTTPException, RequestError: it has none; why.
    """
    if job.state == "canceled":
        raise HTTPException(CANCELED, f"request {job.id} was canceled.")
    if job.state == "failed" and job.flagged:
        raise HTTPException(422, wrong("prompt", job.error or "", BLOCKED))
    if job.state == "failed":
        raise get_field_error(job) or HTTPException(
            500, wrong("", job.error or "it failed.", "error")
        )
    if job.state not in ENDED or job.result is None:
        raise HTTPException(400, "Request is still in progress")
    shown: list[dict[str, Any]] = []
    origin = job.origin_as(FalOrigin)
    made = zip(job.result["files"], job.result["seeds"], job.result["sizes"], strict=True)
    for name, seed, (width, height) in made:
        kind = MEDIA_TYPES[name.rpartition(".")[2]]
        if origin.sync_mode:
            url = encode_data_uri((service.files.results(job.id) / name).read_bytes(), kind)
        else:
            url = result_url(service, job, f"{origin.base_url}/api/jobs/{job.id}/results", name)
        own = {"url": url, "content_type": kind, "width": width, "height": height}
        shown.append(own | {"seed": seed})
    return {
        "images": shown,
        "timings": {"inference": _seconds(job)},
        "seed": job.request["seed"],
        "has_nsfw_concepts": [False] * len(shown) + [True] * len(job.flagged),
        "prompt": origin.prompt,
    }


def _seconds(job: Job) -> float:
    return (job.ended or 0.0) - (job.started or job.ended or 0.0)


def links_of(job: Job) -> dict[str, str]:
    """A job, and where what concerns it is."""
    origin = job.origin_as(FalOrigin)
    own = f"{origin.base_url}/fal/queue/{origin.app}/requests/{job.id}"
    return {
        "request_id": job.id,
        "response_url": own,
        "status_url": f"{own}/status",
        "cancel_url": f"{own}/cancel",
    }


def status_of(service: Service, job: Job, logs: bool) -> dict[str, Any]:
    """Where a job is, in their words."""
    told = links_of(job) | {"logs": lines_of(service, job) if logs else None}
    if job.state == "queued":
        ahead = service.jobs.ahead(job.id)
        return told | {"status": "IN_QUEUE", "queue_position": ahead[0] if ahead else 0}
    if job.state not in ENDED:
        return told | {"status": "IN_PROGRESS"}
    told |= {"status": "COMPLETED", "metrics": {"inference_time": _seconds(job)}}
    if job.state == "failed":
        kind = BLOCKED if job.flagged else "bad_request" if get_field_error(job) else "error"
        told |= {"error": job.error, "error_type": kind}
    elif job.state == "canceled":
        told |= {"error": "it was canceled.", "error_type": "client_cancelled"}
    return told


def lines_of(service: Service, job: Job) -> list[dict[str, Any]]:
    """What their logs say of a job: notices, and how far it is."""
    history = service.jobs.history(job.id)
    said = [(each.at, str(each.body["message"])) for each in history if each.kind == "notice"]
    if step := service.feed.progress(job.id).step:
        said.append((time.time(), progress_line(step.done, step.total)))
    return [
        {"timestamp": moment(at), "level": "INFO", "source": "USER", "message": message}
        for at, message in said
    ]


async def webhook_payload(service: Service, job: Job) -> dict[str, Any]:
    """What is posted to a webhook."""
    body: dict[str, Any] = {"request_id": job.id, "gateway_request_id": job.id}
    try:
        payload = await asyncio.to_thread(result_of, service, job)
    except (HTTPException, RequestError) as error:
        payload = json.loads(bytes(error_response(error).body))
        return {**body, "status": "ERROR", "error": job.error or "canceled", "payload": payload}
    return {**body, "status": "OK", "payload": payload}
