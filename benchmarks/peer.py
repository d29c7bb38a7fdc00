"""diffusers' pipelines, to which the benchmarks compare Overpaint."""

import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import (
    StableDiffusionXLPipeline,
)
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_img2img import (
    StableDiffusionXLImg2ImgPipeline,
)
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_inpaint import (
    StableDiffusionXLInpaintPipeline,
)
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.utils import logging as diffusers_logging
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from benchmarks.checkpoints import (
    DTYPES_BY_NAME,
    find_cpu_dtype,
    shallow_sdxl_configs,
    write_random_checkpoint,
)
from overpaint.models.library import catalog
from overpaint.nn.packed import unpacked_state
from overpaint.painter import Painter, load

for library_logging in (diffusers_logging, transformers_logging):
    library_logging.set_verbosity_error()
    library_logging.disable_progress_bar()

PARTS: dict[str, Any] = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
}


def load_parts(folder: Path, dtype: torch.dtype, *names: str) -> dict[str, Any]:
    """Load the named modules of a diffusers folder, as diffusers does."""
    parts: dict[str, Any] = {}
    for name in names:
        key = "dtype" if name.startswith("text") else "torch_dtype"
        parts[name] = PARTS[name].from_pretrained(folder / name, **{key: dtype}).eval()
    return parts


def share_unet(unet: Any) -> Any:
    """Return diffusers' UNet with Overpaint's weights: the same memory, but for packed weights."""
    with torch.device("meta"):
        made: Any = UNet2DConditionModel.from_config(unet.config)
    made.load_state_dict(unpacked_state(unet), assign=True)
    return made.eval().requires_grad_(False)


def load_pipeline(folder: Path, dtype: torch.dtype) -> StableDiffusionXLPipeline:
    return make_pipeline(load_parts(folder, dtype, *PARTS) | load_tokenizers(folder))


def load_tokenizers(folder: Path) -> dict[str, Any]:
    return {
        name: CLIPTokenizer.from_pretrained(folder / name) for name in ("tokenizer", "tokenizer_2")
    }


def make_pipeline(parts: dict[str, Any]) -> StableDiffusionXLPipeline:
    """Return a text-to-image pipeline with Overpaint's default sampler and schedule."""
    scheduler: Any = DPMSolverMultistepScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        use_karras_sigmas=True,
        final_sigmas_type="zero",
        steps_offset=1,
    )
    made = StableDiffusionXLPipeline(
        **parts, scheduler=scheduler, force_zeros_for_empty_prompt=False, add_watermarker=False
    )
    made.set_progress_bar_config(disable=True)
    return made


def make_image_to_image_pipeline(
    base: StableDiffusionXLPipeline,
) -> StableDiffusionXLImg2ImgPipeline:
    """Return an image-to-image pipeline with the modules of `base`."""
    return _rebuild(base, StableDiffusionXLImg2ImgPipeline)


def make_inpainting_pipeline(base: StableDiffusionXLPipeline) -> StableDiffusionXLInpaintPipeline:
    """Return an inpainting pipeline with the modules of `base`."""
    return _rebuild(base, StableDiffusionXLInpaintPipeline)


def _rebuild(base: StableDiffusionXLPipeline, kind: Any) -> Any:
    parts = {name: part for name, part in base.components.items() if part is not None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = kind(**parts, force_zeros_for_empty_prompt=False, add_watermarker=False)
    made.set_progress_bar_config(disable=True)
    return made


def find_requested_steps(run: int, strength: float) -> int:
    """Return the steps to request so that diffusers, with int(steps × strength), runs `run`."""
    return next(steps for steps in range(run, 100 * run) if int(steps * strength) == run)


def load_pairs(*, quick: bool) -> Iterator[tuple[str, Painter, Any]]:
    """Yield a model's name, Overpaint's painter and diffusers' pipeline: the miniature in fp32.

    If not quick, yield a checkpoint of random layers of SDXL's sizes too.
    """
    miniature = catalog.resolve_model(catalog.MINIATURE)
    painter = load(catalog.MINIATURE, device="cpu", dtype="fp32")
    yield "miniature", painter, load_pipeline(miniature, torch.float32)
    if quick:
        return
    with tempfile.TemporaryDirectory(prefix="overpaint-bench-") as temporary:
        name = find_cpu_dtype()
        dtype = DTYPES_BY_NAME[name]
        folder, _ = write_random_checkpoint(Path(temporary), shallow_sdxl_configs(), dtype)
        yield (
            f"shallow SDXL, {name}",
            load(str(folder), device="cpu", dtype=name),
            load_pipeline(folder, dtype),
        )
