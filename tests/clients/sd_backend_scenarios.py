"""Scenarios of sd-backend-client: `python -m tests.clients.sd_backend_scenarios URL PICTURE`.

PYTHONPATH must contain `.venv/clients`. The results of all scenarios are printed as JSON.
"""

from __future__ import annotations

import importlib
import time
from pathlib import Path
from typing import Any

from PIL import Image

from tests.clients.scenarios import SEED, encode, print_results

sd: Any = importlib.import_module("sd_backend_client")

TIMEOUT_S = 60
POLL_S = 0.01


def wait(handle: Any) -> list[str]:
    result = handle.wait(timeout=TIMEOUT_S, poll_interval=POLL_S)
    return [encode(image.convert("RGB")) for image in result.images]


def txt2img(url: str, picture: Path) -> Any:
    backend = sd.connect_to_backend(url)
    params = sd.DiffusionParams(prompt="a cup", steps=3, batch_size=2, seed=SEED)
    result = backend.submit_txt2img(params).wait(timeout=TIMEOUT_S, poll_interval=POLL_S)
    return {
        "pictures": [encode(image.convert("RGB")) for image in result.images],
        "seeds": result.seeds,
        "client": type(backend).__name__,
    }


def txt2img_in_two_passes(url: str, picture: Path) -> Any:
    params = sd.DiffusionRequestBody(
        prompt="a cup",
        steps=3,
        seed=SEED,
        n_iter=2,
        enable_hr=True,
        hr_scale=1.5,
        hr_upscaler="Latent",
        denoising_strength=0.5,
        sd_model_name="sdxl",
        sampler="dpmpp_2m",
        scheduler="karras",
        styles=[],
        override_settings={"CLIP_stop_at_last_layers": 2},
    )
    return wait(sd.connect_to_backend(url).submit_txt2img(params))


def img2img(url: str, picture: Path) -> Any:
    params = sd.DiffusionParams(
        prompt="a cup", steps=3, seed=SEED, init_images=[Image.open(picture)], width=133, height=121
    )
    return wait(sd.connect_to_backend(url).submit_img2img(params))


def inpaint(url: str, picture: Path) -> Any:
    source = Image.open(picture)
    mask = Image.new("L", source.size)
    mask.paste(255, (0, 0, source.width // 2, source.height))
    params = sd.DiffusionParams(
        prompt="a cup",
        steps=3,
        seed=SEED,
        init_images=[source],
        mask=mask,
        mask_blur=8,
        inpaint_full_res=True,
        inpaint_full_res_padding=16,
    )
    return wait(sd.connect_to_backend(url).submit_inpaint(params))


def control(url: str, picture: Path) -> Any:
    """Choose a preprocessor and a ControlNet from the lists of the server, and use both."""
    backend = sd.connect_to_backend(url)
    canny = backend.get_controlnet_type_categories()["Canny"]
    module = next(name for name in canny["module_list"] if name.lower() != "none")
    model = next(name for name in canny["model_list"] if name.lower() != "none")
    found = next(each for each in backend.get_controlnet_preprocessors() if each.name == module)
    unit = sd.ControlNetUnit(
        image=Image.open(picture),
        preprocessor=sd.PreprocessorParams(typedef=found, parameter_values={}),
        model=sd.ControlNetModel(model),
        control_strength=0.8,
    )
    params = sd.DiffusionParams(prompt="a cup", steps=3, seed=SEED, controlnet_units=[unit])
    preview = backend.submit_preprocessor_preview(Image.open(picture), found)
    return {
        "pictures": wait(backend.submit_txt2img(params)),
        "parameters": [each.key for each in found.parameters],
        "preview": preview.wait(timeout=TIMEOUT_S, poll_interval=POLL_S).images[0].size,
        "used": [module, model],
    }


def discover(url: str, picture: Path) -> Any:
    backend = sd.connect_to_backend(url)
    capabilities = backend.get_capabilities()
    names = {
        kind: [option.name for option in getattr(backend, f"list_{kind}")()]
        for kind in (
            "checkpoints",
            "vaes",
            "loras",
            "hypernetworks",
            "samplers",
            "schedulers",
            "upscalers",
        )
    }
    controlnets = [net.full_model_name for net in backend.list_controlnet_models()]
    return {
        **names,
        "controlnets": controlnets,
        "controlnet": capabilities.controlnet,
        "scheduler": capabilities.scheduler,
        "interrogate": capabilities.interrogate,
    }


def cancel(url: str, picture: Path) -> Any:
    handle = sd.connect_to_backend(url).submit_txt2img(sd.DiffusionParams(steps=1000))
    while not handle.done and not handle.poll().progress:
        time.sleep(POLL_S)
    accepted = handle.cancel()
    try:
        wait(handle)
    except sd.GenerationError as error:
        return {"accepted": accepted, "status": error.status.value}
    return {"accepted": accepted, "status": "finished"}


def errors(url: str, picture: Path) -> Any:
    webui = sd.A1111Webservice(url)
    try:
        webui.txt2img(sd.DiffusionRequestBody(prompt="a cup", tiling=True))
    except sd.ServerError as error:
        return {"status": error.status_code, "body": str(error.body)}
    return None


if __name__ == "__main__":
    print_results(
        txt2img,
        txt2img_in_two_passes,
        img2img,
        inpaint,
        control,
        discover,
        cancel,
        errors,
    )
