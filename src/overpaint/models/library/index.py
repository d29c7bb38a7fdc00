"""Look up names of add-ons and checkpoints without torch.

A name refers to a file that the user added, or to a file in this package. Requests contain names
only, so they cannot read other paths. `library.py` adds and removes files.

    HOME/models/<sha256>.safetensors    the file, stored once
    HOME/models/<name>.json             its description, written after the file is complete
"""

import importlib.resources
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, BaseModel, Field

from overpaint.errors import CheckpointError, ModelNotFoundError, did_you_mean

FileKind = Literal["lora", "control", "embedding", "checkpoint"]

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")

MAX_DESCRIPTION_BYTES = 2**27
"""Bytes of a description, which has the metadata of its file."""

MINIATURE = "miniature"

PACKAGED_MODELS = (MINIATURE, "miniature-inpaint", "miniature-refiner")
"""Models in this package."""

PACKAGED_KINDS: tuple[FileKind, ...] = ("control", "lora", "embedding")
"""Kinds of add-ons in this package."""


class LibraryEntry(BaseModel, frozen=True):
    """The description of a file in the library.

    Attributes:
        name: The name for requests.
        kind: The kind of file.
        sha256: The digest of the file.
        license: The license of its weights, if known. Older descriptions spell the key `licence`.
        file: The name of the original file.
        keys: The number of tensors in the file.
        rank: The largest rank of a LoRA; None for other kinds.
        trigger_words: The trigger words in a LoRA's metadata.
        metadata: The metadata in the file's header.
        path: The file's current path.
    """

    name: str
    kind: FileKind
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    license: str | None = Field(validation_alias=AliasChoices("license", "licence"))
    file: str
    keys: int
    rank: int | None = None
    trigger_words: tuple[str, ...] = ()
    metadata: dict[str, str] = {}
    path: Path = Field(default=Path(), exclude=True)


class LibraryIndex:
    """The names of files that the user added under one home folder."""

    def __init__(self, home: str | os.PathLike[str] | None = None):
        """Use a home folder; the default is `~/.overpaint`."""
        self.folder = (Path(home) if home else Path("~/.overpaint").expanduser()) / "models"

    def list_entries(self) -> list[LibraryEntry]:
        """List the added files in order of their names."""
        names = (path.stem for path in sorted(self.folder.glob("*.json")))
        entries = list[LibraryEntry]()
        for name in filter(NAME_PATTERN.fullmatch, names):
            with suppress(CheckpointError):  # the folder may have files of other programs
                if entry := self.read_entry(name):
                    entries.append(entry)
        return entries

    def read_entry(self, name: str) -> LibraryEntry | None:
        """Return the description of an added file, or None without such a file.

        Raises:
            CheckpointError: The description cannot be read.
        """
        path = self.folder / f"{name}.json"
        try:
            if path.stat().st_size > MAX_DESCRIPTION_BYTES:
                raise ValueError("it is too large")
            entry = LibraryEntry.model_validate_json(path.read_text("utf-8"))
            if entry.name != name:
                raise ValueError("it is of another file")
        except FileNotFoundError:
            return None
        except (ValueError, OSError) as error:
            # Without the path: clients of a server see the message.
            raise CheckpointError(
                f"the description of {name!r} among the added models cannot be read; remove "
                f"{path.name}, and add the file again"
            ) from error
        return entry.model_copy(update={"path": get_entry_path(self.folder, entry)})

    def find_kind(self, name: str) -> FileKind | None:
        """Return the kind of the file with this name, or None without such a file."""
        if not NAME_PATTERN.fullmatch(name):
            return None
        if entry := self.read_entry(name):
            return entry.kind
        return next((kind for kind in PACKAGED_KINDS if name in list_packaged(kind)), None)

    def require(self, name: str, kind: FileKind | None = None) -> None:
        """Check that a name exists.

        Raises:
            ModelNotFoundError: No file has that name, or the file is of another kind.
        """
        found = self.find_kind(name)
        if found is not None and kind in (None, found):
            return
        what = kind or "file"
        known = [entry.name for entry in self.list_entries() if kind in (None, entry.kind)]
        known += [
            own for other in PACKAGED_KINDS if kind in (None, other) for own in list_packaged(other)
        ]
        aside = " Names lead to the catalog alone; add the file first." if "/" in name else ""
        suggestion = (
            did_you_mean(name, known)
            if known
            else " None was added yet: overpaint models add FILE."
        )
        raise ModelNotFoundError(f"unknown {what} {name!r}.{aside or suggestion}")


def list_packaged(kind: str) -> dict[str, Path]:
    """Return the paths of the add-ons in this package by name.

    Args:
        kind: "control", "lora" or "embedding".
    """
    folder = Path(str(importlib.resources.files("overpaint"))) / "data" / f"{MINIATURE}-{kind}"
    return {f"{MINIATURE}-{path.stem}": path for path in sorted(folder.glob("*.safetensors"))}


def get_entry_path(folder: Path, entry: LibraryEntry) -> Path:
    """Return the path of an entry's file."""
    return folder / f"{entry.sha256}.safetensors"
