"""Replicate's and cog's words for what we do: the inputs of their SDXL model, and predictions.

Inputs mean what they mean there, but for the defects of that model: a mask without an image is
refused, a size that was given counts for image to image too, a refiner hands over at any fraction
and does not touch what the mask keeps, picture k is the same seed alone, and what is not known is
refused.
"""

import asyncio
import hashlib
import re
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Annotated, Any

from fastapi import HTTPException
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, RootModel

from overpaint.server.api.fields import WebhookEvent, WebhookUrl, encode_data_uri
from overpaint.server.api.replicate.inputs import Input
from overpaint.server.api.results import (
    MEDIA_TYPES,
    moment,
    progress_line,
    result_url,
)
from overpaint.server.jobs.service import Service
from overpaint.server.settings import DAY_S
from overpaint.server.store.jobs import Job, Said
from overpaint.server.store.origins import CogOrigin, ReplicateOrigin
from overpaint.server.store.outbox import EVENTS

STATUS = {
    "queued": "starting",
    "running": "processing",
    "succeeded": "succeeded",
    "failed": "failed",
    "canceled": "canceled",
}
"""What a job's state is called there."""

COG = "0.16.0"
"""The version of cog whose descriptions and routes ours are like."""

NSFW = "NSFW content detected. Try running it again, or try a different prompt."
"""What their SDXL model says where every picture was flagged."""


class Output(RootModel[list[Annotated[str, Field(json_schema_extra={"format": "uri"})]]]):
    """A prediction's pictures."""


def state_of(service: Service, job: Job, history: Sequence[Said]) -> dict[str, Any]:
    """What all their clients read of a prediction, but for its pictures and its id."""
    metrics: dict[str, float] = {}
    if job.ended is not None:
        metrics = {"total_time": job.ended - job.created}
        if job.started is not None:
            metrics["predict_time"] = job.ended - job.started
    return {
        "version": version_of(job.model),
        "input": inputs_of(job),
        "logs": logs(service, job, history),
        "error": NSFW if job.state == "failed" and job.flagged else job.error,
        "status": STATUS[job.state],
        "created_at": moment(job.created),
        "started_at": moment(job.started),
        "completed_at": moment(job.ended),
        "metrics": metrics,
    }


def inputs_of(job: Job) -> Mapping[str, Any]:
    """Return a prediction's inputs; jobs of other dialects have none."""
    match job.origin:
        case ReplicateOrigin(input=given) | CogOrigin(input=given):
            return given
        case _:
            return {}


def pictures(service: Service, job: Job) -> list[str] | None:
    """A job's pictures as data: URIs; None while there are none."""
    if job.state != "succeeded" or job.result is None:
        return None
    paths = [service.files.results(job.id) / name for name in job.result["files"]]
    return [encode_data_uri(path.read_bytes(), MEDIA_TYPES[path.suffix[1:]]) for path in paths]


def logs(service: Service, job: Job, history: Sequence[Said]) -> str:
    """What a prediction's logs say: the seed, notices, and how far it is."""
    lines = [f"Using seed: {job.request['seed']}"] if job.started else []
    lines += [str(said.body["message"]) for said in history if said.kind == "notice"]
    marks = service.settings.watermark
    wanted = inputs_of(job).get("apply_watermark", True)
    if wanted and not marks and job.state == "succeeded":
        lines.append("No watermark was made: the settings are in the files.")
    step = service.feed.progress(job.id).step
    if job.state == "running" and step:
        lines.append(progress_line(step.done, step.total))
    elif job.state == "succeeded":
        steps = int((job.result or {}).get("steps", 0))
        lines.append(progress_line(steps, steps))
    if job.error:
        lines.append(job.error)
    return "".join(f"{line}\n" for line in lines)


VERSION = version("overpaint")
SCHEMAS = {kind.__name__: kind.model_json_schema() for kind in (Input, Output)}
"""What models are given and give. Either takes milliseconds to find, each time."""


def version_of(model: str) -> str:
    """The id of a model's version: another one for every version of Overpaint."""
    return hashlib.sha256(f"{model} {VERSION}".encode()).hexdigest()


def schema_of(model: str) -> dict[str, Any]:
    """The description of the model's version, as cog makes them."""
    return {
        "openapi": "3.0.2",
        "info": {"title": model, "version": "0.1.0"},
        "paths": {},
        "components": {"schemas": SCHEMAS},
    }


ID = re.compile(r"[0-9a-f]{64}")


OWNER = "overpaint"


class Body(BaseModel):
    """What makes a prediction of a model."""

    model_config = ConfigDict(extra="forbid")

    input: Input
    webhook: WebhookUrl = None
    webhook_events_filter: tuple[WebhookEvent, ...] | None = EVENTS
    stream: bool | None = None  # every prediction can be streamed


class VersionBody(Body):
    """What makes a prediction of a version, or, as Synexa's client calls it, of a model."""

    version: str = Field(max_length=300, validation_alias=AliasChoices("version", "model"))


def model_of(service: Service, name: str) -> str:
    """The model that `name` (`owner/name`, `owner/name:version` or a version) is of.

    A version that is not ours is of the first model: for `owner/name:version` the client sends
    the version alone.

    Raises:
        HTTPException: 422, none.
    """
    models = service.settings.models
    path, _, _ = name.partition(":")
    for model in models:
        if version_of(model) == name or ("/" in path and path.split("/")[1] == model):
            return model
    if ID.fullmatch(name):
        return models[0]
    listed = ", ".join(f"{OWNER}/{model}" for model in models)
    raise HTTPException(422, f"there is no version {name!r} here; there is {listed}.")


def links(service: Service, job: Job, base: str) -> list[str] | None:
    """Links to a job's pictures; None while there are none."""
    if job.state != "succeeded" or job.result is None:
        return None
    names: list[str] = job.result["files"]
    path = f"{base}/v1/predictions/{job.id}/output"
    return [result_url(service, job, path, name) for name in names]


async def prediction(
    service: Service, job: Job, base: str, *, inside: bool = False
) -> dict[str, Any]:
    """A job in their words; `inside` asks for the pictures themselves where links are of no use.

    The client makes files of https: and data: alone, so that a server that is reached by http:
    gives its pictures inside.
    """

    def look() -> tuple[list[str] | None, list[Said]]:
        inner = inside and not base.startswith("https:")
        return pictures(service, job) if inner else links(service, job, base), service.jobs.history(
            job.id
        )

    output, history = await asyncio.to_thread(look)
    own = f"{base}/v1/predictions/{job.id}"
    return {
        "id": job.id,
        "model": f"{OWNER}/{job.model}",
        **state_of(service, job, history),
        "output": output,
        "data_removed": False,
        "urls": {"get": own, "cancel": f"{own}/cancel", "stream": f"{own}/stream", "web": own},
    }


async def webhook_payload(service: Service, job: Job) -> dict[str, Any]:
    """What is posted to a webhook: pictures as links to where the client reached this server."""
    return await prediction(service, job, job.origin_as(ReplicateOrigin).base_url)


def known(service: Service, owner: str, name: str) -> str:
    """A model by its owner and name.

    Raises:
        HTTPException: 404, there is none.
    """
    if name not in service.settings.models:
        raise HTTPException(404, f"there is no model {owner}/{name} here.")
    return name


def described(model: str, owner: str, base: str) -> dict[str, Any]:
    """A model in their words."""
    return {
        "owner": owner,
        "name": model,
        "url": f"{base}/v1/models/{owner}/{model}",
        "description": "Repaints pictures.",
        "visibility": "private",
        "run_count": 0,
        "default_example": None,
        "cover_image_url": None,
        "github_url": None,
        "paper_url": None,
        "license_url": None,
        "latest_version": described_version(model),
    }


def described_version(model: str, name: str | None = None) -> dict[str, Any]:
    """A model's version in their words, by the id that it was asked for."""
    return {
        "id": name or version_of(model),
        "created_at": "2026-01-01T00:00:00Z",
        "cog_version": COG,
        "openapi_schema": schema_of(model),
    }


def file_view(service: Service, name: str, data: bytes, base: str) -> dict[str, Any]:
    """An upload in their words; its id is the hash of its content."""
    now = time.time()
    return {
        "id": name,
        "name": name,
        "content_type": "application/octet-stream",
        "size": len(data),
        "etag": name,
        "checksums": {"sha256": name},
        "metadata": {},
        "created_at": moment(now),
        "expires_at": moment(now + service.settings.keep_uploads_days * DAY_S),
        "urls": {"get": f"{base}/v1/files/{name}"},
    }
