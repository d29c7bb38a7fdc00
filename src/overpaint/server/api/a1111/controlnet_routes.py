"""The routes of the web UI's ControlNet extension: names, settings and finished control images."""

import asyncio
import json
import subprocess
import sys
import time
from io import BytesIO
from typing import Any

from fastapi import APIRouter
from PIL import Image
from PIL.Image import Resampling
from pydantic import Field

from overpaint.errors import ModelNotFoundError, RequestError, did_you_mean, quote_value
from overpaint.imaging import codec
from overpaint.request.fields import MAX_CONTROLS
from overpaint.server.api.a1111.controlnet import (
    KIND_BY_MODEL_WORD,
    KIND_BY_PREPROCESSOR,
    NO_PREPROCESSOR,
    find_kind,
)
from overpaint.server.api.a1111.image_fields import decode_image
from overpaint.server.api.a1111.listings import list_names
from overpaint.server.api.a1111.option_fields import A1111Model
from overpaint.server.api.a1111.protocol import error_response
from overpaint.server.api.deps import ServiceDep
from overpaint.server.api.fields import encode_base64
from overpaint.server.api.ignored_fields import Ignored, report_ignored_fields
from overpaint.server.api.route import make_route_class
from overpaint.server.http.auth import KeyDep
from overpaint.server.http.threads import run_in_threads
from overpaint.system.fair_threads import FairThreads

LABEL_BY_KIND = {
    "canny": "Canny",
    "depth": "Depth",
    "normal": "NormalMap",
    "pose": "OpenPose",
    "lineart": "Lineart",
    "softedge": "SoftEdge",
    "scribble": "Scribble",
    "segmentation": "Segmentation",
    "shuffle": "Shuffle",
    "tile": "Tile",
    "blur": "Blur",
}
"""The extension's name for each kind of control image."""

API_VERSION = 2
"""Version of the extension's API."""

ESTIMATED_KINDS = ("depth", "normal", "segmentation")
"""Kinds of control images that need an estimator network, which must be installed."""

MAX_DETECT_S = 60
"""Largest number of seconds for all control images of a request."""

MAX_PROCESSOR_RES_PX = 2048
"""Largest `controlnet_processor_res`."""

DETECT_THREADS, DETECT_THREADS_PER_KEY = 2, 1
"""Separate threads: control images that take a minute keep no other pictures waiting."""

MAX_DETECTED_PIXELS = 4 * 2**20
"""Largest number of pixels of a control image that `/controlnet/detect` returns."""

RESOLUTION_SLIDER = {
    "name": "Resolution",
    "value": 512,
    "min": 64,
    "max": MAX_PROCESSOR_RES_PX,
    "step": 8,
}
"""`processor_res`: side of a control image in pixels."""

SLIDERS_BY_PREPROCESSOR = {
    "canny": [
        {"name": "Low Threshold", "value": 100, "min": 1, "max": 255, "step": 1},
        {"name": "High Threshold", "value": 200, "min": 1, "max": 255, "step": 1},
    ],
}
"""`threshold_a` and `threshold_b` of a preprocessor, with the defaults of its control image."""

_detectors = FairThreads(DETECT_THREADS, DETECT_THREADS_PER_KEY, "overpaint-detect")

router = APIRouter(prefix="/controlnet", route_class=make_route_class(error_response))


@router.get("/version")
async def get_version(key: KeyDep) -> dict[str, int]:
    """Return the version of the ControlNet API."""
    return {"version": API_VERSION}


@router.get("/settings")
async def get_settings(key: KeyDep) -> dict[str, int]:
    """Return the largest number of ControlNet units in a request, also under its older name."""
    return {"control_net_unit_count": MAX_CONTROLS, "control_net_max_models_num": MAX_CONTROLS}


@router.get("/model_list")
async def list_controlnets(service: ServiceDep, key: KeyDep) -> dict[str, list[str]]:
    """List the ControlNets."""
    return {"model_list": await asyncio.to_thread(list_names, service, "control")}


@router.get("/module_list")
async def list_preprocessors(key: KeyDep) -> dict[str, Any]:
    """List the ControlNet preprocessors with their settings."""
    names = [NO_PREPROCESSOR[0], *KIND_BY_PREPROCESSOR]
    details = {name: {"model_free": False, "sliders": list_sliders(name)} for name in names}
    return {"module_list": names, "module_detail": details}


def list_sliders(preprocessor: str) -> list[dict[str, Any]]:
    """Describe the settings of a preprocessor: `processor_res`, `threshold_a`, `threshold_b`.

    Clients that show sliders take their order from here.
    """
    if preprocessor in NO_PREPROCESSOR:
        return []
    return [RESOLUTION_SLIDER, *SLIDERS_BY_PREPROCESSOR.get(preprocessor, ())]


@router.get("/control_types")
async def list_control_types(service: ServiceDep, key: KeyDep) -> dict[str, Any]:
    """List the preprocessors and the ControlNets for each kind of control image."""
    nets = await asyncio.to_thread(list_names, service, "control")
    types = {"All": _describe_type(list(KIND_BY_PREPROCESSOR), nets)}
    for kind, label in LABEL_BY_KIND.items():
        modules = [name for name, own in KIND_BY_PREPROCESSOR.items() if own == kind]
        words = [word for word, own in KIND_BY_MODEL_WORD.items() if own == kind]
        fitting = [net for net in nets if any(word in net.lower() for word in words)]
        types[label] = _describe_type(modules, fitting)
    return {"control_types": types}


def _describe_type(modules: list[str], nets: list[str]) -> dict[str, Any]:
    return {
        "module_list": [NO_PREPROCESSOR[0], *modules],
        "model_list": ["None", *nets],
        "default_option": modules[0] if modules else NO_PREPROCESSOR[0],
        "default_model": nets[0] if nets else "None",
    }


class DetectRequest(A1111Model):
    """Images for a preprocessor."""

    controlnet_module: str = NO_PREPROCESSOR[0]
    """Name of the preprocessor."""
    controlnet_input_images: list[str] = Field(min_length=1, max_length=16)
    """Images as base64 or data: URIs."""
    controlnet_processor_res: int = Field(default=512, ge=-1, le=MAX_PROCESSOR_RES_PX)
    """Length of the control image's shorter side in pixels; -1 or 0 keeps the image's size."""
    controlnet_threshold_a: float = -1
    """Low threshold of canny."""
    controlnet_threshold_b: float = -1
    """High threshold of canny."""

    controlnet_masks: Ignored = None
    low_vram: Ignored = None


@router.post("/detect")
async def detect(given: DetectRequest, key: KeyDep) -> dict[str, Any]:
    """Return the control images that a preprocessor makes."""
    report_ignored_fields(given)
    images = await run_in_threads(_detectors, make_control_images, given)
    return {"images": images, "info": "Success"}


def make_control_images(given: DetectRequest) -> list[str]:
    """Return the control images of a request as base64, all within `MAX_DETECT_S`."""
    field = "controlnet_module"
    module = given.controlnet_module
    kind = find_kind(module)
    if kind is None and module not in NO_PREPROCESSOR:
        hint = did_you_mean(module, KIND_BY_PREPROCESSOR)
        raise RequestError(field, f"Unknown preprocessor {quote_value(module)}.{hint}")
    thresholds = {"low": given.controlnet_threshold_a, "high": given.controlnet_threshold_b}
    options = {name: value for name, value in thresholds.items() if value >= 0}
    made: list[str] = []
    deadline = time.monotonic() + MAX_DETECT_S
    for text in given.controlnet_input_images:
        picture = codec.receive_picture(
            decode_image("controlnet_input_images", text), "controlnet_input_images"
        )
        image = _resize_for_processor(codec.decode(picture), given.controlnet_processor_res)
        file = BytesIO()
        image.save(file, "PNG")
        data = file.getvalue()
        if kind is not None:
            data = _make_hint(kind, data, options if kind == "canny" else {}, deadline)
        made.append(encode_base64(data))
    return made


def _make_hint(kind: str, image: bytes, options: dict[str, float], deadline: float) -> bytes:
    """Make a control image in another process: this one does without OpenCV.

    Args:
        kind: of the control image.
        image: a picture's file.
        options: of the kind.
        deadline: the monotonic time at which the process is ended.

    Raises:
        RequestError: the image cannot be made.
    """
    if kind in ESTIMATED_KINDS:
        command = [sys.executable, "-m", "overpaint.models.estimated_hint", kind]
    else:
        command = [sys.executable, "-m", "overpaint.imaging.hints", kind, json.dumps(options)]
    try:
        done = subprocess.run(
            command,
            input=image,
            capture_output=True,
            timeout=max(0.0, deadline - time.monotonic()),
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise RequestError(
            "controlnet_input_images",
            f"They take more than {MAX_DETECT_S} seconds. Send fewer or smaller images.",
        ) from None
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        is_missing = done.returncode == ModelNotFoundError.exit_code
        field = "controlnet_module" if is_missing else "controlnet_input_images"
        raise RequestError(field, reason or "The control image is not made.")
    return done.stdout


def _resize_for_processor(image: Image.Image, shorter_side: int) -> Image.Image:
    """Resize an image so that its shorter side has a length, within `MAX_DETECTED_PIXELS`."""
    factor = shorter_side / min(image.size) if shorter_side > 0 else 1.0
    factor = min(factor, (MAX_DETECTED_PIXELS / (image.width * image.height)) ** 0.5)
    size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    return image if size == image.size else image.resize(size, Resampling.LANCZOS)
