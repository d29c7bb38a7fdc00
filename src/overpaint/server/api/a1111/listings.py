"""Lists of models, samplers, LoRAs and other names that AUTOMATIC1111's clients ask for."""

import asyncio
import contextlib
import json
import os
from pathlib import Path
from typing import Any

from fastapi import APIRouter

from overpaint.errors import ModelNotFoundError, RequestError
from overpaint.models.files.lora.keys import strip_brackets
from overpaint.models.library.entry import FileKind
from overpaint.models.library.index import list_packaged
from overpaint.registry import SAMPLERS, SCHEDULES
from overpaint.request.fields import EMBEDDING_PATTERN
from overpaint.request.lora_tags import take_lora_tags
from overpaint.server.api.a1111.model_titles import MODEL_HASH, resolve_model_title
from overpaint.server.api.a1111.protocol import (
    CONTROLNET_FIELD,
    LATENT_UPSCALER,
    PIXEL_UPSCALERS,
    error_response,
)
from overpaint.server.api.deps import ServiceDep
from overpaint.server.api.route import make_route_class
from overpaint.server.http.auth import KeyDep
from overpaint.server.jobs.service import Service

router = APIRouter(prefix="/sdapi/v1", route_class=make_route_class(error_response))

SCRIPT_NAME = "controlnet"
MAX_HEADER_BYTES = 2**20
"""Largest header of an embedding's file that the server reads."""

UPSCALER_FIELDS = ("model_name", "model_path", "model_url")


def list_names(service: Service, kind: FileKind) -> list[str]:
    """Return the names that requests can use for files of a kind."""
    added = [entry.name for entry in service.entries.list_entries() if entry.kind == kind]
    return [*added, *list_packaged(kind)]


def list_embedding_names(service: Service, prompt: str) -> list[str]:
    """Return the names of embeddings that a prompt can use: all added ones, and those in its LoRAs.

    As in the web UI, an embedding in a LoRA file counts only beside that LoRA's tag.

    Raises:
        RequestError: a tag of the prompt cannot be read.
    """
    names = list_names(service, "embedding")
    for lora in take_lora_tags(prompt)[1]:
        with contextlib.suppress(ModelNotFoundError):  # `Service.submit` names it in its error.
            if entry := service.entries.resolve(lora["name"], "lora"):
                names += map(strip_brackets, entry.embeddings)
    return [name for name in names if EMBEDDING_PATTERN.fullmatch(f"<embedding:{name}>")]


def resolve_controlnet_title(service: Service, title: str) -> str:
    """Return the name of the ControlNet with a title, such as "folder/Name.safetensors [hash]".

    The library finds names, files, titles in metadata and hashes; else the rules for checkpoints
    apply.

    Raises:
        RequestError: no ControlNet has that title, or several have it.
    """
    field = f"{CONTROLNET_FIELD}.model"
    try:
        entry = service.entries.resolve(MODEL_HASH.sub("", title), "control")
    except ModelNotFoundError as error:
        raise RequestError(field, str(error)) from error
    if entry:
        return entry.name
    return resolve_model_title(field, title, list_names(service, "control"))


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

    def describe() -> dict[str, Any]:
        files = list_packaged("embedding") | {
            entry.name: entry.path
            for entry in service.entries.list_entries()
            if entry.kind == "embedding"
        }
        return {name: _describe_embedding(path) for name, path in files.items()}

    return {"loaded": await asyncio.to_thread(describe), "skipped": {}}


def _describe_embedding(path: Path) -> dict[str, Any]:
    """Return the number of an embedding's vectors and their length over all text encoders."""
    shapes = read_tensor_shapes(path)
    return {
        "step": None,
        "sd_checkpoint": None,
        "sd_checkpoint_name": None,
        "shape": sum(shape[-1] for shape in shapes if shape),
        "vectors": max((shape[0] if len(shape) > 1 else 1 for shape in shapes), default=0),
    }


def read_tensor_shapes(path: Path) -> list[list[int]]:
    """Return the shapes of a small safetensors file, from its header; none if it is unreadable."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(size, MAX_HEADER_BYTES)))
        shapes = [own["shape"] for name, own in header.items() if name != "__metadata__"]
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        return []  # the file may be removed at this moment
    return [shape for shape in shapes if all(isinstance(side, int) for side in shape)]


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
    return {"txt2img": [SCRIPT_NAME], "img2img": [SCRIPT_NAME]}


@router.get("/script-info")
async def describe_scripts(key: KeyDep) -> list[dict[str, Any]]:
    """Describe the scripts: ControlNet, for text to image and for image to image."""
    return [
        {"name": SCRIPT_NAME, "is_alwayson": True, "is_img2img": is_img2img, "args": []}
        for is_img2img in (False, True)
    ]


@router.get("/sd-vae")
async def list_vaes(service: ServiceDep, key: KeyDep) -> list[dict[str, str]]:
    """List the added VAEs, for the option `sd_vae`."""
    names = await asyncio.to_thread(list_names, service, "vae")
    return [{"model_name": name, "filename": name} for name in names]


@router.get("/hypernetworks")
@router.get("/face-restorers")
@router.get("/realesrgan-models")
@router.get("/extensions")
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
@router.post("/refresh-vae")
async def refresh_names(key: KeyDep) -> dict[str, Any]:
    """Do nothing: the server looks up names for every request."""
    return {}


@router.post("/unload-checkpoint")
@router.post("/reload-checkpoint")
async def move_checkpoint(key: KeyDep) -> dict[str, Any]:
    """Do nothing: the server loads and unloads models as its jobs need them."""
    return {}


@router.get("/memory")
async def read_memory(key: KeyDep) -> dict[str, Any]:
    """Return the memory of the machine in bytes. The server does not tell that of accelerators."""
    total, free = await asyncio.to_thread(_read_ram)
    return {
        "ram": {"free": free, "used": total - free, "total": total},
        "cuda": {"error": "unavailable"},
    }


def _read_ram() -> tuple[int, int]:
    """Return the machine's memory and its free part, in bytes; (0, 0) if the system has neither."""
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        return page * os.sysconf("SC_PHYS_PAGES"), page * os.sysconf("SC_AVPHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0, 0
