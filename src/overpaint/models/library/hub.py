"""Hugging Face hub: which files of a repository Overpaint downloads, and what its cache holds."""

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from overpaint.errors import CheckpointError, ModelNotFoundError, did_you_mean
from overpaint.models.files.json_config import read_json_config
from overpaint.models.files.key_patterns import sample_keys
from overpaint.models.files.weight_variants import choose_weight_files

ESTIMATOR_CONFIG_FILES = ("config.json", "preprocessor_config.json")
"""Files beside the weights in a transformers folder of an estimator."""

WEIGHTED_PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")
"""Parts of a diffusers folder that have weights."""

PART_STEM = "diffusion_pytorch_model"
"""How diffusers' weight files begin, in a repository of one part such as a VAE."""

CONFIG_PATTERNS = ("model_index.json", "*/config.json", "scheduler/*.json", "tokenizer*/*")
"""Patterns of the config and tokenizer files to download from a diffusers repository."""

TOKENIZER_PATTERNS = ("vocab.json", "merges.txt", "tokenizer*.json", "special_tokens_map.json")
"""Patterns of the tokenizer files to download from a transformers repository."""


def fetch_snapshot(
    name: str, repository: str, *, download: bool, known: Callable[[], Iterable[str]]
) -> Path:
    """Return the folder or file of a repository in the hub's cache; download it if necessary.

    Args:
        name: The name that the user gave, for messages.
        repository: The hub id "owner/name".
        download: Whether to download files that are not in the cache.
        known: Lists the names of this kind of model, for suggestions in messages.

    Raises:
        ModelNotFoundError: The repository does not exist, or the hub is not reachable.
        CheckpointError: The repository has no weights that Overpaint can load.
    """
    if found := find_cached(repository):
        return found
    if not download:
        raise ModelNotFoundError(f"{name!r} ({repository} on the hub) is not downloaded yet")
    wanted = check_repository(name, repository, known=known)
    from huggingface_hub import snapshot_download

    with _explain_hub_errors(name, repository, known):
        snapshot = Path(snapshot_download(repository, allow_patterns=wanted))
    return find_loadable(snapshot) or snapshot


def check_repository(
    name: str, repository: str, *, known: Callable[[], Iterable[str]]
) -> list[str]:
    """Return patterns of the files to download from a repository, without downloading them.

    Args:
        name: The name that the user gave, for messages.
        repository: The hub id "owner/name".
        known: See `fetch_snapshot`.

    Raises:
        ModelNotFoundError: The repository does not exist, or the hub is not reachable.
        CheckpointError: The repository has no weights that Overpaint can load.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import validate_repo_id

    with _explain_hub_errors(name, repository, known):
        validate_repo_id(repository)
        siblings = HfApi().model_info(repository, timeout=10).siblings or ()
        return list_needed_files([sibling.rfilename for sibling in siblings], repository)


@contextmanager
def _explain_hub_errors(
    name: str, repository: str, known: Callable[[], Iterable[str]]
) -> Generator[None]:
    """Raise ModelNotFoundError in place of the hub client's errors."""
    from httpx2 import HTTPError  # the hub client's own
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    try:
        yield
    except HFValidationError as error:
        raise ModelNotFoundError(
            f"Unknown model {name!r}: it is neither a file or folder here nor a hub id: {error}"
        ) from error
    except GatedRepoError as error:
        raise ModelNotFoundError(
            f"{repository} requires that you accept its terms first. Accept them at "
            f"https://huggingface.co/{repository}, then run `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelNotFoundError(
            f"Unknown model {name!r}: it is neither a file or folder here nor a "
            f"repository ({repository}) on the hub.{did_you_mean(name, known())}"
        ) from error
    except (HTTPError, OSError) as error:
        raise ModelNotFoundError(
            f"{name!r} is neither a file or folder here nor in the hub's cache, and the hub could "
            f"not be reached for {repository} ({_first_line(error)}). Try again online, or give "
            "a folder or a .safetensors file."
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def find_cached(repository: str) -> Path | None:
    """Return the folder or file to load if the hub's cache holds the complete repository."""
    from huggingface_hub import snapshot_download

    try:
        return find_loadable(Path(snapshot_download(repository, local_files_only=True)))
    except (OSError, ValueError):  # The client's errors about names are of the second kind.
        return None


def find_loadable(folder: Path) -> Path | None:
    """Return the path to load from a folder, or None if the folder is incomplete.

    The path is the folder itself for a complete diffusers folder or estimator. Otherwise it is the
    folder's only .safetensors file. Of several, diffusers' file of a part with its config counts.
    """
    index = folder / "model_index.json"
    if index.is_file():
        entries = _read_index(index)
        parts = [part for part in WEIGHTED_PARTS if _is_class(entries.get(part))]
        whole = all(
            (folder / part / "config.json").is_file() and any((folder / part).glob("*.safetensors"))
            for part in parts
        )
        return folder if whole and parts else None
    files = list(folder.glob("*.safetensors"))
    if all((folder / name).is_file() for name in ESTIMATOR_CONFIG_FILES):
        return folder if files else None
    if len(files) == 1:
        return files[0]
    part = (folder / "config.json").is_file() and any(folder.glob(f"{PART_STEM}*.safetensors"))
    return folder if part else None


def list_needed_files(files: Sequence[str], repository: str) -> list[str]:
    """List patterns of the files to download from a repository.

    For a diffusers folder or an estimator, these are configs, tokenizers and one variant of each
    part's weights, with a preference for 16 bits. Otherwise it is the only .safetensors file, or
    diffusers' file of a part with its config.

    Raises:
        CheckpointError: The repository has no weights that Overpaint can load.
    """
    if "model_index.json" not in files and set(ESTIMATOR_CONFIG_FILES) <= set(files):
        return [*ESTIMATOR_CONFIG_FILES, *TOKENIZER_PATTERNS, *_chosen(files, repository)]
    if "model_index.json" not in files:
        single = [file for file in files if file.endswith(".safetensors") and "/" not in file]
        if len(single) == 1:
            return single
        own = [file for file in files if file.startswith(PART_STEM)]
        if "config.json" in files and any(file.endswith(".safetensors") for file in own):
            return ["config.json", *_chosen(own, repository)]
        raise CheckpointError(
            f"{repository} is not a diffusers folder, and has {len(single)} .safetensors files: "
            f"{sample_keys(single) or 'none'}. Download the one you want and give its path."
        )
    weights: list[str] = []
    for part in WEIGHTED_PARTS:
        own = [file for file in files if file.startswith(f"{part}/")]
        if own:
            names = [file.split("/", 1)[1] for file in own]
            weights += [f"{part}/{name}" for name in choose_weight_files(names, half=True)]
    return [*CONFIG_PATTERNS, *weights]


def _chosen(files: Sequence[str], repository: str) -> list[str]:
    try:
        return choose_weight_files(files, half=True)
    except CheckpointError as error:
        raise CheckpointError(f"{repository}: {error}") from error


def list_cached_checkpoints() -> dict[str, Path]:
    """Return the complete SDXL repositories in the hub's cache, by hub id."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir().repos
    except CacheNotFound:
        return {}
    found: dict[str, Path] = {}
    for repository in repositories:
        path = find_cached(repository.repo_id) if repository.repo_type == "model" else None
        if path is not None and path.is_dir() and _is_sdxl(path):
            found[repository.repo_id] = path
    return found


def _is_sdxl(folder: Path) -> bool:
    index = _read_index(folder / "model_index.json")
    return str(index.get("_class_name", "")).startswith("StableDiffusionXL")


def _read_index(path: Path) -> dict[str, Any]:
    """Read a model index; it is empty if it cannot be read, since any program can write one."""
    try:
        return read_json_config(path)
    except CheckpointError:
        return {}


def _is_class(entry: Any) -> bool:
    """Return whether an entry of a model index names a library and a class, which can be null."""
    return isinstance(entry, list) and bool(entry) and entry[0] is not None
