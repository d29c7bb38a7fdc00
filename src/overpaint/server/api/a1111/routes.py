"""The routes of AUTOMATIC1111's API.

| Route | Effect |
|---|---|
| `POST /sdapi/v1/txt2img`, `/img2img` | make images and return them |
| `GET /sdapi/v1/progress` | return the progress of the key's newest job |
| `POST /sdapi/v1/interrupt`, `/skip` | cancel the key's newest job |
| `GET`, `POST /sdapi/v1/options` | model, clip skip and file format of the key's next requests |
| `GET /sdapi/v1/sd-models`, `/samplers`, `/loras`, … | list names that requests can use |
| `POST /sdapi/v1/png-info` | read the settings of an image |

The web UI has one user. Here every API key has its own options and progress.
"""

import asyncio
import json
from datetime import datetime
from typing import Any

from fastapi import APIRouter, HTTPException
from fastapi import Request as Incoming

from overpaint.errors import RequestError
from overpaint.imaging import codec
from overpaint.provenance import a1111_text
from overpaint.provenance.importers.a1111 import split_parameters
from overpaint.provenance.picture_texts import extract_texts
from overpaint.registry import SAMPLERS, SCHEDULES
from overpaint.request import Request
from overpaint.server.api.a1111 import listings, options
from overpaint.server.api.a1111.controlnet import read_controls
from overpaint.server.api.a1111.protocol import (
    ERROR_SCHEMA,
    GenerationResponse,
    ImageInputs,
    Options,
    PngInfoRequest,
    PngInfoResponse,
    ProgressResponse,
    ProgressState,
    TextInputs,
    error_response,
)
from overpaint.server.api.a1111.translation import decode_image, to_request, translate_error
from overpaint.server.api.deps import ServiceDep
from overpaint.server.api.extended_fields import get_field_error
from overpaint.server.api.fields import encode_base64
from overpaint.server.api.inline_files import encode_file
from overpaint.server.api.results import wait_until_ended
from overpaint.server.api.route import make_route_class
from overpaint.server.http.auth import KeyDep
from overpaint.server.http.problems import error_responses
from overpaint.server.http.threads import run_in_picture_thread
from overpaint.server.jobs.service import Service
from overpaint.server.store.jobs import ENDED, Job
from overpaint.server.store.origins import A1111Origin, OutputOptions

PREVIEW_INTERVAL_STEPS = 5
"""Steps between the previews that `progress` returns."""

MAX_TEXT_CHARS = 1_000_000
"""Characters of all texts of a picture that `/png-info` returns. Texts are compressed: 62 KB of a
file can be 60 MB of text."""

MIN_PROGRESS = 0.01
"""Progress of a job that has not finished a step; 0 would mean that there is no job."""

router = APIRouter(
    tags=["AUTOMATIC1111"],
    route_class=make_route_class(error_response),
    responses=error_responses(ERROR_SCHEMA),
)
sdapi = APIRouter(prefix="/sdapi/v1", route_class=make_route_class(error_response))


# Images


@sdapi.post("/txt2img")
async def txt2img(
    given: TextInputs, incoming: Incoming, service: ServiceDep, key: KeyDep
) -> GenerationResponse:
    """Make images from text. The job continues if the client disconnects."""
    return await generate(given, incoming, service, key)


@sdapi.post("/img2img")
async def img2img(
    given: ImageInputs, incoming: Incoming, service: ServiceDep, key: KeyDep
) -> GenerationResponse:
    """Repaint an image, or the area that a mask marks.

    The job continues if the client disconnects.
    """
    response = await generate(given, incoming, service, key)
    if given.include_init_images:
        response.parameters |= given.model_dump(include={"init_images", "mask"})
    return response


async def generate(
    given: TextInputs | ImageInputs, incoming: Incoming, service: Service, key: str
) -> GenerationResponse:
    """Run a job and return its images. The job continues if the client disconnects."""
    chosen = options.override_options(options.get_options(incoming, key), given.override_settings)
    model = options.resolve_model(service, chosen)
    request = await run_in_picture_thread(read_request, given, chosen, service)
    kind = "jpg" if chosen.samples_format == "jpeg" else chosen.samples_format
    encoder = {} if kind == "png" else {"quality": chosen.jpeg_quality}
    parameters = given.model_dump(mode="json", exclude={"init_images", "mask", "alwayson_scripts"})
    origin = A1111Origin(
        parameters=parameters,
        output=OutputOptions(kind=kind, options=encoder, preview_every=PREVIEW_INTERVAL_STEPS),
    )
    try:
        job = await service.submit(request, model=model, key=key, origin=origin)
    except RequestError as error:
        raise translate_error(error) from None
    if not given.override_settings_restore_afterwards:
        options.store_options(incoming, key, chosen)
    job = await wait_until_ended(service, job, incoming)
    if job.state == "failed":
        if error := get_field_error(job):
            raise translate_error(error)
        raise HTTPException(500, job.error)
    if job.state not in ENDED:
        raise HTTPException(
            503, f"The server is shutting down; job {job.id} continues when it starts again."
        )
    return await generation_response(service, job)


def read_request(given: TextInputs | ImageInputs, chosen: Options, service: Service) -> Request:
    """Translate inputs to a request, with the names that the server knows."""
    refiners = {*service.settings.models, *listings.list_names(service, "checkpoint")}
    if service.settings.refiner:
        refiners.add(service.settings.refiner)
    return to_request(
        given,
        chosen,
        controls=read_controls(given),
        refiners=refiners,
        embeddings=listings.list_names(service, "embedding"),
    )


async def generation_response(service: Service, job: Job) -> GenerationResponse:
    """Return the images of a job and their settings; a canceled job has no images."""
    parameters = dict(job.origin_as(A1111Origin).parameters)

    def read() -> GenerationResponse:
        folder = service.files.get_results_folder(job.id)
        files = [folder / name for name in (job.result or {}).get("files", ())]
        texts = [settings_text(file.read_bytes()) for file in files]
        info = {**job_info(job), "infotexts": texts}
        sent = [encode_file(file) for file in files] if parameters["send_images"] else []
        return GenerationResponse(images=sent, parameters=parameters, info=json.dumps(info))

    return await asyncio.to_thread(read)


def settings_text(data: bytes) -> str:
    """Return AUTOMATIC1111's settings text for an image that Overpaint made."""
    with codec.open_image(data, "the result", texts=True) as image:
        return a1111_text.format_parameters(json.loads(extract_texts(image)["overpaint"]))


def job_info(job: Job) -> dict[str, Any]:
    """Return the `info` of a response, without the settings texts."""
    request, result = job.request, job.result or {}
    parameters = job.origin_as(A1111Origin).parameters
    requested = [request["seed"] + index for index in range(request["num_images"])]
    seeds = result.get("seeds", requested)
    width, height = result.get("sizes", [(request["width"], request["height"])])[0]
    return {
        "prompt": parameters["prompt"],
        "all_prompts": [parameters["prompt"]] * len(seeds),
        "negative_prompt": parameters["negative_prompt"],
        "all_negative_prompts": [parameters["negative_prompt"]] * len(seeds),
        "seed": seeds[0],
        "all_seeds": seeds,
        "subseed": -1,
        "all_subseeds": [-1] * len(seeds),
        "subseed_strength": 0,
        "width": width,
        "height": height,
        "sampler_name": SAMPLERS[request["sampler"]].label,
        "scheduler": SCHEDULES[request["schedule"]].label,
        "cfg_scale": request["guidance_scale"],
        "steps": request["num_inference_steps"],
        "batch_size": parameters["batch_size"],
        "denoising_strength": request["strength"],
        "sd_model_name": job.model,
        "index_of_first_image": 0,
        "styles": [],
        "job_timestamp": format_job_time(job),
        "clip_skip": request["clip_skip"] + 2,
        "interrupted": job.state == "canceled",
        "flagged": job.flagged,
    }


def format_job_time(job: Job) -> str:
    """Return the time at which a job was accepted, as YYYYMMDDHHMMSS in local time."""
    return datetime.fromtimestamp(job.created).strftime("%Y%m%d%H%M%S")


# Progress


async def find_newest_job(service: Service, key: str) -> Job | None:
    """Return the newest job of an API key that has not ended."""
    states = ("queued", "running")
    jobs = await asyncio.to_thread(lambda: service.jobs.list_page(key, 1, states=states))
    return jobs[0] if jobs else None


@sdapi.get("/progress")
async def get_progress(
    service: ServiceDep, key: KeyDep, skip_current_image: bool = False
) -> ProgressResponse:
    """Return the progress of this API key's newest job."""
    job = await find_newest_job(service, key)
    if job is None:
        return ProgressResponse()
    now = service.feed.progress(job.id)
    done, total = (now.step.done, now.step.total) if now.step else (0, 0)
    ahead = await asyncio.to_thread(service.jobs.get_queue_position, job.id)
    fraction = done / total if total else 0.0
    preview = None if skip_current_image else next(iter(now.previews.values()), None)
    return ProgressResponse(
        progress=max(MIN_PROGRESS, fraction),
        eta_relative=(ahead[1] if ahead else 0.0) + job.work * (1 - fraction),
        state=ProgressState(
            interrupted=job.canceling,
            job=job.id,
            job_count=1,
            job_timestamp=format_job_time(job),
            sampling_step=done,
            sampling_steps=total,
        ),
        current_image=encode_base64(preview.data) if preview else None,
        textinfo=f"{ahead[0]} jobs run before this one." if ahead else None,
        current_task=job.id,
    )


@sdapi.post("/interrupt")
async def interrupt_job(service: ServiceDep, key: KeyDep) -> dict[str, Any]:
    """Cancel this API key's newest job."""
    if job := await find_newest_job(service, key):
        await service.cancel(job.id)
    return {}


@sdapi.post("/skip")
async def skip_image(service: ServiceDep, key: KeyDep) -> dict[str, Any]:
    """Cancel this API key's newest job: its images are made together."""
    return await interrupt_job(service, key)


# Other routes


@sdapi.post("/png-info")
async def read_png_info(given: PngInfoRequest, key: KeyDep) -> PngInfoResponse:
    """Read the settings of an image."""

    def read() -> PngInfoResponse:
        data = decode_image("image", given.image)
        with codec.open_image(
            data, "the image", codec.UPLOAD_FORMATS, codec.MAX_UPLOAD_PIXELS, texts=True
        ) as image:
            image.load()
            items = extract_texts(image)
        if sum(map(len, items.values())) > MAX_TEXT_CHARS:
            raise RequestError(
                "image", f"Its texts have more than {MAX_TEXT_CHARS:,} characters together."
            )
        text = items.get("parameters", "")
        parts = split_parameters(text)
        return PngInfoResponse(info=text, items=items, parameters=parts.pairs if parts else {})

    return await run_in_picture_thread(read)


@router.get("/queue/status")
async def get_queue_status(service: ServiceDep, key: KeyDep) -> dict[str, Any]:
    """Return the number of waiting jobs. A Krita plug-in detects the server by this route."""
    counts = await asyncio.to_thread(service.jobs.count_by_state)
    return {"msg": "estimation", "queue_size": counts["queued"]}


for part in (sdapi, options.router, listings.router, listings.controlnet_router):
    router.include_router(part)
