"""Recognize and convert single-file checkpoints in SDXL's original key layout."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from overpaint.errors import CheckpointError
from overpaint.models.family import OTHER_MODELS_BY_WIDTH, Configs, shipped_configs
from overpaint.models.files import key_patterns, model_parts
from overpaint.models.files.key_patterns import PART_PREFIXES, UNET
from overpaint.models.files.lazy_tensor import LazyTensor
from overpaint.models.files.model_parts import Parts
from overpaint.models.files.safetensors_io import WeightsFile, sample_keys
from overpaint.models.noise_config import NoiseConfig

SHIPPED_CONFIGS = {(2048, 4): "sdxl", (2048, 9): "sdxl-inpaint", (1280, 4): "sdxl-refiner"}
"""Cross-attention width and input channels of the UNet, to the name of the packaged configs."""

UNET_INPUT_KEY = r"(model\.diffusion_model\.|unet\.)?(input_blocks\.0\.0|conv_in)\.weight"
"""The first convolution of a UNet, in a checkpoint or alone."""

FOREIGN_CHECKPOINTS: tuple[tuple[str, str], ...] = (
    (r"double_blocks\.\d", "a Flux checkpoint"),
    (r"joint_blocks\.\d", "a Stable Diffusion 3 checkpoint"),
    (r"^edm_(mean|vpred)", "an SDXL checkpoint in EDM's formulation (Playground 2.5, CosXL)"),
    (key_patterns.LORA_KEYS, "a LoRA, not a checkpoint"),
    (r"^control_model\.|^controlnet_cond_embedding\.", "a ControlNet, not a checkpoint"),
    (r"^(ip_adapter|image_proj)\.", "an IP-Adapter, not a checkpoint"),
    (r"^(vae\.)?(encoder|decoder)\.conv_in\.weight$", "a VAE, not a checkpoint"),
    (r"^clip_[lg]$", "an embedding, not a checkpoint"),
    (key_patterns.TEXT_ENCODER_KEYS, "a text encoder, not a checkpoint"),
)
"""Patterns of keys that identify files that are not SDXL checkpoints, and their description."""


@dataclass(frozen=True)
class IgnoredKeys:
    """Keys in checkpoints that Overpaint does not use.

    Attributes:
        pattern: A regular expression for the keys.
        reason: Why Overpaint does not use them.
        has_notice: Whether loading reports them, because the tensors were learned.
    """

    pattern: str
    reason: str
    has_notice: bool = False


IGNORED_KEYS = (
    IgnoredKeys(r".*\.embeddings\.position_ids", "the numbers 0 to 76"),
    IgnoredKeys(
        r"conditioner\.embedders\.\d\.(model\.)?logit_scale", "CLIP's contrastive training"
    ),
    IgnoredKeys(
        r"conditioner\.embedders\.0\.(transformer\.)?text_projection(\.weight)?",
        "CLIP's contrastive training; SDXL takes no pooled output from the first encoder",
    ),
    IgnoredKeys(r"denoiser\.(sigmas|log_sigmas)", "computed from the noise schedule"),
    IgnoredKeys(
        r"(alphas_cumprod|betas|log_one_minus|posterior_|sqrt_)\w*",
        "computed from the noise schedule",
    ),
    IgnoredKeys(r"v_pred|ztsnr", "flags, read by `read_noise_config`"),
    IgnoredKeys(
        r"model_ema\..*", "a moving average beside the weights that are used", has_notice=True
    ),
    IgnoredKeys(r"first_stage_model\.loss\..*", "the VAE's training loss", has_notice=True),
)


def recognize_file(weights: WeightsFile) -> Configs:
    """Return the packaged configs for a checkpoint in SDXL's original layout, or for a UNet alone.

    `complete_configs` adds what the tensors show.

    Raises:
        CheckpointError: The file is not an SDXL checkpoint. The message describes the file.
    """
    for pattern, what in FOREIGN_CHECKPOINTS:
        if any(re.search(pattern, key) for key in weights.tensors):
            raise CheckpointError(f"{weights.path}: this is {what}; Overpaint runs SDXL")
    named = (own for k, own in weights.tensors.items() if re.fullmatch(UNET_INPUT_KEY, k))
    if (first := next(named, None)) is None:
        raise CheckpointError(
            f"{weights.path}: this is not an SDXL checkpoint: it has no {UNET}* keys, but "
            f"{sample_keys(weights.tensors)}"
        )
    return choose_configs(weights.tensors, first, weights.path)


def choose_configs(tensors: Mapping[str, LazyTensor], first: LazyTensor, path: Path) -> Configs:
    """Return the packaged configs for the tensors of a UNet.

    Args:
        tensors: The tensors, under any names of their layouts.
        first: The weight of the first convolution.
        path: The file, for messages.

    Raises:
        CheckpointError: The UNet belongs to another family.
    """
    named = (own for key, own in tensors.items() if key.endswith("attn2.to_k.weight"))
    context = next((own.shape[1] for own in named if own.ndim > 1), 0)
    channels = first.shape[1] if first.ndim > 1 else 0
    if (name := SHIPPED_CONFIGS.get((context, channels))) is not None:
        return shipped_configs(name)
    kind = OTHER_MODELS_BY_WIDTH.get(context, "unknown")
    raise CheckpointError(
        f"{path}: this is a {kind} checkpoint (cross-attention width {context}, "
        f"{channels} input channels); Overpaint runs SDXL"
    )


def read_noise_config(weights: WeightsFile) -> NoiseConfig:
    """Read how the checkpoint was trained from its marker tensors and metadata.

    Markers of v-prediction are a tensor `v_pred` (NoobAI), or "v" in the metadata fields
    `modelspec.prediction_type` (github.com/Stability-AI/ModelSpec) or `modelspec.predict_key`
    (ComfyUI). The marker of zero terminal SNR is a tensor `ztsnr`. Without markers, the function
    returns SDXL's default.
    """
    named = {weights.metadata.get(f"modelspec.{key}") for key in ("prediction_type", "predict_key")}
    v = "v_pred" in weights.tensors or not named.isdisjoint({"v", "v_prediction", "velocity"})
    return NoiseConfig(
        prediction="v_prediction" if v else "epsilon",
        zero_terminal_snr="ztsnr" in weights.tensors,
    )


def split_checkpoint(weights: WeightsFile) -> tuple[Parts, tuple[str, ...]]:
    """Return the parts of a checkpoint, or the UNet of a file that has nothing else.

    Returns:
        First, the tensors by part ("unet", "vae", "text_encoder", "text_encoder_2") and state
        dict name; a part that the file lacks is left out. Second, notices about unused tensors.

    Raises:
        CheckpointError: A key belongs to no part.
    """
    if model_parts.find_lone_part(weights.tensors) == "unet":
        return {"unet": model_parts.take_part(weights, "unet")}, ()
    kept, notices = _without_ignored(weights)
    grouped: Parts = {}
    for part, prefixes in PART_PREFIXES.items():
        for prefix in prefixes:
            inside = {
                key.removeprefix(prefix): kept.pop(key)
                for key in list(kept)
                if key.startswith(prefix)
            }
            grouped.setdefault(part, {}).update(inside)
    if kept:
        raise CheckpointError(
            f"{weights.path}: {len(kept)} unexpected keys, which belong to no part of SDXL: "
            f"{sample_keys(kept)}"
        )
    parts = {
        part: model_parts.convert_part(part, tensors, weights)
        for part, tensors in grouped.items()
        if tensors
    }
    return parts, notices


def _without_ignored(weights: WeightsFile) -> tuple[dict[str, LazyTensor], tuple[str, ...]]:
    """Return the tensors to use, and notices about ignored learned tensors."""
    kept = dict(weights.tensors)
    notices: list[str] = []
    for row in IGNORED_KEYS:
        dropped = [key for key in kept if re.fullmatch(row.pattern, key)]
        for key in dropped:
            del kept[key]
        if dropped and row.has_notice:
            notices.append(
                f"{len(dropped)} tensors not used ({row.reason}): {sample_keys(dropped, 2)}"
            )
    return kept, tuple(notices)
