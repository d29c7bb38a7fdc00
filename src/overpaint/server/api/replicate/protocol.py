"""The wire format of Replicate's HTTP API and of cog: predictions, models, versions and files."""

import asyncio
import hashlib
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Annotated, Any

from fastapi import HTTPException
from pydantic import ConfigDict, Field, RootModel

from overpaint.errors import RequestError
from overpaint.server.api.fields import WebhookEvent, WebhookUrl
from overpaint.server.api.ignored_fields import Ignored, TolerantModel
from overpaint.server.api.inline_files import encode_file
from overpaint.server.api.replicate.inputs import Input
from overpaint.server.api.results import (
    MEDIA_TYPES,
    format_progress,
    format_timestamp,
)
from overpaint.server.jobs.service import Service
from overpaint.server.settings import DAY_S
from overpaint.server.store.job_rows import HistoryEntry, Job
from overpaint.server.store.origins import CogOrigin, ReplicateOrigin
from overpaint.server.store.uploads import Upload

STATUS_BY_STATE = {
    "queued": "starting",
    "running": "processing",
    "succeeded": "succeeded",
    "failed": "failed",
    "canceled": "canceled",
}
"""Replicate's status for each state of a job."""

COG_VERSION = "0.16.0"
"""Version of cog whose API these responses follow."""

NSFW_MESSAGE = "NSFW content detected. Try running it again, or try a different prompt."
"""Error of Replicate's SDXL model when every image was flagged."""

MODEL_OWNER = "overpaint"
"""Owner of every model in responses; requests may name any owner."""

MODEL_CREATED_AT = "2026-01-01T00:00:00Z"
"""Creation time that every version and deployment reports."""

VERSION_ID_PATTERN = re.compile(r"[0-9a-f]{64}")


# Requests


class Body(TolerantModel):
    """Body of `POST /v1/models/{owner}/{name}/predictions`, and of a deployment's predictions."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    input: Input = Field(default_factory=Input)
    """Inputs of the model."""
    webhook: WebhookUrl = None
    """URL to post events of the prediction to."""
    webhook_events_filter: tuple[WebhookEvent, ...] | None = None
    """Events to post; all by default."""
    stream: Ignored = None
    """Accepted without effect: every prediction can be streamed."""


class VersionBody(Body):
    """Body of `POST /v1/predictions`."""

    version: str | None = Field(default=None, max_length=300, min_length=1)
    """A version id, `OWNER/NAME:VERSION` or `OWNER/NAME`."""
    model: str | None = Field(default=None, max_length=300, min_length=1)
    """Synexa's name of version, if that is absent."""

    @property
    def model_name(self) -> str:
        """The version or the model that the client names.

        Raises:
            RequestError: the client names none.
        """
        if name := self.version or self.model:
            return name
        raise RequestError("version", "The field is missing; send a version id or OWNER/NAME.")


class Output(RootModel[list[Annotated[str, Field(json_schema_extra={"format": "uri"})]]]):
    """The images of a prediction, as links or data: URIs."""


def resolve_model(service: Service, name: str) -> str:
    """Return the model that a version id, `OWNER/NAME` or `OWNER/NAME:VERSION` names.

    An unknown version id stands for the first model, also after the name of an unknown one.

    Raises:
        HTTPException: 422, the server has no such model.
    """
    models = service.settings.models
    path, colon, version = name.partition(":")
    version = version if colon else name
    for model in models:
        if version_id(model) == version or ("/" in path and path.split("/")[1] == model):
            return model
    if VERSION_ID_PATTERN.fullmatch(version):
        return models[0]
    known = ", ".join(f"{MODEL_OWNER}/{model}" for model in models)
    raise HTTPException(422, f"There is no version {name!r}. Available: {known}.")


# Predictions


def prediction_state(service: Service, job: Job, history: Sequence[HistoryEntry]) -> dict[str, Any]:
    """Return the attributes of a prediction that Replicate and cog share.

    Args:
        service: the running server.
        job: the job of the prediction.
        history: stored events of the job.
    """
    metrics: dict[str, float] = {}
    if job.ended is not None:
        metrics = {"total_time": job.ended - job.created}
        if job.started is not None:
            metrics["predict_time"] = job.ended - job.started
    return {
        "version": version_id(job.model),
        "input": prediction_inputs(job),
        "logs": prediction_logs(service, job, history),
        "error": NSFW_MESSAGE if job.state == "failed" and job.flagged else job.error,
        "status": STATUS_BY_STATE[job.state],
        "created_at": format_timestamp(job.created),
        "started_at": format_timestamp(job.started),
        "completed_at": format_timestamp(job.ended),
        "metrics": metrics,
    }


def prediction_inputs(job: Job) -> Mapping[str, Any]:
    """Return the inputs of a prediction; jobs of other dialects have none."""
    match job.origin:
        case ReplicateOrigin(input=inputs) | CogOrigin(input=inputs):
            return inputs
        case _:
            return {}


def prediction_logs(service: Service, job: Job, history: Sequence[HistoryEntry]) -> str:
    """Return the logs of a prediction: its seed, notices, progress and error."""
    lines = [f"Using seed: {job.request['seed']}"] if job.started else []
    lines += [str(event.body["message"]) for event in history if event.kind == "notice"]
    wants_watermark = prediction_inputs(job).get("apply_watermark", True)
    if wants_watermark and not service.settings.watermark and job.state == "succeeded":
        lines.append("The server added no watermark. The settings are in the files' metadata.")
    step = service.feed.progress(job.id).step
    if job.state == "running" and step:
        lines.append(format_progress(step.done, step.total))
    elif job.state == "succeeded":
        steps = int((job.result or {}).get("steps", 0))
        lines.append(format_progress(steps, steps))
    if job.error:
        lines.append(job.error)
    return "".join(f"{line}\n" for line in lines)


def image_names(job: Job) -> list[str] | None:
    """Return the file names of a job's images; None if it has none.

    A running job has images in the webhook that reports its output.
    """
    if job.state not in ("running", "succeeded") or job.result is None:
        return None
    return job.result["files"]


def image_data_uris(service: Service, job: Job) -> list[str] | None:
    """Return the images of a job as data: URIs; None if it has none."""
    if (names := image_names(job)) is None:
        return None
    paths = [service.files.get_results_folder(job.id) / name for name in names]
    return [f"data:{MEDIA_TYPES[path.suffix[1:]]};base64,{encode_file(path)}" for path in paths]


def image_urls(service: Service, job: Job, base_url: str) -> list[str] | None:
    """Return links to the images of a job; None if it has none."""
    if (names := image_names(job)) is None:
        return None
    path = f"{base_url}/v1/predictions/{job.id}/output"
    if not job.key:
        return [f"{path}/{name}" for name in names]
    # The signature comes before the name: programs read the format from the end of the link.
    return [f"{path}/{service.links.sign_path(job.id, name)}/{name}" for name in names]


async def prediction_view(
    service: Service, job: Job, base_url: str, *, inline: bool = False
) -> dict[str, Any]:
    """Return a prediction of Replicate's API.

    Args:
        service: the running server.
        job: the job of the prediction.
        base_url: base URL of the links.
        inline: whether to return images as data: URIs instead of links.
    """

    def read() -> tuple[list[str] | None, list[HistoryEntry]]:
        history = service.jobs.list_history(job.id)
        if inline:
            return image_data_uris(service, job), history
        return image_urls(service, job, base_url), history

    output, history = await asyncio.to_thread(read)
    url = f"{base_url}/v1/predictions/{job.id}"
    return {
        "id": job.id,
        "model": f"{MODEL_OWNER}/{job.model}",
        **prediction_state(service, job, history),
        "output": output,
        "data_removed": False,
        "urls": {"get": url, "cancel": f"{url}/cancel", "stream": f"{url}/stream", "web": url},
    }


async def webhook_payload(service: Service, job: Job) -> dict[str, Any]:
    """Return the prediction, with links below the URL that the client used for this server."""
    return await prediction_view(service, job, job.origin_as(ReplicateOrigin).base_url)


# Models

OVERPAINT_VERSION = version("overpaint")

# Each schema takes milliseconds to make.
SCHEMAS = {model.__name__: model.model_json_schema() for model in (Input, Output)}
"""JSON schemas of the inputs and the output of every model."""


def version_id(model: str) -> str:
    """Return the id of a model's version, which differs for every version of Overpaint."""
    return hashlib.sha256(f"{model} {OVERPAINT_VERSION}".encode()).hexdigest()


def get_model_or_404(service: Service, owner: str, name: str) -> str:
    """Return the name of a model; every owner is accepted.

    Raises:
        HTTPException: 404, the server has no model of that name.
    """
    if name not in service.settings.models:
        raise HTTPException(404, f"There is no model {owner}/{name}.")
    return name


def model_view(model: str, owner: str, base_url: str) -> dict[str, Any]:
    """Return a model of Replicate's API."""
    return {
        "owner": owner,
        "name": model,
        "url": f"{base_url}/v1/models/{owner}/{model}",
        "description": "Repaints images.",
        "visibility": "private",
        "run_count": 0,
        "default_example": None,
        "cover_image_url": None,
        "github_url": None,
        "paper_url": None,
        "license_url": None,
        "latest_version": version_view(model),
    }


def version_view(model: str, requested_id: str | None = None) -> dict[str, Any]:
    """Return a model's version, under the id that the client asked for."""
    return {
        "id": requested_id or version_id(model),
        "created_at": MODEL_CREATED_AT,
        "cog_version": COG_VERSION,
        "openapi_schema": {
            "openapi": "3.0.2",
            "info": {"title": model, "version": "0.1.0"},
            "paths": {},
            "components": {"schemas": SCHEMAS},
        },
    }


# Files


def file_view(service: Service, upload: Upload, base_url: str) -> dict[str, Any]:
    """Return an upload of Replicate's API. Its id is the SHA-256 of its content."""
    expires = upload.created + service.settings.keep_uploads_days * DAY_S
    return {
        "id": upload.id,
        "name": upload.name or upload.id,
        "content_type": upload.content_type,
        "size": upload.size,
        "etag": upload.id,
        "checksums": {"sha256": upload.id},
        "metadata": upload.details,
        "created_at": format_timestamp(upload.created),
        "expires_at": format_timestamp(expires),
        "urls": {"get": f"{base_url}/v1/files/{upload.id}"},
    }


# Accounts and deployments

ACCOUNT = {
    "type": "organization",
    "username": MODEL_OWNER,
    "name": "Overpaint",
    "avatar_url": None,
    "github_url": None,
}
"""The account that owns every model; API keys have no separate accounts."""

HARDWARE = {"name": "The device of this server", "sku": "overpaint"}
"""The hardware that runs every model."""


def make_page(results: list[dict[str, Any]], next_page: str | None = None) -> dict[str, Any]:
    """Return a page of a list; `next_page` is the link of the page after it."""
    return {"previous": None, "next": next_page, "results": results}


def deployment_view(model: str, owner: str) -> dict[str, Any]:
    """Return a deployment of Replicate's API: every model is its own deployment."""
    return {
        "owner": owner,
        "name": model,
        "current_release": {
            "number": 1,
            "model": f"{MODEL_OWNER}/{model}",
            "version": version_id(model),
            "created_at": MODEL_CREATED_AT,
            "created_by": ACCOUNT,
            "configuration": {
                "hardware": HARDWARE["sku"],
                "min_instances": 1,
                "max_instances": 1,
            },
        },
    }
