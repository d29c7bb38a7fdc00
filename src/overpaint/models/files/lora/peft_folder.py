"""Find the files of a LoRA: one file, a PEFT folder, or a folder with a PEFT folder for each part.

A PEFT folder has `adapter_config.json` beside `adapter_model.safetensors`. The config sets the
strength, so it is as much a part of the LoRA as the weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from overpaint.errors import CheckpointError
from overpaint.models.files.digests import compute_sha256, compute_tensors_sha256

PEFT_CONFIG = "adapter_config.json"
"""The file that makes a folder a PEFT adapter."""

PEFT_WEIGHTS = "adapter_model.safetensors"

PARTS = ("unet", "text_encoder", "text_encoder_2")
"""Subfolders that can each be a PEFT adapter."""


@dataclass(frozen=True)
class PeftFolder:
    """The files of a PEFT adapter.

    Attributes:
        part: The part of the model, if the name of the folder tells it; else "".
        config: The config.
        weights: The weights; a pickle if there is no safetensors file.
    """

    part: str
    config: Path
    weights: Path


def is_peft_folder(path: Path) -> bool:
    """Return whether a path is a PEFT folder, or a folder with PEFT folders of a model's parts."""
    return any((folder / PEFT_CONFIG).is_file() for folder in (path, *(path / p for p in PARTS)))


def list_peft_folders(path: Path) -> list[PeftFolder]:
    """Return the PEFT folders of a LoRA: those of the parts, then the folder itself.

    Raises:
        CheckpointError: The folder has no PEFT adapter, or one without weights.
    """
    places = [*((part, path / part) for part in PARTS), ("", path)]
    found = [
        PeftFolder(part, folder / PEFT_CONFIG, _find_weights(folder))
        for part, folder in places
        if (folder / PEFT_CONFIG).is_file()
    ]
    if not found:
        raise CheckpointError(f"{path} has no LoRA: a PEFT folder has {PEFT_CONFIG}")
    return found


def list_lora_files(path: Path) -> tuple[Path, ...]:
    """Return all files that determine a LoRA, in a fixed order: what to stamp and to hash.

    Raises:
        CheckpointError: The path is a folder without a complete PEFT adapter.
    """
    if not path.is_dir():
        return (path,)
    return tuple(file for own in list_peft_folders(path) for file in (own.config, own.weights))


def compute_lora_digests(path: Path, metadata: Mapping[str, str]) -> tuple[str, str]:
    """Return the digest of all files of a LoRA, and that of a single file without its header.

    Raises:
        CheckpointError: The path is a folder without a complete PEFT adapter.
        OSError: A file cannot be read.
    """
    files = list_lora_files(path)
    whole = compute_sha256(files)
    return whole, whole if path.is_dir() else compute_tensors_sha256(path, metadata)


def _find_weights(folder: Path) -> Path:
    files = sorted(folder.glob("*.safetensors"))
    named = folder / PEFT_WEIGHTS
    if named in files or len(files) == 1:
        return named if named in files else files[0]
    if (pickle := folder / "adapter_model.bin").is_file():
        return pickle  # reading it fails with an error that names the remedy
    raise CheckpointError(f"{folder} has {PEFT_CONFIG}, but no {PEFT_WEIGHTS}")
