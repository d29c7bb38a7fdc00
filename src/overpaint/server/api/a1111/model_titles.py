"""Titles of models, as clients write them."""

import re
from collections.abc import Collection

from overpaint.errors import RequestError, did_you_mean, quote_value

MODEL_HASH = re.compile(r"\s*\[[0-9a-fA-F]+\]$")
"""The hash at the end of a model's title."""

MODEL_SUFFIX = re.compile(r"\.(safetensors|ckpt|sft|pt|pth|bin)$", re.IGNORECASE)
"""The suffix of a model's file."""

MIN_TITLE_PART_CHARS = 3
"""Smallest number of characters of a model's name that stand for the model."""


def resolve_model_title(field: str, title: str | None, known: Collection[str]) -> str:
    """Return the name of the model with a title, such as "folder/Name.safetensors [hash]".

    The folder, the suffix, the hash, and upper or lower case may be missing or differ. A part of
    one model's name stands for this model.

    Args:
        field: the field that contains the title, for the error.
        title: the title.
        known: names of models.

    Raises:
        RequestError: no model has that title, or several have it.
    """
    bare = MODEL_HASH.sub("", title or "")
    for name in (title, bare):
        if name is not None and name in known:
            return name
    sought = _bare_title(bare)
    names = [name for name in known if _bare_title(name) == sought]
    if not names and len(sought) >= MIN_TITLE_PART_CHARS:
        names = [name for name in known if sought in _bare_title(name)]
    if len(names) > 1:
        listed = ", ".join(sorted(names))
        raise RequestError(field, f"{quote_value(title)} stands for several models: {listed}.")
    if not names:
        hint = did_you_mean(bare, known) if known else ""
        raise RequestError(field, f"There is no model {quote_value(title)}.{hint}")
    return names[0]


def strip_model_title(title: str) -> str:
    """Return a model's title without hash and suffix."""
    return MODEL_SUFFIX.sub("", MODEL_HASH.sub("", title.strip()))


def _bare_title(title: str) -> str:
    """Return a model's title without folder, suffix and upper case."""
    return re.split(r"[\\/]", strip_model_title(title))[-1].casefold()
