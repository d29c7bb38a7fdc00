"""The models of a server: their files and native sizes, before one is loaded, without torch."""

from pathlib import Path

from overpaint.errors import ModelError
from overpaint.models.library import catalog
from overpaint.models.library.catalog import ALIASES
from overpaint.models.library.folder_configs import read_native_size
from overpaint.models.library.index import PACKAGED_MODELS, LibraryIndex


def check_served_model(name: str, index: LibraryIndex) -> None:
    """Check that a model exists and that its configs are readable, without its weights.

    Args:
        name: A name in the library, a packaged model, a path or a hub id.
        index: The library.

    Raises:
        ModelNotFoundError: There is no such model.
        CheckpointError: It is damaged, or belongs to no supported family.
    """
    path = _locate(name, index)
    if path is None:
        catalog.check_model(name)
    else:
        read_native_size(path)


def find_native_size(name: str, index: LibraryIndex) -> int | None:
    """Return the side in pixels that a model draws; None if this machine does not have its files.

    Args:
        name: See `check_served_model`.
        index: The library.
    """
    try:
        path = _locate(name, index)
        return read_native_size(path) if path else None
    except (ModelError, OSError):
        return None


def _locate(name: str, index: LibraryIndex) -> Path | None:
    """Return the files of a model; None if the hub has them."""
    if name not in (*PACKAGED_MODELS, *ALIASES) and (entry := index.resolve(name, "checkpoint")):
        return entry.path
    return catalog.locate_model(name)
