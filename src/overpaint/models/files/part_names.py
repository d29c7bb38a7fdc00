"""Names of the parts of a checkpoint in messages."""

from collections.abc import Sequence
from pathlib import Path

PART_NAMES = {
    "unet": "UNet",
    "vae": "VAE",
    "text_encoder": "first text encoder (CLIP-L)",
    "text_encoder_2": "second text encoder (CLIP-G)",
}
"""The parts by their names in diffusers."""


def describe_missing_parts(path: Path, missing: Sequence[str]) -> str:
    """Return the error message for a checkpoint that lacks parts."""
    flags = " ".join(f"--{part.replace('_', '-')} FILE" for part in missing)
    names = " and no ".join(PART_NAMES[part] for part in missing)
    return (
        f"{path} has no {names}. Give the missing part in its own file: {flags} on the command "
        f"line, {missing[0]}=… of overpaint.load in Python, [model_parts] in the settings of a "
        "server."
    )
