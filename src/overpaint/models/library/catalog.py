"""Names of models: what can be loaded, and where a name leads."""

import importlib.resources
import re
from dataclasses import dataclass, replace
from pathlib import Path

from overpaint.errors import CheckpointError, ModelNotFoundError, did_you_mean
from overpaint.models.family import FAMILIES
from overpaint.models.files.safetensors_io import PICKLE_SUFFIXES
from overpaint.models.library import hub
from overpaint.models.library.index import MINIATURE, PACKAGED_MODELS, list_packaged

ALIASES: dict[str, str] = {
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
    "sdxl-inpaint": "diffusers/stable-diffusion-xl-1.0-inpainting-0.1",
    "sdxl-refiner": "stabilityai/stable-diffusion-xl-refiner-1.0",
}
"""Short names of families, and the hub repositories that published them."""

UNION_CONTROLNET = "xinsir/controlnet-union-sdxl-1.0"
"""The net that SDXL's hints are followed with where the request names none: it knows most kinds."""


@dataclass(frozen=True)
class CatalogModel:
    """A model that can be loaded by name.

    Attributes:
        name: to load it by.
        family: name of its family.
        license: of its weights.
        repository: on the hub, if it comes from there.
        path: where its files are, or None when they are still to be downloaded.
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
"""Networks that see in pictures what hints show, by short names."""

DEFAULT_ESTIMATORS: dict[str, str] = {"depth": "depth-anything", "segmentation": "upernet"}
"""The one that is asked for kinds of hints that cannot be made without."""


def list_models() -> list[CatalogModel]:
    """The names that can be loaded: ours, estimators, and SDXL checkpoints in the hub's cache.

    Besides these, any folder, .safetensors file or hub id of an SDXL checkpoint.
    """
    found = hub.list_cached_checkpoints()
    entries = [
        CatalogModel(name, name, FAMILIES[name].license, None, _packaged(name))
        for name in PACKAGED_MODELS
    ]
    for name, repository in ALIASES.items():
        license = FAMILIES[name].license
        entries.append(CatalogModel(name, name, license, repository, found.pop(repository, None)))
    for entry in ESTIMATORS.values():
        entries.append(replace(entry, path=hub.find_cached(str(entry.repository))))
    for repository, path in sorted(found.items()):
        entries.append(CatalogModel(repository, "sdxl", FAMILIES["sdxl"].license, repository, path))
    return entries


def resolve_model(name: str, *, download: bool = True) -> Path:
    """The folder or .safetensors file of a model, downloaded when it is on the hub.

    Args:
        name: "miniature", an alias, an estimator, a folder, a file, or a hub id "owner/name". A
            repository that the hub's cache holds whole is used as it is, without a look at the hub.
        download: what is not here yet.

    Raises:
        ModelNotFoundError: no such name, file, folder or repository, or the hub is out of reach.
        CheckpointError: the repository has nothing that we load.
    """
    if name in PACKAGED_MODELS:
        if (folder := _packaged(name)) is None:
            raise ModelNotFoundError(
                f"this copy of Overpaint carries no {name} (overpaint/data/{name}); "
                "install a released package, or train it: see miniature/README.md"
            )
        return folder
    if name not in ALIASES and name not in ESTIMATORS:
        path = Path(name).expanduser()
        if path.exists():
            return path
        looks_like_path = path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
        if looks_like_path or path.suffix.lower() in {".safetensors", *PICKLE_SUFFIXES}:
            raise ModelNotFoundError(f"no such file or folder: {name}.{_near_paths(path)}")
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
            names = [entry.name for entry in list_models()]
            raise ModelNotFoundError(
                f"unknown model {name!r}.{did_you_mean(name, names)} Or give a folder, a "
                ".safetensors file or a hub id owner/name."
            )
    published = ESTIMATORS.get(name)
    repository = (published and published.repository) or ALIASES.get(name, name)
    return hub.fetch_snapshot(
        name, repository, download=download, known=[*PACKAGED_MODELS, *ALIASES]
    )


def resolve_controlnet(name: str) -> Path:
    """The folder or .safetensors file of a control net.

    Args:
        name: of one that ships inside the package ("miniature-canny"), a folder, a file, or a hub
            id "owner/name", downloaded when it is not here yet.

    Raises:
        ModelNotFoundError: no such name, file, folder or repository, or the hub is out of reach.
        CheckpointError: the repository has nothing that we load.
    """
    if name in (known := list_packaged("control")):
        return known[name]
    if re.fullmatch(r"[\w-]+", name) and not Path(name).exists():
        raise ModelNotFoundError(
            f"unknown control net {name!r}.{did_you_mean(name, known)} Or give a folder, a "
            ".safetensors file or a hub id owner/name."
        )
    return resolve_model(name)


def resolve_estimator(name: str) -> Path:
    """The folder of a network that sees.

    Args:
        name: of `ESTIMATORS`, a folder, or a hub id "owner/name", downloaded when it is not here.

    Raises:
        ModelNotFoundError: no such name, folder or repository, or the hub is out of reach.
        CheckpointError: the repository has nothing that we load, or it is a file.
    """
    if name not in ESTIMATORS and re.fullmatch(r"[\w-]+", name) and not Path(name).exists():
        raise ModelNotFoundError(
            f"unknown estimator {name!r}.{did_you_mean(name, ESTIMATORS)} Or give a folder or a "
            "hub id owner/name."
        )
    path = resolve_model(name)
    if not path.is_dir():
        raise CheckpointError(
            f"{path}: an estimator is a folder with {' and '.join(hub.ESTIMATOR_CONFIG_FILES)}"
        )
    return path


def choose_controlnet(kind: str, family: str) -> str:
    """The name of the net that follows a kind of hint where the request names none.

    Raises:
        ModelNotFoundError: there is none for this family.
    """
    if not family.startswith(MINIATURE):
        return UNION_CONTROLNET
    known = list_packaged("control")
    if (name := f"{MINIATURE}-{kind}") in known:
        return name
    raise ModelNotFoundError(
        f"no control net for {kind} hints ships for the miniature.{did_you_mean(name, known)} "
        "Or name one of your own."
    )


def _packaged(name: str) -> Path | None:
    folder = Path(str(importlib.resources.files("overpaint"))) / "data" / name
    return folder if (folder / "model_index.json").is_file() else None


def _near_paths(path: Path) -> str:
    """A hint naming files beside a missing one that are called nearly so."""
    siblings = path.parent.iterdir() if path.parent.is_dir() else ()
    loadable = [s.name for s in siblings if s.is_dir() or s.suffix.lower() == ".safetensors"]
    return did_you_mean(path.name, loadable) if loadable else ""
