"""Checkpoints in diffusers' folders."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, get_args

from overpaint.errors import CheckpointError
from overpaint.models.checkpoint_source import CheckpointSource, Tensors
from overpaint.models.family import Configs
from overpaint.models.files import weight_variants
from overpaint.models.files.clip_vocabulary import load_tokenizer
from overpaint.models.files.config_limits import check_config
from overpaint.models.files.json_config import read_json_config
from overpaint.models.files.lazy_tensor import LazyTensor
from overpaint.models.files.safetensors_io import open_weights
from overpaint.models.latent_preview import LatentPreview
from overpaint.models.library.folder_configs import TOKENIZER_FOLDERS, locate_part
from overpaint.models.noise_config import NoiseConfig, Prediction

UNSUPPORTED_SCHEDULERS = ("EDM", "FlowMatch")
"""Prefixes of schedulers whose formulation of noise differs from SDXL's."""


def open_folder(
    folder: Path, configs: Configs, *, half: bool, without: Collection[str] = ()
) -> CheckpointSource:
    """Open the weights and tokenizers of a diffusers folder.

    Args:
        folder: The folder.
        configs: The folder's configs.
        half: Prefer the 16-bit variant of each part.
        without: Parts whose weights come from elsewhere.

    Raises:
        CheckpointError: Weights or a tokenizer are missing or damaged.
    """
    tensors: dict[str, Tensors] = {}
    files: list[Path] = []
    index = configs.model_index
    for part in ("unet", "vae", *configs.text_encoders):
        if part in without:
            continue
        tensors[part], own = open_part_folder(locate_part(folder, part, index), half=half)
        files += own
    return CheckpointSource(
        configs=configs,
        tensors=tensors,
        tokenizers={
            part: load_tokenizer(locate_part(folder, TOKENIZER_FOLDERS[part], index))
            for part in configs.text_encoders
        },
        noise=parse_noise_config(configs.scheduler),
        files=tuple(sorted(files)),
        preview=_read_preview(locate_part(folder, "preview.json", index)),
    )


def parse_noise_config(scheduler: Mapping[str, Any]) -> NoiseConfig:
    """Read the noise schedule of training from the config of a diffusers scheduler.

    Raises:
        CheckpointError: The formulation differs from SDXL's, or a value is missing or unknown.
    """
    kind = str(scheduler.get("_class_name", ""))
    if kind.startswith(UNSUPPORTED_SCHEDULERS) or scheduler.get("trained_betas") is not None:
        raise CheckpointError(
            f"The model was trained for {kind} or with explicit betas; Overpaint runs SDXL"
        )
    for key, known in (
        ("prediction_type", get_args(Prediction)),
        ("beta_schedule", ("scaled_linear", "linear")),
    ):
        if scheduler.get(key) not in known:
            raise CheckpointError(
                f"scheduler_config.json: {key} is {scheduler.get(key)!r}; "
                f"Overpaint knows {', '.join(known)}"
            )
    try:
        check_config(scheduler, "scheduler_config.json")
        if not 0 < float(scheduler["beta_start"]) <= float(scheduler["beta_end"]) < 1:
            raise ValueError("beta_start and beta_end must be between 0 and 1, in this order")
        return NoiseConfig(
            steps=int(scheduler["num_train_timesteps"]),
            beta_start=float(scheduler["beta_start"]),
            beta_end=float(scheduler["beta_end"]),
            beta_schedule=scheduler["beta_schedule"],
            prediction=scheduler["prediction_type"],
            zero_terminal_snr=bool(scheduler.get("rescale_betas_zero_snr", False)),
            steps_offset=int(scheduler.get("steps_offset", 0)),
        )
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise CheckpointError(f"scheduler_config.json: {error!r}") from error


def open_part_folder(folder: Path, *, half: bool) -> tuple[dict[str, LazyTensor], list[Path]]:
    """Return the tensors of one part of a folder, and their files."""
    try:
        names = weight_variants.choose_weight_files(
            (entry.name for entry in folder.iterdir()), half=half
        )
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    files = [folder / name for name in names]
    tensors: dict[str, LazyTensor] = {}
    for file in files:
        tensors |= open_weights(file).tensors
    return tensors, files


def _read_preview(path: Path) -> LatentPreview | None:
    """Read a folder's linear map for previews, if any."""
    if not path.is_file():
        return None
    fitted = read_json_config(path)
    try:
        rows = [(float(r), float(g), float(b)) for r, g, b in fitted["latent_rgb_factors"]]
        red, green, blue = fitted["latent_rgb_bias"]
        return LatentPreview(tuple(rows), (float(red), float(green), float(blue)))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is not a map for previews: {error!r}") from error
