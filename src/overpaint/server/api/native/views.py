"""Bodies of the native API: what clients send, and how jobs, files and webhooks look."""

import asyncio
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler
from pydantic_core import core_schema

from overpaint.request import Request
from overpaint.server.api.fields import WebhookEvent, WebhookUrl
from overpaint.server.jobs.service import Service
from overpaint.server.store.job_rows import Job


class RequestSchema:
    """Gives a field the JSON schema of `Request`.

    The server validates the field later, when it has loaded the pictures.
    """

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return handler(Request.__pydantic_core_schema__)


class NativeBody(BaseModel):
    """A body whose fields have their docstrings as descriptions in the OpenAPI document."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class StrictBody(NativeBody):
    """A body that refuses unknown fields."""

    model_config = ConfigDict(extra="forbid")


class FileFormat(StrictBody):
    """The format of result files and previews."""

    format: Literal["png", "jpg", "webp"] = "png"
    """Format of the result files."""
    quality: int | None = Field(default=None, ge=1, le=100)
    """Quality of JPEG and WebP files, from 1 to 100. PNG ignores it."""
    preview_every: int = Field(default=0, ge=0, le=1000)
    """Number of steps between two previews; 0 for no previews."""


class Submission(StrictBody):
    """A new job."""

    request: Annotated[dict[str, Any], RequestSchema()]
    """The picture to make. A picture field is `{"file": NAME}`, `{"data": BASE64}` or
    `{"url": URL}`."""
    model: str | None = Field(default=None, max_length=200)
    """Name of the model; by default the server's first model."""
    priority: int = Field(default=0, ge=-10, le=10)
    """Jobs with a higher priority run first. Only a server without API keys accepts values above
    0."""
    output: FileFormat = Field(default_factory=FileFormat)
    """Format of the result files and previews."""
    webhook: WebhookUrl = None
    """URL that receives webhooks about the job."""
    webhook_events: tuple[WebhookEvent, ...] = ("start", "completed")
    """Events that webhooks report."""


class WebhookAttempt(NativeBody):
    """One attempt to deliver a webhook."""

    at: float
    """Time of the attempt in seconds since 1970."""
    status: int | None
    """HTTP status of the response; null if the server received none."""
    error: str | None
    """Why the server received no response."""
    seconds: float
    """Duration of the attempt."""


class WebhookView(NativeBody):
    """A webhook of a job, with all attempts to deliver it."""

    event: WebhookEvent
    """Event that the webhook reports."""
    state: str
    """`later` (the event has not occurred), `due`, `delivered`, `failed` (no attempts are left) or
    `gone` (the receiver answered 410)."""
    tries: list[WebhookAttempt]
    """Attempts, the first one first."""


class Upload(NativeBody):
    """An uploaded picture."""

    file: str
    """Name of the file: the SHA-256 of its content in hexadecimal."""
    size: int
    """Size of the file in bytes."""


class WebhookSecret(NativeBody):
    """The secret that signs the API key's webhooks."""

    key: str
    """`whsec_` and the base64 of the signing key, as Standard Webhooks defines it."""


class ResultView(NativeBody):
    """A result picture of a job."""

    name: str
    """Name of the file."""
    url: str
    """Path from which to download the file."""
    seed: int
    """Seed of the picture."""
    width: int
    """Width in pixels."""
    height: int
    """Height in pixels."""


class FlaggedImage(NativeBody):
    """A picture that the safety checker flagged. The server does not publish it."""

    index: int
    """Index of the picture in the request, from 0."""
    seed: int
    """Seed of the picture."""
    concepts: list[str]
    """Names of the detected concepts, if the checker reports them."""


class JobView(NativeBody):
    """A job in its current state."""

    id: str
    """Id of the job."""
    model: str
    """Name of the model."""
    state: str
    """`queued`, `running`, `succeeded`, `failed` or `canceled`."""
    request: dict[str, Any]
    """The request, with the names of files in place of pictures."""
    created: float
    """Time of acceptance in seconds since 1970."""
    started: float | None
    """Time of the first start in seconds since 1970."""
    ended: float | None
    """Time of the end in seconds since 1970."""
    attempt: int
    """How often the job has started."""
    error: str | None
    """Why the job failed."""
    results: list[ResultView]
    """Result pictures."""
    flagged: list[FlaggedImage]
    """Pictures that the safety checker flagged."""
    position: int | None = None
    """Number of jobs before this one in the queue, while it is queued."""
    eta: float | None = None
    """Estimated seconds until the end, while the job is queued."""
    done: int | None = None
    """Number of finished steps, while the job runs."""
    total: int | None = None
    """Number of all steps, while the job runs."""


class JobPage(NativeBody):
    """One page of the list of jobs, the newest first."""

    jobs: list[JobView]
    """The jobs."""
    before: str | None
    """Value of `before` that requests the next page; null on the last page."""


async def make_job_view(service: Service, job: Job) -> JobView:
    """Describe a job to its client."""
    if job.state == "queued":
        return await asyncio.to_thread(read_job_view, service, job)
    return read_job_view(service, job)


def read_job_view(service: Service, job: Job) -> JobView:
    """Describe a job to its client; for a queued job it reads the store."""
    result = {"files": [], "seeds": [], "sizes": []} | (job.result or {})
    results = [
        ResultView(
            name=name,
            url=f"/api/jobs/{job.id}/results/{name}",
            seed=seed,
            width=size[0],
            height=size[1],
        )
        for name, seed, size in zip(result["files"], result["seeds"], result["sizes"], strict=True)
    ]
    view = JobView(
        id=job.id,
        model=job.model,
        state=job.state,
        request=job.request,
        created=job.created,
        started=job.started,
        ended=job.ended,
        attempt=job.attempt,
        error=job.error,
        results=results,
        flagged=[FlaggedImage.model_validate(flag) for flag in job.flagged],
    )
    if job.state == "queued":
        if ahead := service.jobs.get_queue_position(job.id):
            view.position = ahead[0]
            view.eta = ahead[1] + job.work
    elif job.state == "running" and (step := service.feed.progress(job.id).step):
        view.done, view.total = step.done, step.total
    return view


async def webhook_payload(service: Service, job: Job) -> dict[str, Any]:
    """Make the body of a webhook: the job as `GET /api/jobs/{id}` returns it."""
    return (await make_job_view(service, job)).model_dump(mode="json")
