"""Add, find and remove checkpoints, LoRAs, ControlNets and embeddings.

`index.py` describes the files on disk. `Library` also reads files by their paths, and adds and
removes files.
"""

import os
import shutil
from collections.abc import Callable, Collection, Iterable
from functools import partial
from pathlib import Path
from tempfile import NamedTemporaryFile

from overpaint.errors import CheckpointError, ModelNotFoundError, OutputError
from overpaint.models.files.digests import compute_sha256, compute_tensors_sha256
from overpaint.models.files.suffixes import WEIGHT_SUFFIXES
from overpaint.models.library.catalog import ALIASES
from overpaint.models.library.describe import describe
from overpaint.models.library.entry import (
    MAX_NAME_CHARS,
    FileKind,
    LibraryEntry,
    is_valid_name,
)
from overpaint.models.library.folders import describe_path
from overpaint.models.library.index import (
    PACKAGED_MODELS,
    LibraryIndex,
    get_entry_path,
    list_shipped,
)
from overpaint.models.library.sources import Source, open_source

__all__ = ["Library", "list_shipped"]


class Library(LibraryIndex):
    """The files that the user added or has in folders of models, and those in this package."""

    def __init__(
        self,
        home: str | os.PathLike[str] | None = None,
        folders: Iterable[str | os.PathLike[str]] = (),
        *,
        paths: bool = False,
    ):
        """Use a home folder, and folders of models.

        Args:
            home: The home folder; the default is that of `find_models_home`.
            folders: Folders of models, which are used in place.
            paths: Whether a name can also be the path of a file. A server must not allow it.

        Raises:
            ModelNotFoundError, CheckpointError: A folder of models cannot be read.
        """
        super().__init__(home, folders)
        self.reads_paths = paths

    def add(
        self, source: Path, name: str | None = None, license: str | None = None
    ) -> LibraryEntry:
        """Copy a file into the library atomically.

        Args:
            source: A safetensors file, a PEFT folder, or one of diffusers' pair of embeddings.
            name: The name for requests; the default is the file name without its suffix, or the
                token of diffusers' embedding.
            license: The license of its weights.

        Raises:
            ModelNotFoundError: The file does not exist.
            CheckpointError: The file is damaged, a pickle or of an unknown kind. Or the name is
                invalid, or another file has it.
            OutputError: The library's folder cannot be written.
        """
        if not source.exists():
            raise ModelNotFoundError(f"There is no file: {source}")
        opened = open_source(source)
        name = require_safe_name(opened.name if name is None else name)
        described = describe(opened.header, name, "", license)
        self._check_free(name, described.kind)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            entry = self._store(opened, described)
            text = entry.model_dump_json(indent=1)
            self._put(self.get_description_path(name), lambda p: p.write_text(text, "utf-8"))
        except OSError as error:
            raise OutputError(f"{self.folder} cannot be written: {error}") from error
        return self.find(name)

    def _check_free(self, name: str, kind: FileKind) -> None:
        if kind == "checkpoint" and name in (*PACKAGED_MODELS, *ALIASES):
            raise CheckpointError(
                f"The name {name!r} belongs to another model; choose a different name with --name"
            )

    def _store(self, opened: Source, described: LibraryEntry) -> LibraryEntry:
        """Write a file into the library, unless it is there, and return its final description.

        Raises:
            CheckpointError: Another file has the name.
        """
        file = opened.weights.path
        if opened.joined:
            with NamedTemporaryFile(dir=self.folder, suffix=".partial", delete=False) as made:
                file = Path(made.name)
        try:
            if opened.joined:
                opened.write(file)
            digest = compute_sha256((file,))
            shipped = {entry.name: entry for entry in list_shipped()}
            taken = self.read_entry(described.name) or shipped.get(described.name)
            if taken and taken.sha256 != digest:
                raise CheckpointError(
                    f"The name {described.name!r} belongs to {taken.file} already; remove that "
                    "file first, or choose a different name"
                )
            entry = described.model_copy(
                update={
                    "sha256": digest,
                    "file": opened.file,
                    "tensors_sha256": compute_tensors_sha256(file, described.metadata)
                    if described.kind == "lora"
                    else None,
                }
            )
            if not get_entry_path(self.folder, entry).is_file():
                self._put(get_entry_path(self.folder, entry), partial(shutil.copyfile, file))
            return entry
        finally:
            if opened.joined:
                file.unlink(missing_ok=True)

    def find(
        self, name: str, kind: FileKind | None = None, loras: Collection[str] = ()
    ) -> LibraryEntry:
        """Return the entry that a name or path refers to, with its digest.

        Raises:
            ModelNotFoundError: No entry has that name, or the entry is of another kind.
            CheckpointError: The file cannot be read.
        """
        if entry := self._find_path(name, kind):
            return self.in_place.add_digests(entry)
        entry = self.require(name, kind, loras)
        return entry if entry.sha256 else self.in_place.add_digests(entry)

    def find_if(self, name: str, kind: FileKind) -> LibraryEntry | None:
        """Return the entry with a name, or None without an entry of that kind.

        The entry of a checkpoint in a folder of models has no digest: loading it computes one.

        Raises:
            CheckpointError: The file cannot be read.
        """
        if self._is_path(name):
            return None
        if kind == "checkpoint" and name in (*PACKAGED_MODELS, *ALIASES):
            return None  # a file in a folder of models does not replace them
        entry = self.resolve(name, kind)
        if entry is None or entry.sha256 or kind == "checkpoint":
            return entry
        return self.in_place.add_digests(entry)

    def _is_path(self, name: str) -> bool:
        """Return whether a name is the path of an existing file, and paths are allowed."""
        if not self.reads_paths or len(name) > 4096 or "\0" in name:
            return False
        looks_like_path = name.startswith(("/", "./", "../", "~")) or Path(name).is_absolute()
        looks_like_path |= Path(name).suffix.lower() in WEIGHT_SUFFIXES
        return looks_like_path and Path(name).expanduser().exists()

    def _find_path(self, name: str, kind: FileKind | None) -> LibraryEntry | None:
        if not self._is_path(name):
            return None
        entry = describe_path(Path(name).expanduser())
        if kind not in (None, entry.kind):
            raise ModelNotFoundError(f"{name} is a {entry.kind}, not a {kind}.")
        return entry

    def remove(self, name: str) -> LibraryEntry:
        """Remove a name, and its file if no other name refers to the file.

        Raises:
            ModelNotFoundError: No entry has that name.
            CheckpointError: The entry belongs to this package, or to a folder of models.
        """
        entry = self.require(name)
        if entry.path.parent != self.folder:
            owner = "in a folder of models" if entry.place else "part of Overpaint"
            raise CheckpointError(f"{name!r} is {owner} and cannot be removed")
        self.get_description_path(entry.name).unlink()
        if all(other.sha256 != entry.sha256 for other in self.list_added()):
            entry.path.unlink(missing_ok=True)
        return entry

    def _put(self, path: Path, write: Callable[[Path], object]) -> None:
        with NamedTemporaryFile(dir=self.folder, suffix=".partial", delete=False) as file:
            unfinished = Path(file.name)
        try:
            write(unfinished)
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)


def require_safe_name(name: str) -> str:
    """Return the name if requests can use it.

    Raises:
        CheckpointError: The name is invalid.
    """
    if not is_valid_name(name):
        raise CheckpointError(
            f"{name!r} is not a valid name. A name has up to {MAX_NAME_CHARS} printable "
            "characters without <, >, :, / and \\, does not start with a dot, and does not start "
            "or end with a space. Choose a different name with --name."
        )
    return name
