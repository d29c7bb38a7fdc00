"""AUTOMATIC1111's API, as its clients speak it.

| | |
|---|---|
| `POST /sdapi/v1/txt2img`, `/img2img` | answers when the pictures are there, with them inside |
| `GET /sdapi/v1/progress` | of the key's newest job that has not ended |
| `POST /sdapi/v1/interrupt`, `/skip` | end that job before its next step |
| `GET`, `POST /sdapi/v1/options` | model, clip skip and file format of the key's next requests |
| `GET /sdapi/v1/sd-models`, `/samplers`, `/schedulers`, `/loras`, `/embeddings` … | what there is |
| `POST /sdapi/v1/png-info` | the settings in a picture |

There the server is one desk with one user, and so are options and progress here, for every key.
"""

import asyncio
import base64
import json
from datetime import datetime
from typing import Any

from fastapi import APIRouter, HTTPException
from fastapi import Request as Incoming

from overpaint.errors import RequestError
from overpaint.imaging import codec
from overpaint.provenance import a1111_text, metadata
from overpaint.provenance.importers.a1111 import split_a1111_pairs
from overpaint.registry import SAMPLERS, SCHEDULES
from overpaint.request import Request
from overpaint.server.api.a1111 import listings
from overpaint.server.api.a1111 import options as option_routes
from overpaint.server.api.a1111.controlnet import controls_of
from overpaint.server.api.a1111.listings import names_of
from overpaint.server.api.a1111.options import OPTIONS, model_of, options_of, overridden
from overpaint.server.api.a1111.protocol import (
    ERROR,
    Generated,
    ImageInputs,
    PictureIn,
    PictureInfo,
    Progress,
    State,
    TextInputs,
    error_response,
)
from overpaint.server.api.a1111.translation import in_their_words, picture_data, to_request
from overpaint.server.api.deps import ServiceDep
from overpaint.server.api.extended_fields import get_field_error
from overpaint.server.api.fields import run_in_reader_pool
from overpaint.server.api.results import wait_until_ended
from overpaint.server.api.route import make_route_class
from overpaint.server.http.auth import KeyDep
from overpaint.server.http.problems import error_responses
from overpaint.server.jobs.service import Service
from overpaint.server.store.jobs import ENDED, Job
from overpaint.server.store.origins import A1111Origin, OutputOptions

PREVIEW_EVERY = 5
"""Steps between the pictures that `progress` shows."""


router = APIRouter(
    tags=["AUTOMATIC1111"],
    route_class=make_route_class(error_response),
    responses=error_responses(ERROR),
)
sdapi = APIRouter(prefix="/sdapi/v1", route_class=make_route_class(error_response))


# Pictures


@sdapi.post("/txt2img")
async def txt2img(
    given: TextInputs, incoming: Incoming, service: ServiceDep, key: KeyDep
) -> Generated:
    """Text to image."""
    return await generate(given, incoming, service, key)


@sdapi.post("/img2img")
async def img2img(
    given: ImageInputs, incoming: Incoming, service: ServiceDep, key: KeyDep
) -> Generated:
    """Image to image, with or without a mask."""
    made = await generate(given, incoming, service, key)
    if given.include_init_images:
        made.parameters |= given.model_dump(include={"init_images", "mask"})
    return made


async def generate(
    given: TextInputs | ImageInputs, incoming: Incoming, service: Service, key: str
) -> Generated:
    """Accept what was asked for, and wait for its end; a client that goes away does not end it."""
    options = overridden(options_of(service, key), given.override_settings)
    model = model_of(service, options)

    def read() -> Request:
        second = {*service.settings.models, *names_of(service, "checkpoint")}
        if service.settings.refiner:
            second.add(service.settings.refiner)
        embeddings = names_of(service, "embedding")
        return to_request(
            given,
            options,
            controls=controls_of(given),
            refiners=second,
            embeddings=embeddings,
        )

    request = await run_in_reader_pool(read)
    kind = "jpg" if options.samples_format == "jpeg" else options.samples_format
    quality = {} if kind == "png" else {"quality": options.jpeg_quality}
    asked = given.model_dump(mode="json", exclude={"init_images", "mask", "alwayson_scripts"})
    origin = A1111Origin(
        parameters=asked,
        output=OutputOptions(kind=kind, options=quality, preview_every=PREVIEW_EVERY),
    )
    try:
        job = await service.submit(request, model=model, key=key, origin=origin)
    except RequestError as error:
        raise in_their_words(error) from None
    if not given.override_settings_restore_afterwards:
        OPTIONS.setdefault(service, {})[key] = options
    job = await wait_until_ended(service, job, incoming)
    if job.state == "failed":
        if fault := get_field_error(job):
            raise in_their_words(fault)
        raise HTTPException(500, job.error)
    if job.state not in ENDED:
        raise HTTPException(503, f"the server ends; job {job.id} runs when it is back.")
    return Generated(**await told(service, job))


async def told(service: Service, job: Job) -> dict[str, Any]:
    """A job in their words, with its pictures; one that was interrupted has none."""
    parameters = job.origin_as(A1111Origin).parameters

    def read() -> dict[str, Any]:
        folder = service.files.results(job.id)
        files = [(folder / name).read_bytes() for name in (job.result or {}).get("files", ())]
        info = {**info_of(job), "infotexts": list(map(infotext, files))}
        pictures = list(map(encoded, files)) if parameters["send_images"] else []
        return {"images": pictures, "parameters": parameters, "info": json.dumps(info)}

    return await asyncio.to_thread(read)


def infotext(data: bytes) -> str:
    """The settings that a picture of ours says, in their form."""
    with codec.open_image(data, "the result") as image:
        return a1111_text.format_parameters(json.loads(metadata.extract_texts(image)["overpaint"]))


def info_of(job: Job) -> dict[str, Any]:
    """What they tell of pictures, but for what stands in these."""
    request, result = job.request, job.result or {}
    asked = job.origin_as(A1111Origin).parameters
    drawn = [request["seed"] + index for index in range(request["num_images"])]
    seeds = result.get("seeds", drawn)
    width, height = result.get("sizes", [(request["width"], request["height"])])[0]
    return {
        "prompt": asked["prompt"],
        "all_prompts": [asked["prompt"]] * len(seeds),
        "negative_prompt": asked["negative_prompt"],
        "all_negative_prompts": [asked["negative_prompt"]] * len(seeds),
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
        "batch_size": asked["batch_size"],
        "denoising_strength": request["strength"],
        "sd_model_name": job.model,
        "index_of_first_image": 0,
        "styles": [],
        "job_timestamp": stamp(job),
        "clip_skip": request["clip_skip"] + 2,
        "interrupted": job.state == "canceled",
        "flagged": job.flagged,
    }


def encoded(data: bytes) -> str:
    """Bytes as base64, without a header."""
    return base64.b64encode(data).decode()


def stamp(job: Job) -> str:
    """When a job came, as they write it."""
    return datetime.fromtimestamp(job.created).strftime("%Y%m%d%H%M%S")


# What happens


async def newest(service: Service, key: str) -> Job | None:
    """The key's newest job that has not ended."""
    states = ("queued", "running")
    found = await asyncio.to_thread(lambda: service.jobs.page(key, 1, states=states))
    return found[0] if found else None


@sdapi.get("/progress")
async def progress(service: ServiceDep, key: KeyDep, skip_current_image: bool = False) -> Progress:
    """How far the newest job is."""
    job = await newest(service, key)
    if job is None:
        return Progress()
    now = service.feed.progress(job.id)
    done, total = (now.step.done, now.step.total) if now.step else (0, 0)
    ahead = await asyncio.to_thread(service.jobs.ahead, job.id)
    share = done / total if total else 0.0
    shown = None if skip_current_image else next(iter(now.previews.values()), None)
    return Progress(
        progress=max(0.01, share),
        eta_relative=(ahead[1] if ahead else 0.0) + job.work * (1 - share),
        state=State(
            interrupted=job.canceling,
            job=job.id,
            job_count=1,
            job_timestamp=stamp(job),
            sampling_step=done,
            sampling_steps=total,
        ),
        current_image=encoded(shown.data) if shown else None,
        textinfo=f"{ahead[0]} jobs are before it" if ahead else None,
        current_task=job.id,
    )


@sdapi.post("/interrupt")
async def interrupt(service: ServiceDep, key: KeyDep) -> dict[str, Any]:
    """End the newest job before its next step."""
    if job := await newest(service, key):
        await service.cancel(job.id)
    return {}


@sdapi.post("/skip")
async def skip(service: ServiceDep, key: KeyDep) -> dict[str, Any]:
    """The same: a job's pictures are painted together."""
    return await interrupt(service, key)


# Options


# What there is


@sdapi.post("/png-info")
async def png_info(given: PictureIn, key: KeyDep) -> PictureInfo:
    """The settings in a picture."""

    def look() -> PictureInfo:
        data = picture_data("image", given.image)
        with codec.open_image(
            data, "the image", codec.UPLOAD_FORMATS, codec.MAX_UPLOAD_PIXELS
        ) as image:
            image.load()
            items = metadata.extract_texts(image)
        text = items.get("parameters", "")
        last = text.strip().rpartition("\n")[2]
        return PictureInfo(info=text, items=items, parameters=split_a1111_pairs(last))

    return await run_in_reader_pool(look)


@router.get("/queue/status")
async def queue_status(service: ServiceDep, key: KeyDep) -> dict[str, Any]:
    """How many jobs wait; a Krita plug-in takes the answer for a sign of life."""
    counts = await asyncio.to_thread(service.jobs.counts)
    return {"msg": "estimation", "queue_size": counts["queued"]}


for part in (sdapi, option_routes.router, listings.router, listings.controlnet_router):
    router.include_router(part)
