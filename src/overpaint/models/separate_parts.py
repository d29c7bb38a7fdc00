"""Parts of a checkpoint in their own files: a VAE, a UNet or text encoders.

They replace the checkpoint's own, or are those that it lacks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from overpaint.errors import CheckpointError, ModelNotFoundError
from overpaint.models.checkpoint_source import Tensors
from overpaint.models.diffusers_folder import open_part_folder
from overpaint.models.files.config_limits import check_config
from overpaint.models.files.digests import compute_sha256
from overpaint.models.files.json_config import read_json_config
from overpaint.models.files.model_parts import take_part
from overpaint.models.files.part_names import PART_NAMES
from overpaint.models.files.safetensors_io import open_weights
from overpaint.models.files.single_file import read_noise_config
from overpaint.models.model import PartFile
from overpaint.models.noise_config import NoiseConfig

SHIFTED_LATENTS_KEYS = ("latents_mean", "latents_std")
"""Config keys of VAEs whose latents SDXL's UNet does not know, such as Playground 2.5's."""


@dataclass(frozen=True)
class PartPath:
    """Where a part is: a file or folder, and the name that the user gave."""

    path: Path
    name: str


GivenParts = Mapping[str, str | PathLike[str] | PartPath]
"""The parts that a user gives for a model, by name."""


@dataclass(frozen=True)
class SeparatePart:
    """A part of a checkpoint from its own file, whose tensors are not read yet.

    Attributes:
        name: The name that the user gave.
        tensors: The tensors under the names of the part's module.
        files: The weight files.
        config: Its config, if it is in a folder with one.
        noise: The noise schedule that a UNet's file names.
    """

    name: str
    tensors: Tensors
    files: tuple[Path, ...]
    config: dict[str, Any] | None = None
    noise: NoiseConfig | None = None


SeparateParts = Mapping[str, SeparatePart]
"""Separate parts by name: "unet", "vae", "text_encoder", "text_encoder_2"."""


def make_part_files(separate: SeparateParts) -> dict[str, PartFile]:
    """Return the names and the digests of separate parts."""
    return {part: PartFile(own.name, compute_sha256(own.files)) for part, own in separate.items()}


def open_separate_part(part: str, path: Path, name: str | None = None) -> SeparatePart:
    """Open a part of a checkpoint.

    Args:
        part: "unet", "vae", "text_encoder" or "text_encoder_2".
        path: A safetensors file in the original or diffusers' layout, also a whole checkpoint. Or
            a folder of diffusers with config.json and weights.
        name: The name that the user gave; the default is the name of the file.

    Raises:
        ModelNotFoundError: The file does not exist.
        CheckpointError: The file is damaged or does not have the part.
    """
    if not path.exists():
        raise ModelNotFoundError(f"There is no file or folder for the {PART_NAMES[part]}: {path}")
    if not path.is_dir():
        weights = open_weights(path)
        noise = read_noise_config(weights) if part == "unet" else None
        return SeparatePart(name or path.stem, take_part(weights, part), (path,), noise=noise)
    folder = path / part if (path / "model_index.json").is_file() else path
    config = read_json_config(folder / "config.json")
    check_config(config, part)
    if part == "vae" and any(config.get(key) for key in SHIFTED_LATENTS_KEYS):
        raise CheckpointError(f"{folder}: this VAE shifts its latents, which SDXL's does not")
    tensors, files = open_part_folder(folder, half=True)
    return SeparatePart(name or path.name, tensors, tuple(files), config)
