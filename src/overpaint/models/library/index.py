"""Look up names of add-ons and checkpoints without torch.

A name refers to a file that the user added, to a file in this package, or to a file in a folder of
models. Requests contain names only, so they cannot read other paths. `library.py` adds and removes
files.

    HOME/models/<sha256>.safetensors    the file, stored once
    HOME/models/<name>.json             its description, written after the file is complete

If a name is not safe as a file name, its description has the digest of the name in its place.
"""

import contextlib
import hashlib
import importlib.resources
import os
from collections.abc import Collection, Iterable, Sequence
from functools import cache
from pathlib import Path

from overpaint.errors import CheckpointError, ModelNotFoundError, did_you_mean
from overpaint.models.family import FAMILIES
from overpaint.models.files.digests import compute_sha256
from overpaint.models.files.stamps import Stamp, StampedValues, stamp_files
from overpaint.models.library.describe import describe, read_header
from overpaint.models.library.entry import (
    HASH_PATTERN,
    NAME_PATTERN,
    FileKind,
    LibraryEntry,
)
from overpaint.models.library.folders import ModelFolders
from overpaint.models.library.names import NameTable
from overpaint.system.folders import find_models_home

MINIATURE = "miniature"

PACKAGED_MODELS = (MINIATURE, "miniature-inpaint", "miniature-refiner")
"""Models in this package."""

MAX_DESCRIPTION_BYTES = 2**27
"""Bytes of a description, which has the metadata of its file."""

PACKAGED_KINDS: tuple[FileKind, ...] = ("control", "lora", "embedding", "decoder")
"""Kinds of add-ons in this package."""


class LibraryIndex:
    """The names of files that the user added under one home folder, or has in other folders."""

    def __init__(
        self,
        home: str | os.PathLike[str] | None = None,
        folders: Iterable[str | os.PathLike[str]] = (),
    ):
        """Use a home folder, and folders of models.

        Args:
            home: The home folder; the default is that of `find_models_home`.
            folders: Folders of models, which are used in place; see `folders.py`.

        Raises:
            ModelNotFoundError, CheckpointError: A folder of models cannot be read.
        """
        self.folder = (Path(home) if home else find_models_home()) / "models"
        self.in_place = ModelFolders(folders)
        self._added = StampedValues(self._read_listed)
        self._table: tuple[object, object, NameTable] = ((), (), NameTable(()))

    def list_entries(self) -> list[LibraryEntry]:
        """List the added files, then those in folders of models, each in order of their names."""
        return list(self._read_table().entries)

    def _read_table(self) -> NameTable:
        """Return the table of all entries, which is made again only after a change."""
        added, in_place = self._read_added(), self.in_place.list_entries()
        *sources, table = self._table
        if sources[0] is not added or sources[1] is not in_place:
            first = sorted(added, key=lambda entry: entry.name)
            names = {entry.name for entry in first}
            table = NameTable([*first, *(e for e in in_place if e.name not in names)])
            self._table = (added, in_place, table)
        return table

    def list_added(self) -> list[LibraryEntry]:
        """List the added files in order of their names.

        Other files in the folder, and descriptions that cannot be read, are left out.
        """
        return sorted(self._read_added(), key=lambda entry: entry.name)

    def _read_added(self) -> tuple[LibraryEntry, ...]:
        """Return the added files in any order; the same tuple while nothing changes."""
        stamps: dict[Path, Stamp] = {}
        for path in self.folder.glob("*.json"):
            with contextlib.suppress(OSError):  # it was removed a moment ago
                stamps[path] = stamp_files((path,))
        return self._added.update(stamps)

    def _read_listed(self, path: Path) -> LibraryEntry | None:
        with contextlib.suppress(CheckpointError):
            entry = self._read(path, path.stem)
            if entry and self.get_description_path(entry.name) == path:
                return entry
        return None

    def read_entry(self, name: str) -> LibraryEntry | None:
        """Return the description of an added file, or None without such a file.

        Raises:
            CheckpointError: The description cannot be read.
        """
        entry = self._read(self.get_description_path(name), name)
        if entry and entry.name != name:
            raise CheckpointError(_describe_unreadable(self.get_description_path(name), name))
        return entry

    def get_description_path(self, name: str) -> Path:
        """Return the path of the description of a name."""
        if NAME_PATTERN.fullmatch(name):
            return self.folder / f"{name}.json"
        digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
        return self.folder / f"~{digest[:40]}.json"

    def _read(self, path: Path, name: str) -> LibraryEntry | None:
        try:
            if path.stat().st_size > MAX_DESCRIPTION_BYTES:
                raise ValueError("it is too large")
            entry = LibraryEntry.model_validate_json(path.read_text("utf-8"))
        except FileNotFoundError:
            return None
        except (ValueError, OSError) as error:
            raise CheckpointError(_describe_unreadable(path, name)) from error
        return entry.model_copy(update={"path": get_entry_path(self.folder, entry)})

    def resolve(
        self, name: str, kind: FileKind | None = None, loras: Collection[str] = ()
    ) -> LibraryEntry | None:
        """Return the entry that a name refers to, or None without one.

        A name is an entry's name, else the name of its file, its title or its hash. An embedding
        can also be one in a LoRA file. A file in this package is found by its name alone.

        Args:
            name: The name.
            kind: The kind of the entry; None for any.
            loras: The LoRAs of a request, whose embeddings count before those of others.

        Raises:
            ModelNotFoundError: The name fits several files.
        """
        if not name:
            return None
        added = self.read_entry(name)
        if added and kind in (None, added.kind):
            return added
        table = self._read_table()
        for shipped in list_shipped():
            if shipped.name == name and kind in (None, shipped.kind):
                return shipped  # its file has a short name, which others can have too
        for matches in table.list_matches(name):
            if found := [entry for entry in matches if kind in (None, entry.kind)]:
                return self._choose_one(name, found)
        if digits := HASH_PATTERN.fullmatch(name.lower()):
            entries = (entry for entry in table.entries if kind in (None, entry.kind))
            if found := [e for e in entries if self._with_digests(e).has_hash(digits[1])]:
                return self._choose_one(name, found)
        if kind == "embedding":
            bundles = table.list_bundles(name)
            if loras and len(bundles) > 1:
                used = {entry.name for lora in loras if (entry := self.resolve(lora, "lora"))}
                bundles = [entry for entry in bundles if entry.name in used] or bundles
            return self._choose_one(name, bundles) if bundles else None
        return None

    def _choose_one(self, name: str, found: Sequence[LibraryEntry]) -> LibraryEntry:
        """Return the entry, or the first of several that are the same file."""
        if len(found) > 1:
            files = {own.sha256 or str(own.path) for own in map(self._with_digests, found)}
            if len(files) > 1:
                names = ", ".join(sorted({entry.name for entry in found})[:5])
                raise ModelNotFoundError(
                    f"{name!r} fits several files: {names}. Give one of these names in full."
                )
        return found[0]

    def _with_digests(self, entry: LibraryEntry) -> LibraryEntry:
        """Return an entry with its digests; a file that cannot be read has none."""
        if entry.sha256 or entry.kind not in ("lora", "embedding"):
            return entry  # hashing a checkpoint takes too long for a look-up
        try:
            return self.in_place.add_digests(entry)
        except CheckpointError:
            return entry

    def require(
        self, name: str, kind: FileKind | None = None, loras: Collection[str] = ()
    ) -> LibraryEntry:
        """Return the entry that a name refers to; see `resolve`.

        Raises:
            ModelNotFoundError: No file has that name, the file is of another kind, or the name
                fits several files.
        """
        if found := self.resolve(name, kind, loras):
            return found
        what = kind or "file"
        listed = [*self.list_entries(), *list_shipped()]
        known = [entry.name for entry in listed if kind in (None, entry.kind)]
        aside = " Names lead to the catalog alone; add the file first." if "/" in name else ""
        suggestion = (
            did_you_mean(name, known)
            if known
            else " None was added yet: overpaint models add FILE."
        )
        raise ModelNotFoundError(f"Unknown {what} {name!r}.{aside or suggestion}")


def _describe_unreadable(path: Path, name: str) -> str:
    """Describe a damaged description without its folder: clients of a server see the message."""
    return (
        f"the description of {name!r} among the added models cannot be read; remove {path.name}, "
        "and add the file again"
    )


def list_packaged(kind: str) -> dict[str, Path]:
    """Return the paths of the add-ons in this package by name.

    Args:
        kind: One of `PACKAGED_KINDS`.
    """
    folder = Path(str(importlib.resources.files("overpaint"))) / "data" / f"{MINIATURE}-{kind}"
    return {f"{MINIATURE}-{path.stem}": path for path in sorted(folder.glob("*.safetensors"))}


def list_shipped() -> tuple[LibraryEntry, ...]:
    """List the add-ons in this package."""
    return tuple(
        _describe_shipped(name, path)
        for kind in PACKAGED_KINDS
        for name, path in list_packaged(kind).items()
    )


@cache
def _describe_shipped(name: str, path: Path) -> LibraryEntry:
    license = FAMILIES[MINIATURE].license
    return describe(read_header(path), name, compute_sha256((path,)), license)


def get_entry_path(folder: Path, entry: LibraryEntry) -> Path:
    """Return the path of an entry's file."""
    return folder / f"{entry.sha256}.safetensors"
