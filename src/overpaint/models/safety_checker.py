"""Stable Diffusion's safety checker: a CLIP that compares a picture with known concepts.

The folder has the format of diffusers: `config.json`, `preprocessor_config.json`, safetensors.
Concepts have numbers, not names. The method is that of diffusers
(`pipelines/stable_diffusion/safety_checker.py`), but does not replace pictures with black ones.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL.Image import Image
from torch.nn.functional import normalize
from transformers import CLIPConfig

from overpaint.errors import CheckpointError, ModelNotFoundError
from overpaint.models.devices import choose_device
from overpaint.models.estimators import load_processor
from overpaint.models.files import weight_variants
from overpaint.models.files.json_config import read_json_config
from overpaint.models.files.safetensors_io import open_weights, sample_keys
from overpaint.provenance.safety import Verdict

NESTED_PREFIX = re.compile(r"^vision_model\.vision_model\.")
"""The prefix of keys in files from earlier releases of transformers."""

COMPUTED_KEYS = re.compile(r".*\.position_ids$")
"""Keys of tensors that the module computes, so that files need not contain them."""

SPECIAL_CARE_MARGIN = 0.01
"""Added to the similarity of every concept if a picture matches a special-care concept."""


@dataclass(frozen=True, eq=False)
class SafetyChecker:
    """A safety checker on a device."""

    module: Any
    processor: Any

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image], /) -> list[Verdict]:
        """Flag pictures whose similarity to a concept exceeds the concept's threshold."""
        module = self.module
        inputs = self.processor(images=list(images), return_tensors="pt")
        pixels = inputs["pixel_values"].to(module.device, module.dtype)
        seen = normalize(module.visual_projection(module.vision_model(pixels)[1]))
        care = _measure_excess(
            seen, module.special_care_embeds, module.special_care_embeds_weights, 0.0
        )
        further = SPECIAL_CARE_MARGIN * (care > 0).any(dim=1, keepdim=True)
        beyond = _measure_excess(
            seen, module.concept_embeds, module.concept_embeds_weights, further
        )
        found = [[f"concept {i}" for i, by in enumerate(row) if by > 0] for row in beyond.tolist()]
        return [Verdict(bool(concepts), tuple(concepts)) for concepts in found]


def _measure_excess(seen: Any, concepts: Any, thresholds: Any, further: Any) -> torch.Tensor:
    """Return how far each picture's similarity exceeds each threshold, to three decimals."""
    near = (seen @ normalize(concepts).T).float()
    return (near - thresholds.float() + further).round(decimals=3)


def load_safety_checker(folder: Path, device: str = "auto") -> SafetyChecker:
    """Load a safety checker.

    Args:
        folder: The folder of the safety checker.
        device: See `devices.choose_device`.

    Raises:
        ModelNotFoundError: The folder does not exist.
        CheckpointError: The folder holds another model or a pickle, or is incomplete.
        DeviceError: This machine does not have the device.
    """
    if not folder.is_dir():
        raise ModelNotFoundError(
            f"The safety checker's folder {folder} does not exist; give a folder with config.json, "
            "preprocessor_config.json and model.safetensors, or MODULE:FUNCTION."
        )
    where = choose_device(device, "fp32", None, small=True)  # thresholds have three decimals
    settings = read_json_config(folder / "config.json")
    if settings.get("model_type") != "clip":
        raise CheckpointError(
            f"{folder} is of model_type {settings.get('model_type')!r}; Stable Diffusion's safety "
            "checker is a 'clip'."
        )
    processor = load_processor(folder, "CLIPImageProcessor")
    names = weight_variants.choose_weight_files((e.name for e in folder.iterdir()), half=False)
    tensors = {
        NESTED_PREFIX.sub("vision_model.", key): stored.read()
        for name in names
        for key, stored in open_weights(folder / name).tensors.items()
        if not COMPUTED_KEYS.match(key)
    }
    try:
        module: Any = StableDiffusionSafetyChecker(CLIPConfig.from_dict(settings))
        said = module.load_state_dict(tensors, strict=False)
    except Exception as error:  # a broken config can cause any error in the library
        raise CheckpointError(f"{folder} cannot be loaded as a safety checker: {error}") from error
    for what, keys in (("missing", said.missing_keys), ("unknown", said.unexpected_keys)):
        if keys:
            raise CheckpointError(f"{folder}: {len(keys)} keys are {what}: {sample_keys(keys)}")
    module = module.to(where.device, where.dtype).eval().requires_grad_(False)
    return SafetyChecker(module, processor)
