from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from overpaint.errors import DeviceError, RequestError
from overpaint.models import devices
from overpaint.models.devices import DeviceChoice, choose_device

CPU = torch.device("cpu")
HALF, BF16, FP32 = torch.float16, torch.bfloat16, torch.float32


@pytest.mark.parametrize(
    ("dtype", "small", "expected"),
    [
        ("auto", True, (FP32, FP32)),
        ("auto", False, (BF16, BF16)),
        ("bf16", True, (BF16, BF16)),
        ("float32", False, (FP32, FP32)),
        ("fp16", False, (HALF, BF16)),
    ],
)
def test_cpu_dtypes_follow_names_and_model_size(
    monkeypatch: pytest.MonkeyPatch,
    dtype: str,
    small: bool,
    expected: tuple[torch.dtype, torch.dtype],
):
    monkeypatch.setattr(devices, "emulates_bf16", bool_of(False))
    assert choose_device("cpu", dtype, None, small=small) == DeviceChoice(CPU, *expected)


def test_cpu_that_emulates_bf16_computes_in_fp32(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(devices, "emulates_bf16", bool_of(True))
    assert choose_device("cpu", "auto", None, small=False) == DeviceChoice(CPU, FP32, FP32)
    assert choose_device("cpu", "bf16", None, small=False) == DeviceChoice(CPU, BF16, BF16)


def bool_of(value: bool) -> Callable[[torch.device], bool]:
    return lambda device: value


@pytest.mark.parametrize("name", ["int8", "fp8", "INT8"])
def test_weights_of_8_bits_leave_the_other_dtypes(name: str):
    for small in (True, False):
        chosen = choose_device("cpu", name, None, small=small)
        assert chosen == replace(
            choose_device("cpu", "auto", None, small=small), eight_bits=name.lower()
        )


def test_fp8_on_mps_is_rejected():
    with pytest.raises(RequestError, match=r"dtype: Apple's MPS has no fp8\. Use int8"):
        choose_device(torch.device("mps"), "fp8", None, small=False)


def test_vae_dtype_is_fp16_only_when_requested():
    assert choose_device("cpu", "bf16", "fp16", small=False).vae_dtype == HALF


def test_device_without_bf16_uses_fp16_and_fp32_vae(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(devices, "list_devices", lambda: [torch.device("cuda", 0), CPU])
    monkeypatch.setattr(devices, "supports_bf16", lambda device: False)  # pyright: ignore[reportUnknownLambdaType]
    cuda = DeviceChoice(torch.device("cuda", 0), HALF, FP32)
    assert choose_device("auto", "auto", None, small=False) == cuda
    assert choose_device("cuda", "auto", None, small=True) == cuda
    assert choose_device("cuda:0", "auto", None, small=True) == cuda
    with pytest.raises(DeviceError, match=r"no device 'cuda:1'; it has cuda:0, cpu"):
        choose_device("cuda:1", "auto", None, small=True)


@pytest.mark.parametrize("name", ["gpu", "cudaa", "meta", "cuda:x", ""])
def test_unknown_device_is_rejected(name: str):
    with pytest.raises(RequestError, match="Unknown device") as caught:
        choose_device(name, "auto", None, small=False)
    assert caught.value.field == "device"


def test_unknown_dtype_is_rejected():
    with pytest.raises(RequestError, match=r"Unknown dtype 'bf61'.*Did you mean bf16"):
        choose_device("cpu", "bf61", None, small=False)
    with pytest.raises(RequestError, match=r"Unknown dtype 'fp9'.*Did you mean fp8"):
        choose_device("cpu", "fp9", None, small=False)
    with pytest.raises(RequestError, match="vae_dtype"):
        choose_device("cpu", "auto", "int8", small=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_missing_device_is_rejected():
    with pytest.raises(DeviceError, match="no device 'cuda'; it has"):
        choose_device("cuda", "auto", None, small=False)
