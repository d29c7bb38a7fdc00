"""Names of models: what can be loaded, and where a name leads."""

import importlib.resources
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from overpaint.errors import CheckpointError, ModelNotFoundError, did_you_mean
from overpaint.models.family import FAMILIES
from overpaint.models.files.safetensors_io import PICKLE_SUFFIXES, sample_keys
from overpaint.models.library.index import MINIATURE, PACKAGED, packaged

ALIASES: dict[str, str] = {
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
    "sdxl-inpaint": "diffusers/stable-diffusion-xl-1.0-inpainting-0.1",
    "sdxl-refiner": "stabilityai/stable-diffusion-xl-refiner-1.0",
}
"""Short names of families, and the hub repositories that published them."""

UNION = "xinsir/controlnet-union-sdxl-1.0"
"""The net that SDXL's hints are followed with where the request names none: it knows most kinds."""

TRANSFORMERS = ("config.json", "preprocessor_config.json")
"""What a folder of transformers' has, besides weights, when it is of a network that sees."""

WEIGHTED = ("unet", "vae", "text_encoder", "text_encoder_2")
"""The parts of a folder that have weights."""

SMALL_FILES = ("model_index.json", "*/config.json", "scheduler/*.json", "tokenizer*/*")

TOKENIZER_FILES = ("vocab.json", "merges.txt", "tokenizer*.json", "special_tokens_map.json")
"""Of a folder of transformers'."""


@dataclass(frozen=True)
class Entry:
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


ESTIMATORS: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry(
            "depth-anything",
            "depth estimator",
            "Apache-2.0",
            "depth-anything/Depth-Anything-V2-Small-hf",
            None,
        ),
        Entry("upernet", "class estimator", "MIT", "openmmlab/upernet-convnext-tiny", None),
    )
}
"""Networks that see in pictures what hints show, by short names."""

ESTIMATOR_FOR: dict[str, str] = {"depth": "depth-anything", "segmentation": "upernet"}
"""The one that is asked for kinds of hints that cannot be made without."""


def known() -> list[Entry]:
    """The names that can be loaded: ours, estimators, and SDXL checkpoints in the hub's cache.

    Besides these, any folder, .safetensors file or hub id of an SDXL checkpoint.
    """
    found = _cached_repositories()
    entries = [
        Entry(name, name, FAMILIES[name].license, None, _packaged(name)) for name in PACKAGED
    ]
    for name, repository in ALIASES.items():
        license = FAMILIES[name].license
        entries.append(Entry(name, name, license, repository, found.pop(repository, None)))
    for entry in ESTIMATORS.values():
        entries.append(replace(entry, path=_cached(str(entry.repository))))
    for repository, path in sorted(found.items()):
        entries.append(Entry(repository, "sdxl", FAMILIES["sdxl"].license, repository, path))
    return entries


def resolve(name: str, *, download: bool = True) -> Path:
    """The folder or .safetensors file of a model, downloaded when it is on the hub.

    Args:
        name: "miniature", an alias, an estimator, a folder, a file, or a hub id "owner/name". A
            repository that the hub's cache holds whole is used as it is, without a look at the hub.
        download: what is not here yet.

    Raises:
        ModelNotFoundError: no such name, file, folder or repository, or the hub is out of reach.
        CheckpointError: the repository has nothing that we load.
    """
    if name in PACKAGED:
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
            names = [entry.name for entry in known()]
            raise ModelNotFoundError(
                f"unknown model {name!r}.{did_you_mean(name, names)} Or give a folder, a "
                ".safetensors file or a hub id owner/name."
            )
    return _from_hub(name, download=download)


def resolve_net(name: str) -> Path:
    """The folder or .safetensors file of a control net.

    Args:
        name: of one that ships inside the package ("miniature-canny"), a folder, a file, or a hub
            id "owner/name", downloaded when it is not here yet.

    Raises:
        ModelNotFoundError: no such name, file, folder or repository, or the hub is out of reach.
        CheckpointError: the repository has nothing that we load.
    """
    if name in (known := packaged("control")):
        return known[name]
    if re.fullmatch(r"[\w-]+", name) and not Path(name).exists():
        raise ModelNotFoundError(
            f"unknown control net {name!r}.{did_you_mean(name, known)} Or give a folder, a "
            ".safetensors file or a hub id owner/name."
        )
    return resolve(name)


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
    path = resolve(name)
    if not path.is_dir():
        raise CheckpointError(f"{path}: an estimator is a folder with {' and '.join(TRANSFORMERS)}")
    return path


def net_for(kind: str, family: str) -> str:
    """The name of the net that follows a kind of hint where the request names none.

    Raises:
        ModelNotFoundError: there is none for this family.
    """
    if not family.startswith(MINIATURE):
        return UNION
    known = packaged("control")
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


def _from_hub(name: str, *, download: bool) -> Path:
    from httpx2 import HTTPError  # the hub client's own
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError
    from huggingface_hub.utils import validate_repo_id

    published = ESTIMATORS.get(name)
    repository = (published and published.repository) or ALIASES.get(name, name)
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise ModelNotFoundError(
            f"unknown model {name!r}: no such file or folder here, and no hub id: {error}"
        ) from error
    if found := _cached(repository):
        return found
    if not download:
        raise ModelNotFoundError(f"{name!r} ({repository} on the hub) is not downloaded yet")
    try:
        siblings = HfApi().model_info(repository, timeout=10).siblings or ()
        wanted = needed([sibling.rfilename for sibling in siblings], repository)
        snapshot = Path(snapshot_download(repository, allow_patterns=wanted))
    except GatedRepoError as error:
        raise ModelNotFoundError(
            f"{repository} asks for its terms to be accepted first: do so at "
            f"https://huggingface.co/{repository}, then run `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelNotFoundError(
            f"unknown model {name!r}: no such file or folder here, and no repository "
            f"{repository} on the hub.{did_you_mean(name, [*PACKAGED, *ALIASES])}"
        ) from error
    except (HTTPError, OSError) as error:
        raise ModelNotFoundError(
            f"{name!r}: no such file or folder here, not in the hub's cache, and the hub could "
            f"not be reached for {repository} ({_first_line(error)}). Try again online, or give "
            "a folder or a .safetensors file."
        ) from error
    return usable(snapshot) or snapshot


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _cached(repository: str) -> Path | None:
    """What to load from the hub's cache, if it holds all of it."""
    from huggingface_hub import snapshot_download

    try:
        return usable(Path(snapshot_download(repository, local_files_only=True)))
    except OSError:
        return None


def usable(folder: Path) -> Path | None:
    """The folder itself when it is a whole one of diffusers' or of a network that sees.

    Else its only .safetensors file.
    """
    index = folder / "model_index.json"
    if index.is_file():
        parts = [part for part in WEIGHTED if json.loads(index.read_text()).get(part, (None,))[0]]
        whole = all(
            (folder / part / "config.json").is_file() and any((folder / part).glob("*.safetensors"))
            for part in parts
        )
        return folder if whole and parts else None
    files = list(folder.glob("*.safetensors"))
    if all((folder / name).is_file() for name in TRANSFORMERS):
        return folder if files else None
    return files[0] if len(files) == 1 else None


def needed(files: Sequence[str], repository: str) -> list[str]:
    """Which of a repository's files to download, as patterns.

    Of a diffusers folder, or that of a network that sees, its configs, tokenizers and one variant
    of each part's weights, in 16 bits where there is one; else the only .safetensors file.

    Raises:
        CheckpointError: there is nothing that we load; says what there is.
    """
    if "model_index.json" not in files and set(TRANSFORMERS) <= set(files):
        return [*TRANSFORMERS, *TOKENIZER_FILES, *_chosen(files, repository)]
    if "model_index.json" not in files:
        single = [file for file in files if file.endswith(".safetensors") and "/" not in file]
        if len(single) == 1:
            return single
        raise CheckpointError(
            f"{repository} is no diffusers folder, and has {len(single)} .safetensors files: "
            f"{sample_keys(single) or 'none'}. Download the one you want and give its path."
        )
    weights: list[str] = []
    for part in WEIGHTED:
        own = [file for file in files if file.startswith(f"{part}/")]
        if own:
            names = [file.split("/", 1)[1] for file in own]
            weights += [f"{part}/{name}" for name in choose(names, half=True)]
    return [*SMALL_FILES, *weights]


def _chosen(files: Sequence[str], repository: str) -> list[str]:
    try:
        return choose(files, half=True)
    except CheckpointError as error:
        raise CheckpointError(f"{repository}: {error}") from error


def choose(names: Iterable[str], *, half: bool) -> list[str]:
    """The weight files of a part to read, of those in its folder.

    A part may be there in several variants (`model.safetensors`, `model.fp16.safetensors`), and a
    variant in shards.

    Args:
        names: of all files in the folder.
        half: rather a 16-bit variant.

    Raises:
        CheckpointError: there are no safetensors files; says whether there are pickles.
    """
    listed = sorted(names)
    variants: dict[str, list[str]] = {}
    for name in listed:
        if name.endswith(".safetensors") and name.count("/") == 0:
            plain = re.sub(r"-\d{5}-of-\d{5}", "", name)
            variants.setdefault(plain, []).append(name)
    if not variants:
        pickles = [name for name in listed if Path(name).suffix in PICKLE_SUFFIXES]
        only = (
            f", only pickles ({sample_keys(pickles, 2)}), which can run any program"
            if pickles
            else ""
        )
        raise CheckpointError(f"no .safetensors weights{only}")
    sixteen = [files for plain, files in variants.items() if ".fp16." in plain]
    base = [files for plain, files in variants.items() if plain.count(".") == 1]
    preferred = sixteen or base if half else base or sixteen
    return (preferred or list(variants.values()))[0]


def _cached_repositories() -> dict[str, Path]:
    """SDXL repositories that the hub's cache holds whole."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir().repos
    except CacheNotFound:
        return {}
    found: dict[str, Path] = {}
    for repository in repositories:
        path = _cached(repository.repo_id) if repository.repo_type == "model" else None
        if path is not None and path.is_dir() and _is_sdxl(path):
            found[repository.repo_id] = path
    return found


def _is_sdxl(folder: Path) -> bool:
    path = folder / "model_index.json"
    index = json.loads(path.read_text()) if path.is_file() else {}
    return str(index.get("_class_name", "")).startswith("StableDiffusionXL")
