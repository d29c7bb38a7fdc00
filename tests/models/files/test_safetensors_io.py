import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from overpaint.errors import CheckpointError
from overpaint.models.files.safetensors_io import fill_module, open_weights, sample_keys

CPU = torch.device("cpu")


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "weight": torch.randn(6, 4, generator=generator),
        "bias": torch.randn(6, generator=generator).half(),
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_file(tensors(), tmp_path / "a.safetensors", metadata={"who": "me"})
    return tmp_path / "a.safetensors"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float8_e4m3fn, torch.int64])
def test_file_of_safetensors_library_is_read(tmp_path: Path, dtype: torch.dtype):
    wrote = {"a": torch.arange(6).reshape(2, 3).to(dtype), "s": torch.tensor(3).to(dtype)}
    wrote["none"] = torch.zeros(0).to(dtype)
    save_file(wrote, tmp_path / "a.safetensors")
    read = open_weights(tmp_path / "a.safetensors").tensors
    assert read.keys() == wrote.keys()
    for name, tensor in wrote.items():
        got = read[name].read()
        assert got.dtype == dtype
        assert got.shape == tensor.shape
        assert torch.equal(got.double(), tensor.double())


def test_metadata_is_read(path: Path):
    assert open_weights(path).metadata == {"who": "me"}


def test_lazy_tensor_applies_steps_when_read(path: Path):
    stored = open_weights(path).tensors["weight"]
    sliced = stored[2:4, :].clone().detach().T.contiguous()
    assert (sliced.shape, sliced.ndim) == ((4, 2), 2)
    assert torch.equal(sliced.read(), tensors()["weight"][2:4].T)
    assert sliced.read().untyped_storage().nbytes() == 4 * 2 * 4  # and not the whole tensor's


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth", ".bin"])
def test_pickle_is_rejected_by_suffix(tmp_path: Path, path: Path, suffix: str):
    path = path.rename(tmp_path / f"model{suffix}")
    with pytest.raises(CheckpointError, match="pickle, which can run any program"):
        open_weights(path)


@pytest.mark.parametrize("new_zip", [True, False])
def test_renamed_pickle_is_rejected_by_content(tmp_path: Path, new_zip: bool):
    path = tmp_path / "a.safetensors"
    torch.save(tensors(), path, _use_new_zipfile_serialization=new_zip)
    with pytest.raises(CheckpointError, match=r"pickle renamed to \.safetensors"):
        open_weights(path)
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(CheckpointError, match="pickle renamed"):
        open_weights(path)


@pytest.mark.parametrize("size", [0, 5, 40, -1])
def test_truncated_file_is_rejected(path: Path, size: int):
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        open_weights(path)


def test_file_of_another_format_is_rejected(tmp_path: Path):
    (tmp_path / "a.safetensors").write_bytes(b"\x89PNG\r\n\x1a\n" * 100)
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        open_weights(tmp_path / "a.safetensors")
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(CheckpointError, match=r"neither a \.safetensors file"):
        open_weights(tmp_path / "a.txt")


def test_unknown_dtype_is_named_in_error(tmp_path: Path):
    entry = {"dtype": "U32", "shape": [1], "data_offsets": [0, 4]}
    header = json.dumps({"codes": entry}).encode()
    data = len(header).to_bytes(8, "little") + header + bytes(4)
    (tmp_path / "a.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match="codes has dtype U32"):
        open_weights(tmp_path / "a.safetensors")


def linear() -> torch.nn.Linear:
    return torch.nn.Linear(4, 6, device="meta")


def test_fill_module_reads_tensors_in_final_dtype(path: Path):
    module = linear()
    stored = open_weights(path).tensors
    fill_module(module, stored, part="linear", device=CPU, dtype=torch.bfloat16)
    assert torch.equal(module.weight, tensors()["weight"].bfloat16())
    assert torch.equal(module.bias, tensors()["bias"].bfloat16())
    assert not module.training
    assert not any(p.requires_grad for p in module.parameters())


def test_fill_module_with_wrong_keys_raises(path: Path):
    stored = dict(open_weights(path).tensors)
    stored["extra"] = stored.pop("bias")
    stored["weight"] = stored["weight"][:5]
    with pytest.raises(CheckpointError) as caught:
        fill_module(linear(), stored, part="linear", device=CPU, dtype=torch.float32)
    message = str(caught.value)
    assert str(path) in message
    assert "the linear does not fit" in message
    assert "1 missing: bias" in message
    assert "1 unexpected: bias" in message  # by its name in the file
    assert "1 of another shape: weight is [5, 4], expected [6, 4]" in message


def test_file_that_shrinks_while_reading_raises(path: Path):
    stored = open_weights(path).tensors
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="changed while"):
        [tensor.read() for tensor in stored.values()]


def test_sample_keys_lists_first_names_and_count():
    assert sample_keys(["a", "b"]) == "a, b"
    assert sample_keys("abcdefg") == "a, b, c, d, e and 2 more"
