"""Choose among the variants of a model part's weight files."""

import re
from collections.abc import Iterable
from pathlib import Path

from overpaint.errors import CheckpointError
from overpaint.models.files.safetensors_io import PICKLE_SUFFIXES, sample_keys


def choose_weight_files(names: Iterable[str], *, half: bool) -> list[str]:
    """The weight files of a part to read, of those in its folder.

    A part may be there in several variants (`model.safetensors`, `model.fp16.safetensors`), and a
    variant in shards.

    Args:
        names: of all files in the folder.
        half: rather a 16-bit variant.

    Raises:
        CheckpointError: there are no safetensors files; says whether there are pickles.
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
        raise CheckpointError(f"no .safetensors weights{only}")
    sixteen = [files for plain, files in variants.items() if ".fp16." in plain]
    base = [files for plain, files in variants.items() if plain.count(".") == 1]
    preferred = sixteen or base if half else base or sixteen
    return (preferred or list(variants.values()))[0]
