"""Checkpoints in diffusers' folders."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, get_args

from overpaint.errors import CheckpointError
from overpaint.models.checkpoint_source import CheckpointSource, Tensors
from overpaint.models.family import Configs, parse_configs
from overpaint.models.files import weight_variants
from overpaint.models.files.clip_vocabulary import load_tokenizer
from overpaint.models.files.config_limits import check_config
from overpaint.models.files.json_config import read_json_config
from overpaint.models.files.lazy_tensor import LazyTensor
from overpaint.models.files.safetensors_io import open_weights
from overpaint.models.latent_preview import LatentPreview
from overpaint.models.library.index import NAME_PATTERN
from overpaint.models.noise_config import NoiseConfig, Prediction

TOKENIZER_FOLDERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
"""The text encoders, and the folders of their tokenizers."""

UNSUPPORTED_SCHEDULERS = ("EDM", "FlowMatch")
"""Prefixes of schedulers whose formulation of noise differs from SDXL's."""


def read_folder_configs(folder: Path) -> Configs:
    """Read the configs of a diffusers folder.

    Raises:
        CheckpointError: A config is missing or unreadable, or the folder is of another kind.
    """
    if not (folder / "model_index.json").is_file():
        raise CheckpointError(
            f"{folder} is not a diffusers folder: it has no model_index.json. A folder with one "
            "part of a model goes to --unet, --vae, --text-encoder or --text-encoder-2."
        )
    index = read_json_config(folder / "model_index.json")
    encoders = [part for part in TOKENIZER_FOLDERS if _has_part(index, part)]
    if missing := [part for part in ("unet", "vae") if part not in index]:
        kind = index.get("_class_name", "folder")
        raise CheckpointError(f"{folder} is a {kind} without {missing[0]}; Overpaint runs SDXL")
    where = {part: _locate_part(folder, part, index) for part in ("unet", "vae", *encoders)}
    parts = {part: read_json_config(own / "config.json") for part, own in where.items()}
    scheduler = read_json_config(_locate_part(folder, "scheduler", index) / "scheduler_config.json")
    try:
        for part, config in (*parts.items(), ("scheduler", scheduler)):
            check_config(config, part)
        return parse_configs(parts | {"scheduler": scheduler, "model_index": index})
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from error


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
        tensors[part], own = open_part_folder(_locate_part(folder, part, index), half=half)
        files += own
    return CheckpointSource(
        configs=configs,
        tensors=tensors,
        tokenizers={
            part: load_tokenizer(_locate_part(folder, TOKENIZER_FOLDERS[part], index))
            for part in configs.text_encoders
        },
        noise=parse_noise_config(configs.scheduler),
        files=tuple(sorted(files)),
        preview=_read_preview(_locate_part(folder, "preview.json", index)),
    )


def _locate_part(folder: Path, part: str, index: Mapping[str, Any]) -> Path:
    """Return the path of a part: in the folder, or in a sibling folder that shares its parts.

    Overpaint adds the key `_shares_with` to model_index.json, so that the miniature's inpainting
    model and refiner need no copies of the autoencoder and text encoders.
    """
    own, shared = folder / part, index.get("_shares_with")
    if own.exists() or shared is None:
        return own
    if not isinstance(shared, str) or not NAME_PATTERN.fullmatch(shared):
        raise CheckpointError(f"{folder}: _shares_with must be the name of a folder beside it")
    return folder.parent / shared / part


def _has_part(index: Mapping[str, Any], part: str) -> bool:
    """Return whether a model index has a part: a library and a class, which can be null."""
    entry = index.get(part)
    return isinstance(entry, list) and bool(entry) and entry[0] is not None


def parse_noise_config(scheduler: Mapping[str, Any]) -> NoiseConfig:
    """Read the noise schedule of training from the config of a diffusers scheduler.

    Raises:
        CheckpointError: The formulation differs from SDXL's, or a value is missing or unknown.
    """
    kind = str(scheduler.get("_class_name", ""))
    if kind.startswith(UNSUPPORTED_SCHEDULERS) or scheduler.get("trained_betas") is not None:
        raise CheckpointError(
            f"the model was trained for {kind} or with explicit betas; Overpaint runs SDXL"
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
