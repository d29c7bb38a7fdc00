"""Listings."""

import asyncio
from typing import Any

from fastapi import APIRouter

from overpaint.models.library.index import FileKind, list_packaged
from overpaint.registry import SAMPLERS, SCHEDULES
from overpaint.server.api.a1111.controlnet import FINISHED, MODULES
from overpaint.server.api.a1111.protocol import LATENT_UPSCALER, UPSCALERS, error_response
from overpaint.server.api.deps import ServiceDep
from overpaint.server.api.route import make_route_class
from overpaint.server.http.auth import KeyDep
from overpaint.server.jobs.service import Service

router = APIRouter(prefix="/sdapi/v1", route_class=make_route_class(error_response))
controlnet_router = APIRouter(prefix="/controlnet", route_class=make_route_class(error_response))


def names_of(service: Service, kind: FileKind) -> list[str]:
    """What requests may name of a kind."""
    added = [entry.name for entry in service.entries.list_entries() if entry.kind == kind]
    return [*added, *list_packaged(kind)]


@router.get("/sd-models")
async def models(service: ServiceDep, key: KeyDep) -> list[dict[str, Any]]:
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


@router.get("/samplers")
async def samplers(key: KeyDep) -> list[dict[str, Any]]:
    """Samplers."""
    return [
        {"name": one.label, "aliases": [one.name, *one.aliases], "options": {}}
        for one in SAMPLERS.values()
    ]


@router.get("/schedulers")
async def schedulers(key: KeyDep) -> list[dict[str, Any]]:
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


@router.get("/loras")
async def loras(service: ServiceDep, key: KeyDep) -> list[dict[str, Any]]:
    """What `<lora:…>` may name."""
    names = await asyncio.to_thread(names_of, service, "lora")
    return [{"name": name, "alias": name, "path": name, "metadata": {}} for name in names]


@router.get("/embeddings")
async def embeddings(service: ServiceDep, key: KeyDep) -> dict[str, Any]:
    """Learnt words, which prompts use by their names."""
    names = await asyncio.to_thread(names_of, service, "embedding")
    unknown = dict.fromkeys(("step", "sd_checkpoint", "sd_checkpoint_name", "shape", "vectors"))
    return {"loaded": dict.fromkeys(names, unknown), "skipped": {}}


@router.get("/upscalers")
async def upscalers(key: KeyDep) -> list[dict[str, Any]]:
    """What `hr_upscaler` may name, of pixels."""
    none = dict.fromkeys(("model_name", "model_path", "model_url"))
    return [{"name": name, **none, "scale": 4} for name in UPSCALERS]


@router.get("/latent-upscale-modes")
async def latent_upscale_modes(key: KeyDep) -> list[dict[str, str]]:
    """Likewise, of latents."""
    return [{"name": LATENT_UPSCALER}]


@router.get("/scripts")
async def scripts(key: KeyDep) -> dict[str, list[str]]:
    """What `alwayson_scripts` may name."""
    return {"txt2img": ["controlnet"], "img2img": ["controlnet"]}


@router.get("/sd-vae")
@router.get("/hypernetworks")
@router.get("/face-restorers")
@router.get("/realesrgan-models")
@router.get("/prompt-styles")
async def none_of_these(key: KeyDep) -> list[str]:
    """None."""
    return []


@router.get("/cmd-flags")
async def cmd_flags(key: KeyDep) -> dict[str, Any]:
    """None."""
    return {}


@router.post("/refresh-checkpoints")
@router.post("/refresh-loras")
@router.post("/refresh-embeddings")
async def refresh(key: KeyDep) -> dict[str, Any]:
    """Nothing to be done: names are looked up whenever they are used."""
    return {}


@controlnet_router.get("/model_list")
async def control_nets(service: ServiceDep, key: KeyDep) -> dict[str, list[str]]:
    """Nets for hints."""
    return {"model_list": await asyncio.to_thread(names_of, service, "control")}


@controlnet_router.get("/module_list")
async def preprocessors(key: KeyDep) -> dict[str, list[str]]:
    """What makes hints."""
    return {"module_list": [FINISHED[0], *MODULES]}
