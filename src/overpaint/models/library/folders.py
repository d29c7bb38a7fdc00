"""Models in place: files in the folders of other programs, without a copy.

| folder | what counts |
|---|---|
| AUTOMATIC1111's or Forge's root | `models`, `embeddings`, `extensions/*/models` |
| ComfyUI's root | `models`, and the folders of `extra_model_paths.yaml` |
| `extra_model_paths.yaml` | the folders that it names |
| any other folder | the files in it and below it |

The kind of a file comes from its keys, so the names of subfolders have no effect. Each look-up
lists the folders and stamps the files; the description of a file is kept until its stamp changes.
"""

import contextlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import yaml

from overpaint.errors import CheckpointError, ModelNotFoundError
from overpaint.models.files.digests import compute_sha256
from overpaint.models.files.lora.peft_folder import (
    PARTS,
    PEFT_CONFIG,
    compute_lora_digests,
    is_peft_folder,
    list_lora_files,
    list_peft_folders,
)
from overpaint.models.files.stamps import Stamp, StampedValues, stamp_files
from overpaint.models.files.suffixes import WEIGHT_SUFFIXES
from overpaint.models.library.describe import Header, describe, read_header
from overpaint.models.library.entry import LibraryEntry, strip_suffix

COMFYUI_PATHS = "extra_model_paths.yaml"

MAX_FILES = 20_000
"""Files that are looked at in one folder of models."""

CHECKPOINT_INDEX = "model_index.json"
"""The file that makes a folder a checkpoint in diffusers' layout."""


class ModelFolders:
    """The models in some folders.

    Attributes:
        paths: The folders, or files like ComfyUI's `extra_model_paths.yaml`.
    """

    def __init__(self, paths: "Iterable[str | os.PathLike[str]] | os.PathLike[str]" = ()):
        """Use some folders.

        Raises:
            ModelNotFoundError: A folder does not exist.
            CheckpointError: A YAML file cannot be read.
        """
        paths = [paths] if isinstance(paths, str | os.PathLike) else paths
        self.paths = tuple(Path(path).expanduser().absolute() for path in paths)
        self._described = StampedValues(_describe)
        self._named: tuple[tuple[LibraryEntry, ...], tuple[LibraryEntry, ...]] = ((), ())
        self._digests: dict[Path, tuple[Stamp, tuple[str, str]]] = {}
        for path in self.paths:
            if not path.exists():
                raise ModelNotFoundError(f"There is no folder of models: {path}")
            for root in _list_roots(path):
                _check_readable(root)

    def list_entries(self) -> tuple[LibraryEntry, ...]:
        """Describe the models, in order of their names; the same tuple while nothing changes.

        Of two files with one name and kind, each has its place as its name.
        """
        described = self._described.update(self._stamp_models())
        before, named = self._named
        if described is not before:
            named = _name_by_place(described)
            self._named = (described, named)
        return named

    def _stamp_models(self) -> dict[tuple[Path, Path], Stamp]:
        """Return the stamp of each model by its root and path; a file in two roots counts once."""
        found: dict[Path, tuple[Path, Stamp]] = {}
        for path in self.paths:
            try:
                roots = list(_list_roots(path))
            except (CheckpointError, OSError):
                continue  # it was readable when the program started
            for root in roots:
                for file in _walk(root):
                    with contextlib.suppress(CheckpointError, OSError):
                        found.setdefault(file, (root, stamp_files(_list_described_files(file))))
        return {(root, file): stamp for file, (root, stamp) in found.items()}

    def add_digests(self, entry: LibraryEntry) -> LibraryEntry:
        """Return an entry with its digests, which are computed again only after a change.

        Raises:
            CheckpointError: A file of the entry cannot be read.
        """
        try:
            stamp = stamp_files(_list_hashed_files(entry.path))
            known = self._digests.get(entry.path)
            if known is None or known[0] != stamp:
                self._digests[entry.path] = known = (stamp, _compute_digests(entry))
        except OSError as error:
            raise CheckpointError(f"{entry.name} cannot be read: {error.strerror}") from error
        whole, inner = known[1]
        return entry.model_copy(update={"sha256": whole, "tensors_sha256": inner})


def _describe(place: tuple[Path, Path]) -> LibraryEntry | None:
    """Return the description of a file in a root; None if it is of no known kind."""
    root, path = place
    try:
        entry = describe_path(path)
    except Exception:  # one file must not hide the others
        return None
    return entry.model_copy(update={"place": path.relative_to(root).as_posix()})


def _name_by_place(entries: Iterable[LibraryEntry]) -> tuple[LibraryEntry, ...]:
    """Return entries in order of their names; those that share a name are named by place."""
    entries = tuple(entries)
    count = Counter((entry.kind, entry.name) for entry in entries)
    named = (
        entry
        if count[entry.kind, entry.name] == 1
        else entry.model_copy(update={"name": strip_suffix(entry.place)})
        for entry in entries
    )
    return tuple(sorted(named, key=lambda entry: entry.name))


def describe_path(path: Path) -> LibraryEntry:
    """Describe a file, a PEFT folder or a diffusers folder where it lies, without its digest.

    Raises:
        CheckpointError: The file is damaged or of an unknown kind.
    """
    if (path / CHECKPOINT_INDEX).is_file():
        return LibraryEntry(
            name=path.name,
            kind="checkpoint",
            sha256="",
            license=None,
            file=path.name,
            keys=0,
            path=path,
        )
    if path.is_dir():
        found = describe(_read_peft_header(path), path.name, "")
        return found.model_copy(update={"path": path, "file": path.name})
    return describe(read_header(path), strip_suffix(path.name), "")


def _read_peft_header(path: Path) -> Header:
    """Read the headers of a PEFT folder's files as one, which has the keys of all parts."""
    shapes: dict[str, Sequence[int]] = {}
    metadata: dict[str, str] = {}
    for own in list_peft_folders(path):
        header = read_header(own.weights)
        prefix = f"{own.part}." if own.part else ""
        shapes |= {prefix + key: shape for key, shape in header.shapes.items()}
        metadata |= header.metadata
    return Header(path, shapes, metadata)


def _list_described_files(path: Path) -> tuple[Path, ...]:
    """Return the files on which a description depends."""
    if not os.path.isdir(path):
        return (path,)
    index = path / CHECKPOINT_INDEX
    return (index,) if index.is_file() else list_lora_files(path)


def _list_hashed_files(path: Path) -> tuple[Path, ...]:
    """Return the files on which the digests of an entry depend."""
    if (path / CHECKPOINT_INDEX).is_file():
        return tuple(sorted(path.glob("**/*.safetensors")))
    return list_lora_files(path)


def _compute_digests(entry: LibraryEntry) -> tuple[str, str]:
    if entry.kind == "lora":
        return compute_lora_digests(entry.path, entry.metadata)
    whole = compute_sha256(_list_hashed_files(entry.path))
    return whole, whole


def _list_roots(path: Path) -> Iterator[Path]:
    """Yield the folders to read for a folder or a YAML file that the user gave."""
    if path.suffix.lower() in {".yaml", ".yml"}:
        yield from _read_comfyui_paths(path)
    elif (path / "models").is_dir():
        yield path / "models"
        yield path / "embeddings"
        yield from sorted(path.glob("extensions/*/models"))
        if (path / COMFYUI_PATHS).is_file():
            yield from _read_comfyui_paths(path / COMFYUI_PATHS)
    else:
        yield path


def _check_readable(root: Path) -> None:
    """Raise ModelNotFoundError if a folder cannot be read. Other programs name missing folders."""
    try:
        with os.scandir(root):
            return
    except FileNotFoundError:
        return
    except OSError as error:
        raise ModelNotFoundError(
            f"The folder of models {root} cannot be read: {error.strerror}. Give another folder, "
            "or change its permissions."
        ) from error


def _read_comfyui_paths(path: Path) -> Iterator[Path]:
    """Yield the folders in ComfyUI's YAML file, as its utils/extra_config.py does."""
    try:
        sections: Any = yaml.safe_load(path.read_text("utf-8")) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(sections, dict):
        raise CheckpointError(f"{path} does not have sections with folders")
    for section in cast("dict[str, Any]", sections).values():
        if not isinstance(section, dict):
            continue
        folders = cast("dict[str, Any]", section)
        base = os.path.expandvars(Path(str(folders.get("base_path") or "")).expanduser())
        for key, lines in folders.items():
            if key in {"base_path", "is_default"} or not isinstance(lines, str):
                continue
            for line in filter(None, map(str.strip, lines.splitlines())):
                yield (path.parent / base / Path(line).expanduser()).absolute()


def _walk(root: Path) -> Iterator[Path]:
    """Yield the files and folders below a folder that can be models."""
    seen: set[str] = set()
    count = 0
    for folder, subfolders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        here = Path(folder)
        parts = set(PARTS) & set(subfolders)
        if real in seen or not folder.isprintable():
            subfolders.clear()
            continue
        seen.add(real)
        if {PEFT_CONFIG, CHECKPOINT_INDEX} & set(files) or (parts and is_peft_folder(here)):
            subfolders.clear()
            yield here
            continue
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(files):
            if os.path.splitext(name)[1].lower() in WEIGHT_SUFFIXES and name.isprintable():
                count += 1
                if count > MAX_FILES:
                    return
                yield here / name
