"""The user's own checkpoints, LoRAs, nets and embeddings: files by content, found by name.

    HOME/models/<sha256>.safetensors    the bytes, once
    HOME/models/<name>.json             what they are; written last, so that it never lies

What ships beside the miniature is found as well, and stays. Names lead here and nowhere else: a
request cannot reach a path.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Literal

from pydantic import BaseModel, Field

from overpaint.errors import CheckpointError, ModelNotFoundError, OutputError, near
from overpaint.models import lora
from overpaint.models.catalogue import ALIASES, PACKAGED, packaged
from overpaint.models.family import FAMILIES
from overpaint.models.hashes import sha256_of
from overpaint.models.weights import WeightsFile, open_weights

Kind = Literal["lora", "control", "embedding", "checkpoint"]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")

KINDS: dict[Kind, str] = {
    "control": r"lora_controlnet|input_hint_block|controlnet_cond_embedding|^(adapter\.)?body\.",
    "lora": lora.KEYS,
    "embedding": r"^(clip_[lg]|text_encoders_\d|emb_params)$",
    "checkpoint": r"^model\.diffusion_model\.",
}
"""Patterns of keys, in order, that tell what a file is."""

SHIPPED: tuple[Kind, ...] = ("control", "lora", "embedding")
"""Kinds of which some ship inside the package."""


class Entry(BaseModel, frozen=True):
    """A file of the user's.

    Attributes:
        name: it is found by.
        kind: what it is.
        sha256: of the file.
        licence: as the user gave it.
        file: what it was called.
        keys: how many tensors it holds.
        rank: of a LoRA.
        trigger_words: that a LoRA's metadata names.
        metadata: the file's own.
        path: where it is now.
    """

    name: str
    kind: Kind
    sha256: str
    licence: str | None
    file: str
    keys: int
    rank: int | None = None
    trigger_words: tuple[str, ...] = ()
    metadata: dict[str, str] = {}
    path: Path = Field(default=Path(), exclude=True)


class Store:
    """The files under one home."""

    def __init__(self, home: str | os.PathLike[str] | None = None):
        """Look under a home, by default `~/.overpaint`."""
        self.folder = (Path(home) if home else Path("~/.overpaint").expanduser()) / "models"

    def add(self, source: Path, name: str | None = None, licence: str | None = None) -> Entry:
        """Copy a file in, whole or not at all.

        Args:
            source: a .safetensors file.
            name: to find it by; by default that of the file.
            licence: of its weights.

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
        entry = describe(weights, checked(name), licence)
        if entry.kind == "checkpoint" and name in (*PACKAGED, *ALIASES):
            raise CheckpointError(f"{name!r} is the name of another model; give one with --name")
        if (taken := self._read(name)) and taken.sha256 != entry.sha256:
            raise CheckpointError(
                f"{name!r} is {taken.file} already; remove it first, or give another name"
            )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not entry_path(self.folder, entry).is_file():
                self._put(entry_path(self.folder, entry), partial(shutil.copyfile, source))
            text = entry.model_dump_json(indent=1)
            self._put(self.folder / f"{name}.json", lambda path: path.write_text(text, "utf-8"))
        except OSError as error:
            raise OutputError(f"{self.folder} cannot be written: {error}") from error
        return self.find(name)

    def find(self, name: str, kind: Kind | None = None) -> Entry:
        """The entry of a name.

        Raises:
            ModelNotFoundError: none by that name, or none of that kind.
        """
        entry = self._read(name) if NAME.fullmatch(name) else None
        if entry is None or kind not in (None, entry.kind):
            what = kind or "file"
            known = [e.name for e in (*self.entries(), *shipped()) if kind in (None, e.kind)]
            aside = " Names lead to the catalogue alone; add the file first." if "/" in name else ""
            suggestion = (
                near(name, known) if known else " None was added yet: overpaint models add FILE."
            )
            raise ModelNotFoundError(f"unknown {what} {name!r}.{aside or suggestion}")
        return entry

    def known(self, name: str, kind: Kind) -> Entry | None:
        """The entry of a name; None where none of that kind has it."""
        found = self._read(name) if NAME.fullmatch(name) else None
        return found if found and found.kind == kind else None

    def remove(self, name: str) -> Entry:
        """Forget a name, and the file when no other name leads to it.

        Raises:
            ModelNotFoundError: none by that name.
            CheckpointError: it ships with the package.
        """
        entry = self.find(name)
        if entry.path.parent != self.folder:
            raise CheckpointError(f"{name!r} ships with Overpaint and stays")
        (self.folder / f"{name}.json").unlink()
        if all(other.sha256 != entry.sha256 for other in self.entries()):
            entry.path.unlink(missing_ok=True)
        return entry

    def entries(self) -> list[Entry]:
        """All that were added, by name."""
        names = (path.stem for path in sorted(self.folder.glob("*.json")))
        return [entry for name in names if (entry := self._read(name))]

    def _read(self, name: str) -> Entry | None:
        path = self.folder / f"{name}.json"
        try:
            entry = Entry.model_validate_json(path.read_text("utf-8"))
        except FileNotFoundError:
            return next((_shipped(own, path) for own, path in _packaged() if own == name), None)
        except (ValueError, OSError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error
        return entry.model_copy(update={"path": entry_path(self.folder, entry)})

    def _put(self, path: Path, write: Callable[[Path], object]) -> None:
        with NamedTemporaryFile(dir=self.folder, suffix=".partial", delete=False) as file:
            unfinished = Path(file.name)
        try:
            write(unfinished)
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)


def shipped() -> tuple[Entry, ...]:
    """What ships beside the miniature."""
    return tuple(_shipped(name, path) for name, path in _packaged())


def _packaged() -> Iterator[tuple[str, Path]]:
    for kind in SHIPPED:
        yield from packaged(kind).items()


@cache
def _shipped(name: str, path: Path) -> Entry:
    licence = FAMILIES["miniature"].licence
    return describe(open_weights(path), name, licence).model_copy(update={"path": path})


def entry_path(folder: Path, entry: Entry) -> Path:
    """Where an entry's bytes are."""
    return folder / f"{entry.sha256}.safetensors"


def checked(name: str) -> str:
    """The name, if it is safe as one.

    Raises:
        CheckpointError: it is not.
    """
    if not NAME.fullmatch(name):
        raise CheckpointError(
            f"{name!r} is no name: letters, digits, '_', '-' and '.', at most 100, the first a "
            "letter or digit. Give one with --name."
        )
    return name


def describe(weights: WeightsFile, name: str, licence: str | None = None) -> Entry:
    """What a file is, by its keys and metadata.

    Raises:
        CheckpointError: nothing that is known.
    """
    kinds: list[Kind] = [
        k for k, p in KINDS.items() if any(re.search(p, key) for key in weights.tensors)
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
    return Entry(
        name=name,
        kind=kinds[0],
        sha256=sha256_of((weights.path,)),
        licence=licence or weights.metadata.get("modelspec.license"),
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
