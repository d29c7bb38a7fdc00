"""What requests may name, read without torch: files that the user added, and those that ship.

    HOME/models/<sha256>.safetensors    the bytes, once
    HOME/models/<name>.json             what they are; written last, so that it never lies

Names lead here and nowhere else: a request cannot reach a path. `store.py` adds files and removes
them.
"""

import importlib.resources
import os
import re
from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, BaseModel, Field

from overpaint.errors import CheckpointError, ModelNotFoundError, did_you_mean

FileKind = Literal["lora", "control", "embedding", "checkpoint"]

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")

MINIATURE = "miniature"

PACKAGED_MODELS = (MINIATURE, "miniature-inpaint", "miniature-refiner")
"""Models that ship inside the package."""


PACKAGED_KINDS: tuple[FileKind, ...] = ("control", "lora", "embedding")
"""Kinds of which some ship inside the package."""


class LibraryEntry(BaseModel, frozen=True):
    """A file of the user's.

    Attributes:
        name: it is found by.
        kind: what it is.
        sha256: of the file.
        license: as the user gave it.
        file: what it was called.
        keys: how many tensors it holds.
        rank: of a LoRA.
        trigger_words: that a LoRA's metadata names.
        metadata: the file's own.
        path: where it is now.
    """

    name: str
    kind: FileKind
    sha256: str
    license: str | None = Field(validation_alias=AliasChoices("license", "licence"))
    file: str
    keys: int
    rank: int | None = None
    trigger_words: tuple[str, ...] = ()
    metadata: dict[str, str] = {}
    path: Path = Field(default=Path(), exclude=True)


class LibraryIndex:
    """The names under one home."""

    def __init__(self, home: str | os.PathLike[str] | None = None):
        """Look under a home, by default `~/.overpaint`."""
        self.folder = (Path(home) if home else Path("~/.overpaint").expanduser()) / "models"

    def list_entries(self) -> list[LibraryEntry]:
        """All that were added, by name."""
        names = (path.stem for path in sorted(self.folder.glob("*.json")))
        return [entry for name in names if (entry := self.read_entry(name))]

    def read_entry(self, name: str) -> LibraryEntry | None:
        """What was added by a name.

        Raises:
            CheckpointError: the entry cannot be read.
        """
        path = self.folder / f"{name}.json"
        try:
            entry = LibraryEntry.model_validate_json(path.read_text("utf-8"))
        except FileNotFoundError:
            return None
        except (ValueError, OSError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error
        return entry.model_copy(update={"path": get_entry_path(self.folder, entry)})

    def find_kind(self, name: str) -> FileKind | None:
        """What a name leads to; None if that is nothing."""
        if not NAME_PATTERN.fullmatch(name):
            return None
        if entry := self.read_entry(name):
            return entry.kind
        return next((kind for kind in PACKAGED_KINDS if name in list_packaged(kind)), None)

    def require(self, name: str, kind: FileKind | None = None) -> None:
        """Insist on a name.

        Raises:
            ModelNotFoundError: nothing by that name, or nothing of that kind.
        """
        found = self.find_kind(name)
        if found is not None and kind in (None, found):
            return
        what = kind or "file"
        known = [entry.name for entry in self.list_entries() if kind in (None, entry.kind)]
        known += [
            own for other in PACKAGED_KINDS if kind in (None, other) for own in list_packaged(other)
        ]
        aside = " Names lead to the catalogue alone; add the file first." if "/" in name else ""
        suggestion = (
            did_you_mean(name, known)
            if known
            else " None was added yet: overpaint models add FILE."
        )
        raise ModelNotFoundError(f"unknown {what} {name!r}.{aside or suggestion}")


def list_packaged(kind: str) -> dict[str, Path]:
    """What ships inside the package beside the miniature, by name.

    Args:
        kind: "control", "lora" or "embedding".
    """
    folder = Path(str(importlib.resources.files("overpaint"))) / "data" / f"{MINIATURE}-{kind}"
    return {f"{MINIATURE}-{path.stem}": path for path in sorted(folder.glob("*.safetensors"))}


def get_entry_path(folder: Path, entry: LibraryEntry) -> Path:
    """Where an entry's bytes are."""
    return folder / f"{entry.sha256}.safetensors"
