"""The user's own checkpoints, LoRAs, nets and embeddings: files by content, found by name.

Where they are, and what is said of them, is in `entries.py`. What ships beside the miniature is
found as well, and stays.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from tempfile import NamedTemporaryFile

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

KEY_PATTERNS: dict[FileKind, str] = {
    "control": r"lora_controlnet|input_hint_block|controlnet_cond_embedding|^(adapter\.)?body\.",
    "lora": key_patterns.LORA_KEYS,
    "embedding": r"^(clip_[lg]|text_encoders_\d|emb_params)$",
    "checkpoint": r"^model\.diffusion_model\.",
}
"""Patterns of keys, in order, that tell what a file is."""


class Library(LibraryIndex):
    """The files under one home."""

    def add(
        self, source: Path, name: str | None = None, license: str | None = None
    ) -> LibraryEntry:
        """Copy a file in, whole or not at all.

        Args:
            source: a .safetensors file.
            name: to find it by; by default that of the file.
            license: of its weights.

        Raises:
            ModelNotFoundError: no such file.
            CheckpointError: damaged, a pickle, or nothing that is known; or a name that is none,
                or is taken by another file.
            OutputError: it cannot be written.
        """
        if not source.is_file():
            raise ModelNotFoundError(f"no such file: {source}")
        name = source.stem if name is None else name
        weights = open_weights(source)
        entry = describe_file(weights, require_safe_name(name), license)
        if entry.kind == "checkpoint" and name in (*PACKAGED_MODELS, *ALIASES):
            raise CheckpointError(f"{name!r} is the name of another model; give one with --name")
        if self.find_kind(name) and (taken := self.find(name)).sha256 != entry.sha256:
            raise CheckpointError(
                f"{name!r} is {taken.file} already; remove it first, or give another name"
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
        """The entry of a name.

        Raises:
            ModelNotFoundError: none by that name, or none of that kind.
        """
        self.require(name, kind)
        return self.read_entry(name) or _shipped(name, _packaged()[name])

    def find_if(self, name: str, kind: FileKind) -> LibraryEntry | None:
        """The entry of a name; None where none of that kind has it."""
        return self.find(name) if self.find_kind(name) == kind else None

    def remove(self, name: str) -> LibraryEntry:
        """Forget a name, and the file when no other name leads to it.

        Raises:
            ModelNotFoundError: none by that name.
            CheckpointError: it ships with the package.
        """
        entry = self.find(name)
        if entry.path.parent != self.folder:
            raise CheckpointError(f"{name!r} ships with Overpaint and stays")
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
    """What ships beside the miniature."""
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
    """The name, if it is safe as one.

    Raises:
        CheckpointError: it is not.
    """
    if not NAME_PATTERN.fullmatch(name):
        raise CheckpointError(
            f"{name!r} is no name: letters, digits, '_', '-' and '.', at most 100, the first a "
            "letter or digit. Give one with --name."
        )
    return name


def describe_file(weights: WeightsFile, name: str, license: str | None = None) -> LibraryEntry:
    """What a file is, by its keys and metadata.

    Raises:
        CheckpointError: nothing that is known.
    """
    kinds: list[FileKind] = [
        k for k, p in KEY_PATTERNS.items() if any(re.search(p, key) for key in weights.tensors)
    ]
    if not kinds:
        raise CheckpointError(
            f"{weights.path}: neither LoRA nor control net nor embedding nor checkpoint; its keys "
            f"are {', '.join(list(weights.tensors)[:5]) or 'none'}"
        )
    downs = (
        stored.shape[0]
        for key, stored in weights.tensors.items()
        if re.search(r"(lora_down|lora_A(\.\w+)?|lora\.down)\.weight$", key)
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
    """Words that a LoRA was trained to answer to: ModelSpec's, else kohya's commonest tags."""
    if phrase := metadata.get("modelspec.trigger_phrase"):
        yield phrase
        return
    try:
        folders: dict[str, dict[str, int]] = json.loads(metadata.get("ss_tag_frequency", "{}"))
    except ValueError:
        return
    counts: dict[str, int] = {}
    for tags in folders.values():
        for tag, count in tags.items():
            counts[tag.strip()] = counts.get(tag.strip(), 0) + count
    most = max(counts.values(), default=0)
    yield from (tag for tag, count in counts.items() if count == most)
