"""Models of a server: their files and native sizes, before one is loaded."""

import json
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from overpaint.errors import CheckpointError, ModelNotFoundError
from overpaint.models.library.index import PACKAGED_MODELS, LibraryIndex
from overpaint.models.library.served import check_served_model, find_native_size


@pytest.fixture
def index(tmp_path: Path) -> LibraryIndex:
    return LibraryIndex(tmp_path / "home")


def make_sdxl_folder(folder: Path) -> Path:
    """Write the configs of SDXL as a diffusers folder without weights."""
    configs = json.loads((files("overpaint") / "data" / "configs" / "sdxl.json").read_text())
    names = {"model_index": "model_index.json", "scheduler": "scheduler/scheduler_config.json"}
    parts = [part for part in configs if part not in names]
    configs["model_index"] |= {part: ["library", "Class"] for part in parts}
    for part, config in configs.items():
        path = folder / names.get(part, f"{part}/config.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", PACKAGED_MODELS)
def test_native_size_of_packaged_models_is_known(index: LibraryIndex, name: str) -> None:
    assert find_native_size(name, index) == 128
    check_served_model(name, index)


def test_native_size_of_a_folder_is_that_of_its_config(tmp_path: Path, index: LibraryIndex) -> None:
    assert find_native_size(str(make_sdxl_folder(tmp_path / "sdxl")), index) == 1024


def test_native_size_of_a_single_file_is_known(tmp_path: Path, index: LibraryIndex) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"model.diffusion_model.input_blocks.0.0.weight": np.zeros(1, np.float16)}, path)
    assert find_native_size(str(path), index) == 1024


def test_served_model_that_does_not_exist_is_refused(index: LibraryIndex) -> None:
    assert find_native_size("nosuch", index) is None
    with pytest.raises(ModelNotFoundError, match="Unknown model 'nosuch'"):
        check_served_model("nosuch", index)


def test_served_model_of_another_kind_is_refused(tmp_path: Path, index: LibraryIndex) -> None:
    path = tmp_path / "lora.safetensors"
    save_file({"lora_unet_mid_block.lora_down.weight": np.zeros(1, np.float16)}, path)
    with pytest.raises(CheckpointError, match="is lora, not a checkpoint"):
        check_served_model(str(path), index)


def test_served_model_without_a_vae_is_refused_before_it_is_loaded(
    tmp_path: Path, index: LibraryIndex
) -> None:
    keys = ("model.diffusion_model.a", "conditioner.embedders.0.transformer.b")
    path = tmp_path / "cut.safetensors"
    save_file({key: np.zeros(1, np.float16) for key in keys}, path)
    with pytest.raises(CheckpointError, match=r"cut\.safetensors has no VAE and no second text"):
        check_served_model(str(path), index)
    given = {part: str(path) for part in ("vae", "text_encoder_2")}
    check_served_model(str(path), index, given)
    for wrong, message in (("nosuch", "Unknown vae 'nosuch'"), ("/no/vae", "for the VAE: /no/vae")):
        with pytest.raises(ModelNotFoundError, match=message):
            check_served_model(str(path), index, given | {"vae": wrong})


def test_check_of_a_served_model_imports_no_torch() -> None:
    code = (
        "import sys\n"
        "from overpaint.models.library.index import LibraryIndex\n"
        "from overpaint.models.library.served import find_native_size\n"
        "assert find_native_size('miniature', LibraryIndex()) == 128\n"
        "assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
