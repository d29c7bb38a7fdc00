"""Add, find and remove checkpoints, LoRAs, ControlNets and embeddings.

`index.py` describes the files on disk. `Library` also finds the add-ons in this package, but cannot
remove them.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import islice
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from overpaint.errors import CheckpointError, ModelNotFoundError, OutputError
from overpaint.models.family import FAMILIES
from overpaint.models.files import key_patterns
from overpaint.models.files.digests import compute_sha256
from overpaint.models.files.safetensors_io import WeightsFile, open_weights
from overpaint.models.library import index
from overpaint.models.library.catalog import ALIASES
from overpaint.models.library.index import (
    NAME_PATTERN,
    PACKAGED_KINDS,
    PACKAGED_MODELS,
    FileKind,
    LibraryEntry,
    LibraryIndex,
    get_entry_path,
)

MAX_TRIGGER_WORDS = 20
MAX_TRIGGER_CHARS = 1000

KEY_PATTERNS: dict[FileKind, str] = {
    "control": r"lora_controlnet|input_hint_block|controlnet_cond_embedding|^(adapter\.)?body\.",
    "lora": key_patterns.LORA_KEYS,
    "embedding": r"^(clip_[lg]|text_encoders_\d|emb_params)$",
    "checkpoint": r"^model\.diffusion_model\.",
}
"""Patterns of keys that identify the kind of a file; the first match counts."""


class Library(LibraryIndex):
    """The files that the user added under one home folder, and the add-ons in this package."""

    def add(
        self, source: Path, name: str | None = None, license: str | None = None
    ) -> LibraryEntry:
        """Copy a file into the library atomically.

        Args:
            source: A .safetensors file.
            name: The name for requests; the default is the file name without its suffix.
            license: The license of its weights.

        Raises:
            ModelNotFoundError: The file does not exist.
            CheckpointError: The file is damaged, a pickle or of an unknown kind. Or the name is
                invalid, or another file has it.
            OutputError: The library's folder cannot be written.
        """
        if not source.is_file():
            raise ModelNotFoundError(f"no such file: {source}")
        name = source.stem if name is None else name
        weights = open_weights(source)
        entry = describe_file(weights, require_safe_name(name), license)
        if entry.kind == "checkpoint" and name in (*PACKAGED_MODELS, *ALIASES):
            raise CheckpointError(
                f"the name {name!r} belongs to another model; choose a different name with --name"
            )
        if self.find_kind(name) and (taken := self.find(name)).sha256 != entry.sha256:
            raise CheckpointError(
                f"the name {name!r} belongs to {taken.file} already; remove that "
                "file first, or choose a different name"
            )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not get_entry_path(self.folder, entry).is_file():
                self._put(get_entry_path(self.folder, entry), partial(shutil.copyfile, source))
            text = entry.model_dump_json(indent=1)
            self._put(self.folder / f"{name}.json", lambda path: path.write_text(text, "utf-8"))
        except OSError as error:
            raise OutputError(f"{self.folder} cannot be written: {error}") from error
        return self.find(name)

    def find(self, name: str, kind: FileKind | None = None) -> LibraryEntry:
        """Return the entry with a name.

        Raises:
            ModelNotFoundError: No entry has that name, or the entry is of another kind.
        """
        self.require(name, kind)
        return self.read_entry(name) or _shipped(name, _packaged()[name])

    def find_if(self, name: str, kind: FileKind) -> LibraryEntry | None:
        """Return the entry with a name, or None without an entry of that kind."""
        return self.find(name) if self.find_kind(name) == kind else None

    def remove(self, name: str) -> LibraryEntry:
        """Remove a name, and its file if no other name refers to the file.

        Raises:
            ModelNotFoundError: No entry has that name.
            CheckpointError: The entry belongs to this package.
        """
        entry = self.find(name)
        if entry.path.parent != self.folder:
            raise CheckpointError(f"{name!r} is part of Overpaint and cannot be removed")
        (self.folder / f"{name}.json").unlink()
        if all(other.sha256 != entry.sha256 for other in self.list_entries()):
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


def list_shipped() -> tuple[LibraryEntry, ...]:
    """List the add-ons in this package."""
    return tuple(_shipped(name, path) for name, path in _packaged().items())


def _packaged() -> dict[str, Path]:
    return {
        name: path for kind in PACKAGED_KINDS for name, path in index.list_packaged(kind).items()
    }


@cache
def _shipped(name: str, path: Path) -> LibraryEntry:
    license = FAMILIES["miniature"].license
    return describe_file(open_weights(path), name, license).model_copy(update={"path": path})


def require_safe_name(name: str) -> str:
    """Return the name if it is a valid name for a file in the library.

    Raises:
        CheckpointError: The name is invalid.
    """
    if not NAME_PATTERN.fullmatch(name):
        raise CheckpointError(
            f"{name!r} is not a valid name. A name has up to 100 letters, digits, '_', '-' and "
            "'.', and starts with a letter or digit. Choose a different name with --name."
        )
    return name


def describe_file(weights: WeightsFile, name: str, license: str | None = None) -> LibraryEntry:
    """Describe a file by its keys and metadata.

    Raises:
        CheckpointError: The file is of an unknown kind.
    """
    kinds: list[FileKind] = [
        k for k, p in KEY_PATTERNS.items() if any(re.search(p, key) for key in weights.tensors)
    ]
    if not kinds:
        raise CheckpointError(
            f"{weights.path} is neither a LoRA nor a ControlNet nor an embedding nor a "
            f"checkpoint; its keys are {', '.join(list(weights.tensors)[:5]) or 'none'}"
        )
    downs = (
        stored.shape[0]
        for key, stored in weights.tensors.items()
        if stored.ndim and re.search(r"(lora_down|lora_A(\.\w+)?|lora\.down)\.weight$", key)
    )
    return LibraryEntry(
        name=name,
        kind=kinds[0],
        sha256=compute_sha256((weights.path,)),
        license=license or weights.metadata.get("modelspec.license"),
        file=weights.path.name,
        keys=len(weights.tensors),
        rank=max(downs, default=None),
        trigger_words=tuple(_trigger_words(weights.metadata)),
        metadata=weights.metadata,
    )


def _trigger_words(metadata: dict[str, str]) -> Iterator[str]:
    """Yield a LoRA's trigger words: those of ModelSpec, else the most frequent tags of kohya."""
    if phrase := metadata.get("modelspec.trigger_phrase"):
        yield phrase[:MAX_TRIGGER_CHARS]
        return
    counts = _count_tags(metadata.get("ss_tag_frequency", "{}"))
    most = max(counts.values(), default=0)
    frequent = (tag for tag, count in counts.items() if count == most)
    yield from (tag[:MAX_TRIGGER_CHARS] for tag in islice(frequent, MAX_TRIGGER_WORDS))


def _count_tags(text: str) -> dict[str, int]:
    """Add up kohya's counts of tags, a map for each folder; ignore all that has another shape."""
    try:
        folders: Any = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    counts: dict[str, int] = {}
    for tags in folders.values() if isinstance(folders, dict) else ():
        for tag, count in tags.items() if isinstance(tags, dict) else ():
            if type(count) is int:
                counts[tag.strip()] = counts.get(tag.strip(), 0) + count
    return counts
