"""The models of a server: their files and native sizes, before one is loaded, without torch."""

from collections.abc import Mapping
from pathlib import Path

from overpaint.errors import ModelError, ModelNotFoundError
from overpaint.models.files.part_names import PART_NAMES
from overpaint.models.files.suffixes import WEIGHT_SUFFIXES
from overpaint.models.library import catalog
from overpaint.models.library.catalog import ALIASES
from overpaint.models.library.entry import PART_KINDS
from overpaint.models.library.folder_configs import read_native_size
from overpaint.models.library.index import PACKAGED_MODELS, LibraryIndex


def check_served_model(
    name: str, index: LibraryIndex, parts: Mapping[str, str] | None = None
) -> None:
    """Check that a model exists and that its configs are readable, without its weights.

    Args:
        name: A name in the library, a packaged model, a path or a hub id.
        index: The library.
        parts: Names or paths of parts that come from their own files.

    Raises:
        ModelNotFoundError: There is no such model or part.
        CheckpointError: It is damaged, lacks a part, or belongs to no supported family.
    """
    parts = parts or {}
    for part, own in parts.items():
        _check_part(part, own, index)
    path = _locate(name, index)
    if path is None:
        catalog.check_model(name)
    else:
        read_native_size(path, parts)


def find_native_size(name: str, index: LibraryIndex) -> int | None:
    """Return the side in pixels that a model draws; None if this machine does not have its files.

    Args:
        name: See `check_served_model`.
        index: The library.
    """
    try:
        path = _locate(name, index)
        return read_native_size(path, tuple(PART_NAMES)) if path else None
    except (ModelError, OSError):
        return None


def _check_part(part: str, name: str, index: LibraryIndex) -> None:
    """Raise ModelNotFoundError unless a part is a path, an added file, or perhaps a hub id."""
    path = Path(name).expanduser()
    if path.exists() or index.resolve(name, "checkpoint"):
        return
    if path.is_absolute() or (path.suffix.lower() in WEIGHT_SUFFIXES and "/" in name):
        raise ModelNotFoundError(f"There is no file or folder for the {PART_NAMES[part]}: {name}")
    if "/" not in name:
        index.require(name, PART_KINDS[part])


def _locate(name: str, index: LibraryIndex) -> Path | None:
    """Return the files of a model; None if the hub has them."""
    for kind in ("checkpoint", "unet") if name not in (*PACKAGED_MODELS, *ALIASES) else ():
        if entry := index.resolve(name, kind):
            return entry.path
    return catalog.locate_model(name)
