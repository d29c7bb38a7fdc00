"""Find checkpoints, parts and tiny decoders by name, and load checkpoints."""

from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from overpaint.models.checkpoint import load_model
from overpaint.models.devices import DeviceChoice
from overpaint.models.files.suffixes import WEIGHT_SUFFIXES
from overpaint.models.library import catalog
from overpaint.models.library.entry import PART_KINDS, LibraryEntry
from overpaint.models.library.library import Library
from overpaint.models.separate_parts import GivenParts, PartPath
from overpaint.nn.device_memory import DeviceMemory

if TYPE_CHECKING:
    from overpaint.models.model import Model


def load_library_model(
    name: str | PathLike[str],
    library: Library,
    *,
    device: str | torch.device | DeviceChoice,
    dtype: str = "auto",
    parts: GivenParts | None = None,
    memory: DeviceMemory | None = None,
) -> "Model":
    """Load a checkpoint or a UNet of the library, or any model that `load_model` accepts.

    Args:
        name: The name of the checkpoint.
        library: The library in which names are looked up first.
        device: See `load_model`.
        dtype: See `load_model`.
        parts: Names, files or folders of parts that replace those of the checkpoint; see
            `resolve_part`.
        memory: See `load_model`.

    Raises:
        ModelNotFoundError, CheckpointError, DeviceError: See `load_model`.
    """

    def list_names() -> list[str]:
        added = [entry.name for entry in library.list_entries() if entry.kind == "checkpoint"]
        return [*added, *catalog.list_checkpoint_names()]

    located = {
        part: own if isinstance(own, PartPath) else resolve_part(part, own, library)
        for part, own in (parts or {}).items()
    }
    path = find_checkpoint(name, library)
    model = load_model(
        path, device=device, dtype=dtype, parts=located, known=list_names, memory=memory
    )
    model.name = fspath(name)
    return model


def find_checkpoint(name: str | PathLike[str], library: Library) -> str | PathLike[str]:
    """Return the path of a checkpoint or a UNet of the library; else the name itself."""
    entry: LibraryEntry | None = None
    if isinstance(name, str):
        entry = library.find_if(name, "checkpoint") or library.find_if(name, "unet")
    return entry.path if entry else name


def resolve_part(part: str, name: str | PathLike[str], library: Library) -> PartPath:
    """Find the file or folder of a part of a checkpoint.

    Args:
        part: "unet", "vae", "text_encoder" or "text_encoder_2".
        name: The name of an added part, or of a checkpoint that has one. If the library allows
            paths, also a file, a folder or a hub id "owner/name".
        library: The library in which names are looked up first.

    Raises:
        ModelNotFoundError: Nothing has that name.
        CheckpointError: The repository has no weights that Overpaint can load.
    """
    text, kind = fspath(name), PART_KINDS[part]
    if library.reads_paths and (path := Path(text).expanduser()).exists():
        return PartPath(path, text)
    if entry := library.find_if(text, kind) or library.find_if(text, "checkpoint"):
        return PartPath(entry.path, entry.name)
    looks_like_path = Path(text).suffix.lower() in WEIGHT_SUFFIXES or "/" in text
    if library.reads_paths and looks_like_path:
        return PartPath(catalog.resolve_model(text), text)
    return PartPath(library.require(text, kind).path, text)


def resolve_decoder(name: str | PathLike[str], library: Library, *, download: bool) -> PartPath:
    """Find the file or folder of a tiny decoder.

    Args:
        name: The name of an added decoder or of one in the catalog. If the library allows paths,
            also a file, a folder or a hub id "owner/name".
        library: The library in which names are looked up first.
        download: Whether to download missing files.

    Raises:
        ModelNotFoundError: Nothing has that name, or it is not downloaded yet.
        CheckpointError: The repository has no weights that Overpaint can load.
    """
    text = fspath(name)
    if entry := library.find_if(text, "decoder") or library.find_if(f"{text}_decoder", "decoder"):
        return PartPath(entry.path, entry.name)
    if text in catalog.TINY_DECODERS or library.reads_paths:
        return PartPath(catalog.resolve_model(text, download=download), text)
    return PartPath(library.require(text, "decoder").path, text)
