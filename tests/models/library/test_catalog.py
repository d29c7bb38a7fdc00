import json
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from httpx2 import ConnectError

from overpaint.errors import CheckpointError, ModelNotFoundError
from overpaint.models.files.weight_variants import choose_weight_files
from overpaint.models.library import catalog, hub
from overpaint.models.library.catalog import (
    ALIASES,
    DEFAULT_ESTIMATORS,
    DOWNLOADS,
    ESTIMATORS,
    list_models,
    resolve_estimator,
    resolve_model,
)
from overpaint.models.library.hub import find_loadable, list_needed_files
from overpaint.models.library.index import PACKAGED_MODELS

SDXL = ALIASES["sdxl"]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch):
    """An empty cache, and a hub that does not answer."""

    def refuse(*args: object, **keywords: object) -> None:
        raise ConnectError("no network")

    def nothing(*args: object, **keywords: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", nothing)


def write_snapshot(folder: Path, without: str = "") -> Path:
    """The skeleton of a diffusers folder."""
    parts = ("unet", "vae", "text_encoder", "text_encoder_2")
    index = {"_class_name": "StableDiffusionXLPipeline"} | {p: ["library", "class"] for p in parts}
    for part in parts:
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text("{}")
        (folder / part / "model.safetensors").touch()
    (folder / "model_index.json").write_text(json.dumps(index))
    if without:
        (folder / without).unlink()
    return folder


def test_existing_path_resolves_to_itself(tmp_path: Path):
    assert resolve_model(str(tmp_path)) == tmp_path


def test_missing_file_suggests_similar_files(tmp_path: Path):
    (tmp_path / "painter.safetensors").touch()
    with pytest.raises(ModelNotFoundError, match=r"Did you mean painter\.safetensors"):
        resolve_model(str(tmp_path / "paintr.safetensors"))
    with pytest.raises(ModelNotFoundError, match="There is no file or folder"):
        resolve_model("nowhere/model.ckpt")


def test_unknown_name_suggests_similar_names():
    with pytest.raises(ModelNotFoundError, match="Did you mean miniature"):
        resolve_model("minature")


@pytest.mark.parametrize("name", PACKAGED_MODELS)
def test_packaged_model_resolves_to_package_data(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def nothing(name: str) -> None:
        del name

    monkeypatch.setattr(catalog, "_packaged", tmp_path.joinpath)
    assert resolve_model(name) == tmp_path / name
    monkeypatch.setattr(catalog, "_packaged", nothing)
    with pytest.raises(ModelNotFoundError, match=f"does not contain {name}"):
        resolve_model(name)


@pytest.mark.parametrize("name", ["sdxl", "somebody/something"])
def test_offline_error_lists_tried_places(offline: None, name: str):
    with pytest.raises(ModelNotFoundError, match="nor in the hub's cache, and the hub could not"):
        resolve_model(name)


def test_invalid_hub_id_is_rejected_without_request(offline: None):
    with pytest.raises(ModelNotFoundError, match=r"Unknown model .owner/a--b.: .* nor a hub id"):
        resolve_model("owner/a--b")


def test_missing_model_without_download_is_rejected(offline: None):
    with pytest.raises(ModelNotFoundError, match="not downloaded yet"):
        resolve_model("sdxl", download=False)


def test_cached_repository_resolves_offline(
    tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch
):
    snapshot = write_snapshot(tmp_path / "snapshot")

    def cached(repository: str, *, local_files_only: bool) -> str:
        assert (repository, local_files_only) == (SDXL, True)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", cached)
    assert resolve_model("sdxl") == snapshot
    (snapshot / "unet" / "model.safetensors").unlink()  # a download that was broken off
    with pytest.raises(ModelNotFoundError):
        resolve_model("sdxl")


def test_download_takes_only_needed_files(
    tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch
):
    files = ["model_index.json", "unet/a.bin", "unet/a.safetensors", "unet/a.fp16.safetensors"]
    info = SimpleNamespace(siblings=[SimpleNamespace(rfilename=file) for file in files])
    asked: list[list[str]] = []

    def download(
        repository: str, *, allow_patterns: list[str] | None = None, local_files_only: bool = False
    ) -> str:
        if local_files_only:
            raise FileNotFoundError
        asked.append(allow_patterns or [])
        return str(write_snapshot(tmp_path / "snapshot"))

    def model_info(self: object, repository: str, *, timeout: float) -> SimpleNamespace:
        return info

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve_model("somebody/sdxl") == tmp_path / "snapshot"
    assert "unet/a.fp16.safetensors" in asked[0]
    assert not {"unet/a.safetensors", "unet/a.bin"} & set(asked[0])


def test_find_loadable_returns_complete_folder_or_only_file(tmp_path: Path):
    whole = write_snapshot(tmp_path / "whole")
    assert find_loadable(whole) == whole
    assert find_loadable(write_snapshot(tmp_path / "b", "vae/model.safetensors")) is None
    assert find_loadable(write_snapshot(tmp_path / "c", "text_encoder/config.json")) is None
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "x.safetensors").touch()
    assert find_loadable(tmp_path / "d") == tmp_path / "d" / "x.safetensors"


def test_list_needed_files_returns_only_safetensors():
    assert list_needed_files(["README.md", "a.safetensors", "x/b.safetensors"], "o/r") == [
        "a.safetensors"
    ]
    with pytest.raises(CheckpointError, match=r"2 \.safetensors files: a\.safetensors, b"):
        list_needed_files(["a.safetensors", "b.safetensors"], "o/r")
    with pytest.raises(CheckpointError, match="only pickles"):
        list_needed_files(["model_index.json", "unet/a.bin"], "o/r")


def test_part_with_its_config_is_needed_and_loadable(tmp_path: Path):
    names = ["config.json", "diffusion_pytorch_model.safetensors", "sdxl_vae.safetensors"]
    half = "diffusion_pytorch_model.fp16.safetensors"
    assert list_needed_files(names, "o/vae") == names[:2]
    assert list_needed_files([*names, half], "o/vae") == ["config.json", half]
    for name in names:
        (tmp_path / name).touch()
    assert find_loadable(tmp_path) == tmp_path


def test_estimator_files_are_needed_and_loadable(tmp_path: Path):
    files = ["README.md", "config.json", "preprocessor_config.json", "model.safetensors"]
    wanted = list_needed_files([*files, "pytorch_model.bin"], "o/r")
    assert {*files[1:], "vocab.json", "merges.txt"} <= set(wanted)
    assert not {"README.md", "pytorch_model.bin"} & set(wanted)
    with pytest.raises(CheckpointError, match=r"o/r: .*only pickles"):
        list_needed_files([*files[:3], "pytorch_model.bin"], "o/r")
    (tmp_path / "config.json").touch()
    (tmp_path / "preprocessor_config.json").touch()
    assert find_loadable(tmp_path) is None
    (tmp_path / "model.safetensors").touch()
    assert find_loadable(tmp_path) == tmp_path
    (tmp_path / "preprocessor_config.json").unlink()  # as of a control net
    assert find_loadable(tmp_path) == tmp_path / "model.safetensors"


def test_estimator_names_resolve_to_repositories(
    tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch
):
    for name in DEFAULT_ESTIMATORS.values():
        repository = ESTIMATORS[name].repository
        with pytest.raises(ModelNotFoundError, match=f"could not be reached for {repository}"):
            resolve_estimator(name)

    def cached(repository: str, *, local_files_only: bool) -> str:
        assert (repository, local_files_only) == (ESTIMATORS["upernet"].repository, True)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", cached)
    for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
        (tmp_path / name).touch()
    assert resolve_estimator("upernet") == resolve_model("upernet") == tmp_path


def test_cached_estimator_is_not_listed_as_checkpoint(
    tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch
):
    for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
        (tmp_path / name).touch()
    repositories = [SimpleNamespace(repo_id="some/eyes", repo_type="model")]

    def scan() -> SimpleNamespace:
        return SimpleNamespace(repos=repositories)

    def cached(repository: str, *, local_files_only: bool) -> str:
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "scan_cache_dir", scan)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", cached)
    entries = {entry.name: entry for entry in list_models()}
    assert "some/eyes" not in entries
    assert entries["depth-anything"].path == tmp_path
    assert entries["depth-anything"].license == "Apache-2.0"


def test_choose_weight_files_prefers_requested_variant():
    names = ["m.safetensors", "m.fp16.safetensors", "m.non_ema.safetensors", "config.json", "m.bin"]
    assert choose_weight_files(names, half=True) == ["m.fp16.safetensors"]
    assert choose_weight_files(names, half=False) == ["m.safetensors"]
    shards = [f"m-0000{n}-of-00002.safetensors" for n in (2, 1)]
    assert choose_weight_files(shards, half=True) == sorted(shards)
    assert choose_weight_files(["m.safetensors", "extra.ema.safetensors"], half=True) == [
        "m.safetensors"
    ]
    with pytest.raises(CheckpointError, match=r"no \.safetensors weights$"):
        choose_weight_files(["config.json"], half=True)


def test_list_models_contains_packaged_aliases_and_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    cached = {SDXL: tmp_path, "somebody/painter": tmp_path}
    monkeypatch.setattr(hub, "list_cached_checkpoints", lambda: dict(cached))
    entries = {entry.name: entry for entry in list_models()}
    assert list(entries) == [*PACKAGED_MODELS, *ALIASES, *DOWNLOADS, "somebody/painter"]
    assert (entries["sdxl"].repository, entries["sdxl"].path) == (SDXL, tmp_path)
    assert entries["sdxl-refiner"].path is None
    assert entries["somebody/painter"].path == tmp_path
    assert "OpenRAIL" in entries["sdxl"].license.replace(" ", "")
