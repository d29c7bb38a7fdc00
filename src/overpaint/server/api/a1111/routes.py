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
from weakref import WeakKeyDictionary

from fastapi import APIRouter, HTTPException
from fastapi import Request as Incoming
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from overpaint.errors import RequestError
from overpaint.imaging import images
from overpaint.models.library.index import Kind, packaged
from overpaint.provenance import metadata
from overpaint.provenance.foreign import a1111_pairs
from overpaint.registry import SAMPLERS, SCHEDULES
from overpaint.request import Request
from overpaint.server.api.a1111.controlnet import FINISHED, MODULES, controls_of
from overpaint.server.api.a1111.protocol import (
    LATENT_UPSCALER,
    UPSCALERS,
    ImageInputs,
    Options,
    TextInputs,
    in_their_words,
    named,
    picture_data,
    to_request,
)
from overpaint.server.api.deps import Serves
from overpaint.server.api.extended_fields import fault_of
from overpaint.server.api.fields import read_beside
from overpaint.server.api.results import awaited
from overpaint.server.api.route import telling
from overpaint.server.http.auth import Key
from overpaint.server.http.problems import answer, refusals
from overpaint.server.jobs.service import Service
from overpaint.server.store.jobs import ENDED, Job

PREVIEW_EVERY = 5
"""Steps between the pictures that `progress` shows."""

OPTIONS: WeakKeyDictionary[Service, dict[str, Options]] = WeakKeyDictionary()
"""What every key has set, until the server ends."""


def answered(error: Exception) -> JSONResponse:
    """The answer to one of `problems.ANSWERED`."""
    status, title, detail, headers = answer(error)
    body = {
        "error": type(error).__name__,
        "detail": detail,
        "body": "",
        "errors": detail if isinstance(detail, str) else title,
    }
    return JSONResponse(body, status, headers)


ERROR = {"type": "object", "required": ["error", "detail", "body", "errors"]}
"""The schema of an error in their words."""

router = APIRouter(tags=["AUTOMATIC1111"], route_class=telling(answered), responses=refusals(ERROR))
sdapi = APIRouter(prefix="/sdapi/v1", route_class=telling(answered))


class Generated(BaseModel):
    """What came of a request.

    Attributes:
        images: as base64.
        parameters: what was asked for.
        info: JSON: the seeds, and the settings as they are in the pictures.
    """

    images: list[str]
    parameters: dict[str, Any]
    info: str


class State(BaseModel):
    """Where the desk is."""

    skipped: bool = False
    interrupted: bool = False
    stopping_generation: bool = False
    job: str = ""
    job_count: int = 0
    job_timestamp: str = "0"
    job_no: int = 0
    sampling_step: int = 0
    sampling_steps: int = 0


class Progress(BaseModel):
    """How far the newest job is.

    Attributes:
        progress: 0 with nothing under way, to 1.
        eta_relative: seconds until it has ended, about.
        state: the same in counts.
        current_image: a preview, as base64.
        textinfo: in words.
        current_task: the job's id.
    """

    progress: float = 0.0
    eta_relative: float = 0.0
    state: State = Field(default_factory=State)
    current_image: str | None = None
    textinfo: str | None = None
    current_task: str | None = None


class PictureInfo(BaseModel):
    """The settings in a picture.

    Attributes:
        info: the text.
        items: all texts of the file.
        parameters: what stands in the text's last line.
    """

    info: str
    items: dict[str, str]
    parameters: dict[str, str]


class PictureIn(BaseModel):
    """A picture as base64, or as a data: URI."""

    image: str


# Pictures


@sdapi.post("/txt2img")
async def txt2img(given: TextInputs, incoming: Incoming, service: Serves, key: Key) -> Generated:
    """Text to image."""
    return await generate(given, incoming, service, key)


@sdapi.post("/img2img")
async def img2img(given: ImageInputs, incoming: Incoming, service: Serves, key: Key) -> Generated:
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

    request = await read_beside(read)
    kind = "jpg" if options.samples_format == "jpeg" else options.samples_format
    quality = {} if kind == "png" else {"quality": options.jpeg_quality}
    asked = given.model_dump(mode="json", exclude={"init_images", "mask", "alwayson_scripts"})
    origin = {
        "wire": "a1111",
        "parameters": asked,
        "output": {"kind": kind, "options": quality, "preview_every": PREVIEW_EVERY},
    }
    try:
        job = await service.submit(request, model=model, key=key, origin=origin)
    except RequestError as error:
        raise in_their_words(error) from None
    if not given.override_settings_restore_afterwards:
        OPTIONS.setdefault(service, {})[key] = options
    job = await awaited(service, job, incoming)
    if job.state == "failed":
        if fault := fault_of(job):
            raise in_their_words(fault)
        raise HTTPException(500, job.error)
    if job.state not in ENDED:
        raise HTTPException(503, f"the server ends; job {job.id} runs when it is back.")
    return Generated(**await told(service, job))


async def told(service: Service, job: Job) -> dict[str, Any]:
    """A job in their words, with its pictures; one that was interrupted has none."""
    parameters = job.origin["parameters"]

    def read() -> dict[str, Any]:
        folder = service.files.results(job.id)
        files = [(folder / name).read_bytes() for name in (job.result or {}).get("files", ())]
        info = {**info_of(job), "infotexts": list(map(infotext, files))}
        pictures = list(map(encoded, files)) if parameters["send_images"] else []
        return {"images": pictures, "parameters": parameters, "info": json.dumps(info)}

    return await asyncio.to_thread(read)


def infotext(data: bytes) -> str:
    """The settings that a picture of ours says, in their form."""
    with images.opened(data, "the result") as image:
        return metadata.parameters(json.loads(metadata.texts_of(image)["overpaint"]))


def info_of(job: Job) -> dict[str, Any]:
    """What they tell of pictures, but for what stands in these."""
    request, asked, result = job.request, job.origin["parameters"], job.result or {}
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
async def progress(service: Serves, key: Key, skip_current_image: bool = False) -> Progress:
    """How far the newest job is."""
    job = await newest(service, key)
    if job is None:
        return Progress()
    now = service.hub.now(job.id)
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
async def interrupt(service: Serves, key: Key) -> dict[str, Any]:
    """End the newest job before its next step."""
    if job := await newest(service, key):
        await service.cancel(job.id)
    return {}


@sdapi.post("/skip")
async def skip(service: Serves, key: Key) -> dict[str, Any]:
    """The same: a job's pictures are painted together."""
    return await interrupt(service, key)


# Options


def options_of(service: Service, key: str) -> Options:
    """What holds for a key's requests."""
    return OPTIONS.get(service, {}).get(key, Options())


def overridden(options: Options, by: Options) -> Options:
    """Options with those that were given in place of their own."""
    return options.model_copy(update={name: getattr(by, name) for name in by.model_fields_set})


def model_of(service: Service, options: Options) -> str:
    """The model that options name.

    Raises:
        RequestError: it is not here.
    """
    models = service.settings.models
    if not options.sd_model_checkpoint:
        return models[0]
    field = "override_settings.sd_model_checkpoint"
    return named(field, options.sd_model_checkpoint, models)


@sdapi.get("/options")
async def read_options(service: Serves, key: Key) -> Options:
    """What holds for the key's requests."""
    options = options_of(service, key)
    return options.model_copy(update={"sd_model_checkpoint": model_of(service, options)})


@sdapi.post("/options")
async def set_options(given: Options, service: Serves, key: Key) -> dict[str, Any]:
    """Set some of them, for the key's requests, until the server ends."""
    options = overridden(options_of(service, key), given)
    model_of(service, options)
    OPTIONS.setdefault(service, {})[key] = options
    return {}


# What there is


def names_of(service: Service, kind: Kind) -> list[str]:
    """What requests may name of a kind."""
    added = [entry.name for entry in service.entries.entries() if entry.kind == kind]
    return [*added, *packaged(kind)]


@sdapi.get("/sd-models")
async def models(service: Serves, key: Key) -> list[dict[str, Any]]:
    """Models."""
    return [
        {
            "title": name,
            "model_name": name,
            "hash": None,
            "sha256": None,
            "filename": name,
            "config": None,
        }
        for name in service.settings.models
    ]


@sdapi.get("/samplers")
async def samplers(key: Key) -> list[dict[str, Any]]:
    """Samplers."""
    return [
        {"name": one.label, "aliases": [one.name, *one.aliases], "options": {}}
        for one in SAMPLERS.values()
    ]


@sdapi.get("/schedulers")
async def schedulers(key: Key) -> list[dict[str, Any]]:
    """Schedules; "automatic" is what goes with the sampler."""
    own = [(one.name, one.label) for one in SCHEDULES.values() if one.name != "normal"]
    listed = [("automatic", "Automatic"), *own, ("ddim", SCHEDULES["normal"].label)]
    return [
        {
            "name": name,
            "label": label,
            "aliases": None,
            "default_rho": -1.0,
            "need_inner_model": False,
        }
        for name, label in listed
    ]


@sdapi.get("/loras")
async def loras(service: Serves, key: Key) -> list[dict[str, Any]]:
    """What `<lora:…>` may name."""
    names = await asyncio.to_thread(names_of, service, "lora")
    return [{"name": name, "alias": name, "path": name, "metadata": {}} for name in names]


@sdapi.get("/embeddings")
async def embeddings(service: Serves, key: Key) -> dict[str, Any]:
    """Learnt words, which prompts use by their names."""
    names = await asyncio.to_thread(names_of, service, "embedding")
    unknown = dict.fromkeys(("step", "sd_checkpoint", "sd_checkpoint_name", "shape", "vectors"))
    return {"loaded": dict.fromkeys(names, unknown), "skipped": {}}


@sdapi.get("/upscalers")
async def upscalers(key: Key) -> list[dict[str, Any]]:
    """What `hr_upscaler` may name, of pixels."""
    none = dict.fromkeys(("model_name", "model_path", "model_url"))
    return [{"name": name, **none, "scale": 4} for name in UPSCALERS]


@sdapi.get("/latent-upscale-modes")
async def latent_upscale_modes(key: Key) -> list[dict[str, str]]:
    """Likewise, of latents."""
    return [{"name": LATENT_UPSCALER}]


@sdapi.get("/scripts")
async def scripts(key: Key) -> dict[str, list[str]]:
    """What `alwayson_scripts` may name."""
    return {"txt2img": ["controlnet"], "img2img": ["controlnet"]}


@sdapi.get("/sd-vae")
@sdapi.get("/hypernetworks")
@sdapi.get("/face-restorers")
@sdapi.get("/realesrgan-models")
@sdapi.get("/prompt-styles")
async def none_of_these(key: Key) -> list[str]:
    """None."""
    return []


@sdapi.get("/cmd-flags")
async def cmd_flags(key: Key) -> dict[str, Any]:
    """None."""
    return {}


@sdapi.post("/refresh-checkpoints")
@sdapi.post("/refresh-loras")
@sdapi.post("/refresh-embeddings")
async def refresh(key: Key) -> dict[str, Any]:
    """Nothing to be done: names are looked up whenever they are used."""
    return {}


@sdapi.post("/png-info")
async def png_info(given: PictureIn, key: Key) -> PictureInfo:
    """The settings in a picture."""

    def look() -> PictureInfo:
        data = picture_data("image", given.image)
        with images.opened(data, "the image", images.RECEIVED, images.LARGEST_RECEIVED) as image:
            image.load()
            items = metadata.texts_of(image)
        text = items.get("parameters", "")
        last = text.strip().rpartition("\n")[2]
        return PictureInfo(info=text, items=items, parameters=a1111_pairs(last))

    return await read_beside(look)


@router.get("/queue/status")
async def queue_status(service: Serves, key: Key) -> dict[str, Any]:
    """How many jobs wait; a Krita plug-in takes the answer for a sign of life."""
    counts = await asyncio.to_thread(service.jobs.counts)
    return {"msg": "estimation", "queue_size": counts["queued"]}


@router.get("/controlnet/model_list")
async def control_nets(service: Serves, key: Key) -> dict[str, list[str]]:
    """Nets for hints."""
    return {"model_list": await asyncio.to_thread(names_of, service, "control")}


@router.get("/controlnet/module_list")
async def preprocessors(key: Key) -> dict[str, list[str]]:
    """What makes hints."""
    return {"module_list": [FINISHED[0], *MODULES]}


router.include_router(sdapi)
