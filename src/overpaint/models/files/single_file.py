"""Recognize and convert single-file checkpoints in SDXL's original key layout."""

import re
from dataclasses import dataclass
from typing import Any

from diffusers.loaders import single_file_utils

from overpaint.errors import CheckpointError
from overpaint.models.family import OTHER_MODELS_BY_WIDTH, Configs, shipped_configs
from overpaint.models.files import key_patterns
from overpaint.models.files.safetensors_io import LazyTensor, WeightsFile, sample_keys
from overpaint.models.noise_config import NoiseConfig

UNET = "model.diffusion_model."
VAE = "first_stage_model."
FIRST_ENCODER = "conditioner.embedders.0.transformer."
SECOND_ENCODER = "conditioner.embedders.1.model."
REFINER_ENCODER = "conditioner.embedders.0.model."

SHIPPED_CONFIGS = {(2048, 4): "sdxl", (2048, 9): "sdxl-inpaint", (1280, 4): "sdxl-refiner"}
"""Cross-attention width and input channels of the UNet, to the name of the packaged configs."""

FOREIGN_CHECKPOINTS: tuple[tuple[str, str], ...] = (
    (r"double_blocks\.\d", "a Flux checkpoint"),
    (r"joint_blocks\.\d", "a Stable Diffusion 3 checkpoint"),
    (r"^edm_(mean|vpred)", "an SDXL checkpoint in EDM's formulation (Playground 2.5, CosXL)"),
    (key_patterns.LORA_KEYS, "a LoRA, not a checkpoint"),
    (r"^control_model\.|^controlnet_cond_embedding\.", "a ControlNet, not a checkpoint"),
    (r"^(ip_adapter|image_proj)\.", "an IP-Adapter, not a checkpoint"),
    (r"^down_blocks\.", "the UNet of a diffusers folder; give the folder"),
    (r"^decoder\.", "a VAE, not a checkpoint"),
    (r"^(text_model|clip_[lg]$)", "a part of a model, not a checkpoint"),
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
    """Return the packaged configs for a file in SDXL's original layout.

    Raises:
        CheckpointError: The file is not an SDXL checkpoint. The message describes the file.
    """
    _refuse_foreign(weights)
    context = _context(weights)
    first = weights.tensors[f"{UNET}input_blocks.0.0.weight"]
    channels = first.shape[1] if first.ndim > 1 else 0
    if (name := SHIPPED_CONFIGS.get((context, channels))) is not None:
        return shipped_configs(name)
    kind = OTHER_MODELS_BY_WIDTH.get(context, "unknown")
    raise CheckpointError(
        f"{weights.path}: this is a {kind} checkpoint (cross-attention width {context}, "
        f"{channels} input channels); Overpaint runs SDXL"
    )


def _refuse_foreign(weights: WeightsFile) -> None:
    for pattern, what in FOREIGN_CHECKPOINTS:
        if any(re.search(pattern, key) for key in weights.tensors):
            raise CheckpointError(f"{weights.path}: this is {what}; Overpaint runs SDXL")
    if f"{UNET}input_blocks.0.0.weight" not in weights.tensors:
        raise CheckpointError(
            f"{weights.path}: this is not an SDXL checkpoint: it has no {UNET}* keys, but "
            f"{sample_keys(weights.tensors)}"
        )


def _context(weights: WeightsFile) -> int:
    """Return the width of the UNet's cross-attention, or 0 without cross-attention."""
    named = (s for k, s in weights.tensors.items() if k.endswith("attn2.to_k.weight"))
    return next((stored.shape[1] for stored in named if stored.ndim > 1), 0)


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


def convert_checkpoint(
    weights: WeightsFile, configs: Configs
) -> tuple[dict[str, dict[str, LazyTensor]], tuple[str, ...]]:
    """Rename a checkpoint's tensors from the original layout to diffusers'.

    Args:
        weights: The checkpoint's file.
        configs: The checkpoint's configs.

    Returns:
        First, the tensors by part ("unet", "vae", "text_encoder", "text_encoder_2") and state
        dict name. Second, notices about unused tensors.

    Raises:
        CheckpointError: A key belongs to no part, or the converters need a missing key.
    """
    kept, notices = _without_ignored(weights)

    def under(prefix: str) -> dict[str, Any]:
        return {key: stored for key, stored in kept.items() if key.startswith(prefix)}

    two = "text_encoder" in configs.text_encoders
    second = SECOND_ENCODER if two else REFINER_ENCODER
    label = [f"{UNET}label_emb.0.{layer}.{leaf}" for layer in (0, 2) for leaf in ("weight", "bias")]
    # The converters need these keys. `fill_module` reports other missing keys.
    if missing := [key for key in (*label, f"{second}text_projection") if key not in kept]:
        raise CheckpointError(
            f"{weights.path}: {len(missing)} missing keys: {sample_keys(missing)}"
        )
    parts: dict[str, dict[str, Any]] = {
        "unet": single_file_utils.convert_ldm_unet_checkpoint(under(UNET), configs.unet),
        "vae": single_file_utils.convert_ldm_vae_checkpoint(under(VAE), configs.vae),
        "text_encoder_2": single_file_utils.convert_open_clip_checkpoint(
            None, under(second), prefix=second
        ),
    }
    if two:
        parts["text_encoder"] = {
            key.removeprefix(FIRST_ENCODER): stored for key, stored in under(FIRST_ENCODER).items()
        }
    parts = {
        part: {name: stored for name, stored in tensors.items() if stored is not None}
        for part, tensors in parts.items()
    }
    used = {stored.key for tensors in parts.values() for stored in tensors.values()}
    if unknown := [key for key in kept if key not in used]:
        raise CheckpointError(
            f"{weights.path}: {len(unknown)} unexpected keys, which belong to no part of SDXL: "
            f"{sample_keys(unknown)}"
        )
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
