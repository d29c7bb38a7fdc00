"""Models in place: files in the folders of other programs, without a copy.

| folder | what counts |
|---|---|
| AUTOMATIC1111's or Forge's root | `models`, `embeddings`, `extensions/*/models` |
| ComfyUI's root | `models`, and the folders of `extra_model_paths.yaml` |
| `extra_model_paths.yaml` | the folders that it names |
| any other folder | the files in it and below it |

The kind of a file comes from its keys, so the names of subfolders have no effect. A folder is
read again at each lookup; the description of a file is kept until the file changes.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import yaml

from overpaint.errors import CheckpointError, ModelNotFoundError
from overpaint.models.files.digests import compute_sha256, compute_tensors_sha256
from overpaint.models.files.peft_config import PEFT_CONFIG, is_peft_folder
from overpaint.models.library.describe import describe, read_header
from overpaint.models.library.entry import WEIGHT_SUFFIXES, LibraryEntry, strip_suffix

COMFYUI_PATHS = "extra_model_paths.yaml"

MAX_FILES = 20_000
"""Files that are looked at in one folder of models."""

_Stamp = tuple[int, int]


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
        self._known: dict[Path, tuple[_Stamp, LibraryEntry | None]] = {}
        self._digests: dict[tuple[Path, _Stamp], tuple[str, str]] = {}
        for path in self.paths:
            if not path.exists():
                raise ModelNotFoundError(f"no such folder of models: {path}")
            list(_list_roots(path))

    def list_entries(self) -> list[LibraryEntry]:
        """Describe the models, in order of their names.

        Of two files with one name and kind, each has its place as its name.
        """
        found: dict[Path, LibraryEntry] = {}
        for path in self.paths:
            try:
                roots = list(_list_roots(path))
            except (CheckpointError, OSError):
                continue  # it was readable when the program started
            for root in roots:
                for file in _walk(root):
                    if file not in found and (entry := self._describe(file)):
                        place = file.relative_to(root).as_posix()
                        found[file] = entry.model_copy(update={"place": place})
        count = Counter((entry.kind, entry.name) for entry in found.values())
        entries = [
            entry
            if count[entry.kind, entry.name] == 1
            else entry.model_copy(update={"name": strip_suffix(entry.place)})
            for entry in found.values()
        ]
        return sorted(entries, key=lambda entry: entry.name)

    def add_digests(self, entry: LibraryEntry) -> LibraryEntry:
        """Return an entry with its digests, which are computed once for a file."""
        try:
            key = (entry.path, _stamp(entry.path))
            if key not in self._digests:
                self._digests[key] = _compute_digests(entry)
        except OSError as error:
            raise CheckpointError(f"{entry.name} cannot be read: {error.strerror}") from error
        whole, inner = self._digests[key]
        return entry.model_copy(update={"sha256": whole, "tensors_sha256": inner})

    def _describe(self, path: Path) -> LibraryEntry | None:
        """Return the description of a file; None if it is of no known kind."""
        try:
            stamp = _stamp(path)
        except OSError:
            return None
        known = self._known.get(path)
        if known is None or known[0] != stamp:
            try:
                known = (stamp, describe_path(path))
            except Exception:  # one file must not hide the others
                known = (stamp, None)
            self._known[path] = known
        return known[1]


def describe_path(path: Path) -> LibraryEntry:
    """Describe a file, a PEFT folder or a diffusers folder where it lies, without its digest.

    Raises:
        CheckpointError: The file is damaged or of an unknown kind.
    """
    if (path / "model_index.json").is_file():
        return LibraryEntry(
            name=path.name,
            kind="checkpoint",
            sha256="",
            license=None,
            file=path.name,
            keys=0,
            path=path,
        )
    if is_peft_folder(path):
        weights = sorted(path.glob("**/*.safetensors"))
        if not weights:
            raise CheckpointError(f"{path} has {PEFT_CONFIG}, but no .safetensors file")
        header = read_header(weights[0])
        found = describe(header, path.name, "")
        return found.model_copy(update={"path": path, "file": path.name})
    return describe(read_header(path), strip_suffix(path.name), "")


def _compute_digests(entry: LibraryEntry) -> tuple[str, str]:
    if entry.path.is_dir():
        whole = compute_sha256(sorted(entry.path.glob("**/*.safetensors")))
        return whole, whole
    whole = compute_sha256((entry.path,))
    if entry.kind != "lora":
        return whole, whole
    return whole, compute_tensors_sha256(entry.path, entry.metadata)


def _stamp(path: Path) -> _Stamp:
    status = path.stat()
    return status.st_mtime_ns, status.st_size


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
        if real in seen or not folder.isprintable():
            subfolders.clear()
            continue
        seen.add(real)
        if {PEFT_CONFIG, "model_index.json"} & set(files) or is_peft_folder(here):
            subfolders.clear()
            yield here
            continue
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(files):
            if Path(name).suffix.lower() in WEIGHT_SUFFIXES and name.isprintable():
                count += 1
                if count > MAX_FILES:
                    return
                yield here / name
