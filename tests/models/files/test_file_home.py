"""Weights stay in their file, and are read when they run."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from overpaint.errors import CheckpointError
from overpaint.models.files.file_home import FileHome, leave_in_file
from overpaint.models.files.safetensors_io import open_weights


def write(path: Path, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    values = {
        "0.weight": torch.randn(4, 3, 3, 3, generator=generator).half(),
        "0.bias": torch.randn(4, generator=generator).half(),
    }
    save_file(values, path)
    return values


def leave(path: Path) -> tuple[nn.Module, dict[str, FileHome]]:
    with torch.device("meta"):
        module = nn.Sequential(nn.Conv2d(3, 4, 3))
    tensors = open_weights(path).tensors
    homes = leave_in_file(module, tensors, part="unet", dtype=torch.float32, channels_last=True)
    return module, homes


def test_weights_have_no_values_until_they_are_read(tmp_path: Path) -> None:
    values = write(tmp_path / "model.safetensors")
    module, homes = leave(tmp_path / "model.safetensors")
    assert all(own.is_meta and own.dtype == torch.float32 for own in module.parameters())
    for name, value in values.items():
        assert torch.equal(homes[name].read(), value.float())
    assert homes["0.weight"].read().is_contiguous(memory_format=torch.channels_last)


def test_weights_are_read_in_the_dtype_that_the_module_has_now(tmp_path: Path) -> None:
    values = write(tmp_path / "model.safetensors")
    module, homes = leave(tmp_path / "model.safetensors")
    module.to(torch.float16)
    assert torch.equal(homes["0.bias"].read(), values["0.bias"])


@pytest.mark.parametrize("change", ["replaced", "removed", "written"])
def test_file_that_changed_is_an_error_with_its_name(tmp_path: Path, change: str) -> None:
    path = tmp_path / "model.safetensors"
    write(path)
    _, homes = leave(path)
    match change:
        case "replaced":
            write(tmp_path / "other.safetensors", seed=1)
            os.replace(tmp_path / "other.safetensors", path)
        case "removed":
            path.unlink()
        case _:
            os.utime(path, ns=(1, 1))
    with pytest.raises(CheckpointError, match=r"^model\.safetensors changed while a model used it"):
        homes["0.bias"].read()
