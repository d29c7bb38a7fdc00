"""Resolve names of models, ControlNets and estimators to files, and list the known names."""

import importlib.resources
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from overpaint.errors import CheckpointError, ModelNotFoundError, did_you_mean
from overpaint.models.family import FAMILIES
from overpaint.models.files.suffixes import PICKLE_SUFFIXES, WEIGHT_SUFFIXES
from overpaint.models.library import hub
from overpaint.models.library.index import MINIATURE, PACKAGED_MODELS, list_packaged

ALIASES: dict[str, str] = {
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
    "sdxl-inpaint": "diffusers/stable-diffusion-xl-1.0-inpainting-0.1",
    "sdxl-refiner": "stabilityai/stable-diffusion-xl-refiner-1.0",
}
"""Short names, and the hub repositories that they stand for."""

UNION_CONTROLNET = "xinsir/controlnet-union-sdxl-1.0"
"""The default ControlNet for SDXL: a union net that supports most kinds of control images."""


@dataclass(frozen=True)
class CatalogModel:
    """A model that the user can load by name.

    Attributes:
        name: The name.
        family: The name of its family.
        license: The license of its weights.
        repository: Its hub id, or None for a packaged model.
        path: Its files, or None if they are not downloaded yet.
    """

    name: str
    family: str
    license: str
    repository: str | None
    path: Path | None


ESTIMATORS: dict[str, CatalogModel] = {
    entry.name: entry
    for entry in (
        CatalogModel(
            "depth-anything",
            "depth estimator",
            "Apache-2.0",
            "depth-anything/Depth-Anything-V2-Small-hf",
            None,
        ),
        CatalogModel("upernet", "class estimator", "MIT", "openmmlab/upernet-convnext-tiny", None),
    )
}
"""Networks that estimate depth or classes in pictures, by short name."""

TINY_DECODERS: dict[str, CatalogModel] = {
    "taesdxl": CatalogModel("taesdxl", "tiny decoder", "MIT", "madebyollin/taesdxl", None)
}
"""Tiny decoders by short name."""

DOWNLOADS = ESTIMATORS | TINY_DECODERS
"""Models by short name that are not checkpoints, and that requests download at the first use."""

DEFAULT_ESTIMATORS: dict[str, str] = {"depth": "depth-anything", "segmentation": "upernet"}
"""The default estimator for each kind of control image that needs one."""


def list_models() -> list[CatalogModel]:
    """List packaged models, aliases, other downloads, and SDXL checkpoints in the hub's cache.

    The user can also load any folder, .safetensors file or hub id of an SDXL checkpoint.
    """
    found = hub.list_cached_checkpoints()
    entries = [
        CatalogModel(name, name, FAMILIES[name].license, None, _packaged(name))
        for name in PACKAGED_MODELS
    ]
    for name, repository in ALIASES.items():
        license = FAMILIES[name].license
        entries.append(CatalogModel(name, name, license, repository, found.pop(repository, None)))
    for entry in DOWNLOADS.values():
        entries.append(replace(entry, path=hub.find_cached(str(entry.repository))))
    for repository, path in sorted(found.items()):
        entries.append(CatalogModel(repository, "sdxl", FAMILIES["sdxl"].license, repository, path))
    return entries


def list_checkpoint_names() -> list[str]:
    """List the names in `list_models` that stand for checkpoints."""
    return [entry.name for entry in list_models() if entry.name not in DOWNLOADS]


def unify_spelling(name: str) -> str:
    """Return the one spelling of all names of a model, without access to the hub.

    A short name stands for itself and its hub id, and an absolute path for all paths to a file.
    """
    if name in PACKAGED_MODELS or name in ALIASES or name in DOWNLOADS:
        return name
    published = {repository: short for short, repository in ALIASES.items()}
    published |= {str(entry.repository): short for short, entry in DOWNLOADS.items()}
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else published.get(name, name)


def resolve_model(
    name: str,
    *,
    download: bool = True,
    known: Callable[[], Iterable[str]] = list_checkpoint_names,
) -> Path:
    """Return the folder or .safetensors file of a model; download it if necessary.

    Args:
        name: "miniature", an alias, another download, a folder, a file, or a hub id "owner/name".
            The function does not contact the hub for a repository that is complete in its cache.
        download: Whether to download missing files.
        known: Lists the names of this kind of model, for suggestions in errors.

    Raises:
        ModelNotFoundError: The name, file, folder or repository does not exist, or the hub is not
            reachable.
        CheckpointError: The repository has no weights that Overpaint can load.
    """
    found = locate_model(name, known)
    return found or hub.fetch_snapshot(name, _get_repository(name), download=download, known=known)


def check_model(name: str) -> None:
    """Check that `resolve_model` would find a model, without downloading it.

    Raises:
        ModelNotFoundError, CheckpointError: See `resolve_model`.
    """
    if locate_model(name) is None:
        hub.check_repository(name, _get_repository(name), known=list_checkpoint_names)


def locate_model(
    name: str, known: Callable[[], Iterable[str]] = list_checkpoint_names
) -> Path | None:
    """Return the folder or .safetensors file of a model, without contacting the hub.

    Args:
        name: See `resolve_model`.
        known: See `resolve_model`.

    Returns:
        None if the name is a hub id that is not in the hub's cache.

    Raises:
        ModelNotFoundError: The name, file or folder does not exist.
    """
    if name in PACKAGED_MODELS:
        if (folder := _packaged(name)) is None:
            raise ModelNotFoundError(
                f"This copy of Overpaint does not contain {name} (overpaint/data/{name}); "
                "install a released package, or train the model: see miniature/README.md"
            )
        return folder
    if name not in ALIASES and name not in ESTIMATORS:
        path = Path(name).expanduser()
        if path.exists():
            return path
        looks_like_path = path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
        if looks_like_path or path.suffix.lower() in (*WEIGHT_SUFFIXES, *PICKLE_SUFFIXES):
            raise ModelNotFoundError(f"There is no file or folder: {name}.{_near_paths(path)}")
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
            raise ModelNotFoundError(
                f"Unknown model {name!r}.{did_you_mean(name, known())} Or give a folder, a "
                ".safetensors file or a hub id owner/name."
            )
    return hub.find_cached(_get_repository(name))


def _get_repository(name: str) -> str:
    """Return the hub id that a name stands for."""
    published = ESTIMATORS.get(name)
    return (published and published.repository) or ALIASES.get(name, name)


def resolve_controlnet(name: str) -> Path:
    """Return the folder or .safetensors file of a ControlNet; download it if necessary.

    Args:
        name: A packaged ControlNet ("miniature-canny"), a folder, a file, or a hub id "owner/name".

    Raises:
        ModelNotFoundError: The name, file, folder or repository does not exist, or the hub is not
            reachable.
        CheckpointError: The repository has no weights that Overpaint can load.
    """
    if name in (known := list_packaged("control")):
        return known[name]
    if re.fullmatch(r"[\w-]+", name) and not Path(name).exists():
        raise ModelNotFoundError(
            f"Unknown ControlNet {name!r}.{did_you_mean(name, known)} Or give a folder, a "
            ".safetensors file or a hub id owner/name."
        )
    return resolve_model(name, known=lambda: known)


def resolve_estimator(name: str) -> Path:
    """Return the folder of an estimator; download it if necessary.

    Args:
        name: A name in `ESTIMATORS`, a folder, or a hub id "owner/name".

    Raises:
        ModelNotFoundError: The name, folder or repository does not exist, or the hub is not
            reachable.
        CheckpointError: The repository has no weights that Overpaint can load, or the name is a
            file.
    """
    if name not in ESTIMATORS and re.fullmatch(r"[\w-]+", name) and not Path(name).exists():
        raise ModelNotFoundError(
            f"Unknown estimator {name!r}.{did_you_mean(name, ESTIMATORS)} Or give a folder or a "
            "hub id owner/name."
        )
    path = resolve_model(name, known=lambda: ESTIMATORS)
    if not path.is_dir():
        raise CheckpointError(
            f"{path} is not an estimator: it must be a folder with "
            f"{' and '.join(hub.ESTIMATOR_CONFIG_FILES)}"
        )
    return path


def choose_controlnet(kind: str, family: str) -> str:
    """Return the default ControlNet for a kind of control image.

    Raises:
        ModelNotFoundError: This family has no default for that kind.
    """
    if not family.startswith(MINIATURE):
        return UNION_CONTROLNET
    known = list_packaged("control")
    if (name := f"{MINIATURE}-{kind}") in known:
        return name
    raise ModelNotFoundError(
        f"The miniature has no ControlNet for {kind} control images.{did_you_mean(name, known)} "
        "Or give the name of a ControlNet in the request."
    )


def _packaged(name: str) -> Path | None:
    folder = Path(str(importlib.resources.files("overpaint"))) / "data" / name
    return folder if (folder / "model_index.json").is_file() else None


def _near_paths(path: Path) -> str:
    """Suggest similar names of files beside a missing file, for a message."""
    siblings = path.parent.iterdir() if path.parent.is_dir() else ()
    loadable = [s.name for s in siblings if s.is_dir() or s.suffix.lower() in WEIGHT_SUFFIXES]
    return did_you_mean(path.name, loadable) if loadable else ""
