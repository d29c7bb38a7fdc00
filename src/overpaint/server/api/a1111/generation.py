"""The routes that make images: one job for a request, or one for each of several images."""

import asyncio
import json
import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastapi import APIRouter, HTTPException
from fastapi import Request as Incoming

from overpaint.errors import RequestError
from overpaint.imaging import codec
from overpaint.provenance import a1111_text
from overpaint.provenance.picture_texts import extract_texts
from overpaint.registry import SAMPLERS, SCHEDULES
from overpaint.request import Request
from overpaint.server.api.a1111 import listings, options, output_format, tasks
from overpaint.server.api.a1111.controlnet import read_controls
from overpaint.server.api.a1111.option_fields import Options, override_options
from overpaint.server.api.a1111.protocol import ImageInputs, TextInputs, error_response
from overpaint.server.api.a1111.remote_images import find_image_urls, inline_images
from overpaint.server.api.a1111.responses import GenerationResponse
from overpaint.server.api.a1111.translation import (
    report_unused_fields,
    to_requests,
    translate_error,
)
from overpaint.server.api.deps import ServiceDep
from overpaint.server.api.extended_fields import get_field_error
from overpaint.server.api.ignored_fields import list_ignored, report_ignored_fields
from overpaint.server.api.inline_files import encode_file, read_result_file
from overpaint.server.api.results import wait_until_ended
from overpaint.server.api.route import make_route_class
from overpaint.server.http.auth import KeyDep
from overpaint.server.http.problems import ShutdownError
from overpaint.server.http.threads import run_in_picture_thread
from overpaint.server.jobs.service import Service
from overpaint.server.store.job_rows import ENDED, Job
from overpaint.server.store.origins import A1111Origin, OutputOptions

PREVIEW_INTERVAL_STEPS = 5
"""Steps between the previews that `progress` returns."""

router = APIRouter(prefix="/sdapi/v1", route_class=make_route_class(error_response))


@router.post("/txt2img")
async def txt2img(
    given: TextInputs, incoming: Incoming, service: ServiceDep, key: KeyDep
) -> GenerationResponse:
    """Make images from text. The job continues if the client disconnects."""
    return await generate(given, incoming, service, key)


@router.post("/img2img")
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
    """Run the jobs of a request and return their images.

    The jobs continue if the client disconnects.
    """
    report_ignored_fields(given)
    report_unused_fields(given)
    kept = options.get_options(incoming, key)
    chosen = override_options(kept, given.override_settings)
    model = options.resolve_model(service, given.override_settings, kept)
    async with service.sources(key, find_image_urls(given)) as sources:
        requests, output = await run_in_picture_thread(
            _read_requests, given, sources.fetched, chosen, service, model
        )
    jobs = await _submit(given, requests, model, output, incoming, service, key)
    for place, job in enumerate(jobs):
        jobs[place] = ended = await wait_until_ended(service, job, incoming)
        if ended.state not in ENDED:
            raise ShutdownError(job.id, continues=True)
        if ended.state == "failed":
            await tasks.cancel_jobs(service, jobs[place + 1 :])
            if error := get_field_error(ended):
                raise translate_error(error)
            raise HTTPException(500, ended.error)
    if not given.override_settings_restore_afterwards:
        # Options with which a request failed would make later requests fail too. The client may
        # have set others since this one began.
        latest = options.get_options(incoming, key)
        merged = override_options(latest, given.override_settings)
        options.store_options(incoming, key, merged)
    return await asyncio.to_thread(_make_response, service, jobs, list_ignored())


def _read_requests(
    given: TextInputs | ImageInputs,
    fetched: Mapping[str, bytes],
    chosen: Options,
    service: Service,
    model: str,
) -> tuple[list[Request], OutputOptions]:
    """Translate inputs to requests, with the names that the server knows."""
    given = inline_images(given, fetched)
    refiners = {*service.settings.models, *listings.list_names(service, "checkpoint")}
    if service.settings.refiner:
        refiners.add(service.settings.refiner)
    requests = to_requests(
        given,
        chosen,
        model=model,
        controls=read_controls(given, partial(listings.resolve_controlnet_title, service)),
        refiners=refiners,
        embeddings=listings.list_embedding_names(service, given.prompt),
        vaes=listings.list_names(service, "vae"),
    )
    kind = output_format.choose_format(requests, chosen, given.override_settings)
    encoder = {} if kind == "png" else {"quality": chosen.jpeg_quality}
    return requests, OutputOptions(kind=kind, options=encoder, preview_every=PREVIEW_INTERVAL_STEPS)


async def _submit(
    given: TextInputs | ImageInputs,
    requests: Sequence[Request],
    model: str,
    output: OutputOptions,
    incoming: Incoming,
    service: Service,
    key: str,
) -> list[Job]:
    """Accept all jobs of a request, or none.

    Raises:
        RequestError: a field is not valid; the error names AUTOMATIC1111's field.
        QueueFullError: the queue is full.
    """
    parameters = given.model_dump(mode="json", exclude={"init_images", "mask", "alwayson_scripts"})
    task = given.force_task_id or ""
    if len(requests) > 1 and not task:
        task = f"task({secrets.token_hex(8)})"
    origin = A1111Origin(parameters=parameters, output=output, task=task, task_jobs=len(requests))
    jobs: list[Job] = []
    try:
        for request in requests:
            jobs.append(await service.submit(request, model=model, key=key, origin=origin))
    except Exception as error:
        await tasks.cancel_jobs(service, jobs)
        if isinstance(error, RequestError):
            raise translate_error(error) from None
        raise
    await tasks.note_submitted(incoming, service, key, task or jobs[0].id)
    return jobs


# A job to a response


def _make_response(service: Service, jobs: Sequence[Job], ignored: list[str]) -> GenerationResponse:
    """Return the images of jobs and their settings; a canceled job has no images."""
    parameters = dict(jobs[0].origin_as(A1111Origin).parameters)
    files: list[Path] = []
    for job in jobs:
        folder = service.files.get_results_folder(job.id)
        files += [folder / name for name in (job.result or {}).get("files", ())]
    records = [_read_record(read_result_file(file)) for file in files]
    history = [entry for job in jobs for entry in service.jobs.list_history(job.id)]
    notices = [entry.body["message"] for entry in history if entry.kind == "notice"]
    info = make_info(jobs, records) | {"ignored_fields": ignored, "notices": notices}
    # The web UI has a default of 512; clients expect numbers.
    parameters |= {side: info[side] for side in ("width", "height") if parameters[side] is None}
    sent = [encode_file(file) for file in files] if parameters["send_images"] else []
    return GenerationResponse(images=sent, parameters=parameters, info=json.dumps(info))


def _read_record(data: bytes) -> dict[str, Any]:
    """Return Overpaint's record of an image that it made."""
    with codec.open_image(data, "the result", texts=True) as image:
        record: dict[str, Any] = json.loads(extract_texts(image)["overpaint"])
        return record


def make_info(jobs: Sequence[Job], records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the `info` of a response: all fields of the web UI's, and some of Overpaint's.

    Args:
        jobs: the jobs of the request.
        records: of the images.
    """
    first = jobs[0]
    request, parameters = first.request, first.origin_as(A1111Origin).parameters
    seeds, subseeds = _list_seeds(jobs)
    width, height = next(
        (size for job in jobs for size in (job.result or {}).get("sizes", ())),
        (request["width"], request["height"]),
    )
    model = records[0]["model"] if records else {}
    vae = model.get("parts", {}).get("vae", {})
    return {
        "prompt": parameters["prompt"],
        "all_prompts": [parameters["prompt"]] * len(seeds),
        "negative_prompt": parameters["negative_prompt"],
        "all_negative_prompts": [parameters["negative_prompt"]] * len(seeds),
        "seed": seeds[0],
        "all_seeds": seeds,
        "subseed": subseeds[0],
        "all_subseeds": subseeds,
        "subseed_strength": request.get("subseed_strength", 0),
        "width": width,
        "height": height,
        "sampler_name": SAMPLERS[request["sampler"]].label,
        "scheduler": SCHEDULES[request["schedule"]].label,
        "cfg_scale": request["guidance_scale"],
        "steps": request["num_inference_steps"],
        "batch_size": parameters["batch_size"],
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": Path(first.model).name,
        "sd_model_hash": model.get("sha256", "")[:10],
        "sd_vae_name": vae.get("name"),
        "sd_vae_hash": vae.get("sha256", "")[:10] or None,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": request["strength"],
        "extra_generation_params": {},
        "index_of_first_image": 0,
        "infotexts": [a1111_text.format_parameters(record) for record in records],
        "styles": [],
        "job_timestamp": format_job_time(first.created),
        "clip_skip": request["clip_skip"] + 2,
        "is_using_inpainting_conditioning": "inpaint" in model.get("family", ""),
        "version": f"overpaint {version('overpaint')}",
        "interrupted": any(job.state == "canceled" for job in jobs),
        "flagged": [flag for job in jobs for flag in job.flagged],
    }


def _list_seeds(jobs: Sequence[Job]) -> tuple[list[int], list[int]]:
    """Return the seed and the subseed of each image, also of images that no job made."""
    seeds: list[int] = []
    subseeds: list[int] = []
    for job in jobs:
        planned = Request.model_construct(**job.request)
        made = list((job.result or {}).get("seeds", planned.picture_seeds))
        seeds += made
        subseeds += planned.picture_subseeds[: len(made)]
    return seeds, subseeds


def format_job_time(created: float) -> str:
    """Return a time in seconds since 1970 as YYYYMMDDHHMMSS in local time."""
    return datetime.fromtimestamp(created).strftime("%Y%m%d%H%M%S")
