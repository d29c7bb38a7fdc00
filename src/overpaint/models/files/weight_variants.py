"""Choose among the variants of a model part's weight files."""

import re
from collections.abc import Iterable
from pathlib import Path

from overpaint.errors import CheckpointError
from overpaint.models.files.key_patterns import sample_keys
from overpaint.models.files.suffixes import PICKLE_SUFFIXES


def choose_weight_files(names: Iterable[str], *, half: bool) -> list[str]:
    """Choose which weight files of a model part to read.

    A folder can hold several variants of a part (`model.safetensors`, `model.fp16.safetensors`).
    A variant can consist of several shards.

    Args:
        names: The names of all files in the folder.
        half: Prefer a 16-bit variant.

    Returns:
        The file names of the chosen variant.

    Raises:
        CheckpointError: The folder has no safetensors files. The message lists pickles, if any.
    """
    listed = sorted(names)
    variants: dict[str, list[str]] = {}
    for name in listed:
        if name.endswith(".safetensors") and name.count("/") == 0:
            plain = re.sub(r"-\d{5}-of-\d{5}", "", name)
            variants.setdefault(plain, []).append(name)
    if not variants:
        pickles = [name for name in listed if Path(name).suffix in PICKLE_SUFFIXES]
        only = (
            f", only pickles ({sample_keys(pickles, 2)}), which can run any program"
            if pickles
            else ""
        )
        raise CheckpointError(f"There are no .safetensors weights{only}")
    sixteen = [files for plain, files in variants.items() if ".fp16." in plain]
    base = [files for plain, files in variants.items() if plain.count(".") == 1]
    preferred = sixteen or base if half else base or sixteen
    return (preferred or list(variants.values()))[0]
