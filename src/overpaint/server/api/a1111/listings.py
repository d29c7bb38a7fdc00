"""Lists of models, samplers, LoRAs and other names that AUTOMATIC1111's clients ask for."""

import asyncio
from typing import Any

from fastapi import APIRouter

from overpaint.models.library.entry import FileKind
from overpaint.models.library.index import list_packaged
from overpaint.registry import SAMPLERS, SCHEDULES
from overpaint.server.api.a1111.controlnet import KIND_BY_PREPROCESSOR, NO_PREPROCESSOR
from overpaint.server.api.a1111.protocol import (
    LATENT_UPSCALER,
    PIXEL_UPSCALERS,
    error_response,
)
from overpaint.server.api.deps import ServiceDep
from overpaint.server.api.route import make_route_class
from overpaint.server.http.auth import KeyDep
from overpaint.server.jobs.service import Service

router = APIRouter(prefix="/sdapi/v1", route_class=make_route_class(error_response))
controlnet_router = APIRouter(prefix="/controlnet", route_class=make_route_class(error_response))

EMBEDDING_FIELDS = ("step", "sd_checkpoint", "sd_checkpoint_name", "shape", "vectors")
UPSCALER_FIELDS = ("model_name", "model_path", "model_url")


def list_names(service: Service, kind: FileKind) -> list[str]:
    """Return the names that requests can use for files of a kind."""
    added = [entry.name for entry in service.entries.list_entries() if entry.kind == kind]
    return [*added, *list_packaged(kind)]


@router.get("/sd-models")
async def list_models(service: ServiceDep, key: KeyDep) -> list[dict[str, Any]]:
    """List the models of this server."""
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


@router.get("/samplers")
async def list_samplers(key: KeyDep) -> list[dict[str, Any]]:
    """List the samplers."""
    return [
        {"name": each.label, "aliases": [each.name, *each.aliases], "options": {}}
        for each in SAMPLERS.values()
    ]


@router.get("/schedulers")
async def list_schedulers(key: KeyDep) -> list[dict[str, Any]]:
    """List the schedules of noise levels; "automatic" is the default of the sampler."""
    native = [(each.name, each.label) for each in SCHEDULES.values() if each.name != "normal"]
    listed = [("automatic", "Automatic"), *native, ("ddim", SCHEDULES["normal"].label)]
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


@router.get("/loras")
async def list_loras(service: ServiceDep, key: KeyDep) -> list[dict[str, Any]]:
    """List the LoRAs, for `<lora:NAME:SCALE>` in prompts."""
    names = await asyncio.to_thread(list_names, service, "lora")
    return [{"name": name, "alias": name, "path": name, "metadata": {}} for name in names]


@router.get("/embeddings")
async def list_embeddings(service: ServiceDep, key: KeyDep) -> dict[str, Any]:
    """List the embeddings (textual inversions), which prompts use by name."""
    names = await asyncio.to_thread(list_names, service, "embedding")
    return {"loaded": dict.fromkeys(names, dict.fromkeys(EMBEDDING_FIELDS)), "skipped": {}}


@router.get("/upscalers")
async def list_upscalers(key: KeyDep) -> list[dict[str, Any]]:
    """List the upscalers of pixels, for `hr_upscaler`."""
    unknown = dict.fromkeys(UPSCALER_FIELDS)
    return [{"name": name, **unknown, "scale": 4} for name in PIXEL_UPSCALERS]


@router.get("/latent-upscale-modes")
async def list_latent_upscale_modes(key: KeyDep) -> list[dict[str, str]]:
    """List the upscalers of latents, for `hr_upscaler`."""
    return [{"name": LATENT_UPSCALER}]


@router.get("/scripts")
async def list_scripts(key: KeyDep) -> dict[str, list[str]]:
    """List the scripts, for `alwayson_scripts`."""
    return {"txt2img": ["controlnet"], "img2img": ["controlnet"]}


@router.get("/sd-vae")
@router.get("/hypernetworks")
@router.get("/face-restorers")
@router.get("/realesrgan-models")
@router.get("/prompt-styles")
async def list_unsupported(key: KeyDep) -> list[str]:
    """Return an empty list: the server does not support this kind of file."""
    return []


@router.get("/cmd-flags")
async def list_command_flags(key: KeyDep) -> dict[str, Any]:
    """Return an empty object: the server has none of the web UI's command line flags."""
    return {}


@router.post("/refresh-checkpoints")
@router.post("/refresh-loras")
@router.post("/refresh-embeddings")
async def refresh_names(key: KeyDep) -> dict[str, Any]:
    """Do nothing: the server looks up names for every request."""
    return {}


@controlnet_router.get("/model_list")
async def list_controlnets(service: ServiceDep, key: KeyDep) -> dict[str, list[str]]:
    """List the ControlNets."""
    return {"model_list": await asyncio.to_thread(list_names, service, "control")}


@controlnet_router.get("/module_list")
async def list_preprocessors(key: KeyDep) -> dict[str, list[str]]:
    """List the ControlNet preprocessors."""
    return {"module_list": [NO_PREPROCESSOR[0], *KIND_BY_PREPROCESSOR]}
