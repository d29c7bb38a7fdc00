"""Which dtypes have fast kernels on a device."""

import platform
from typing import Any, Literal

import torch

EightBits = Literal["int8", "fp8"]
"""A number format with 8 bits: whole numbers, or floating point (e4m3)."""

_OPS: Any = torch.ops.mkldnn
_CPU: Any = torch.cpu


def is_fast(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether matrix products in this dtype are fast; on a CPU that needs oneDNN on x86."""
    if device.type != "cpu":
        return True
    has_kernels = _is_x86() and torch.backends.mkldnn.is_available()
    return has_kernels and (
        dtype == torch.float32 or (dtype == torch.bfloat16 and _OPS._is_mkldnn_bf16_supported())
    )


def emulates_bf16(device: torch.device) -> bool:
    """Return whether a device is known to compute in bf16 by conversions, slower than in fp32.

    An x86 processor without AVX-512 takes seven times as long as in fp32.
    """
    return device.type == "cpu" and _is_x86() and not is_fast(device, torch.bfloat16)


def multiplies_in_int8(device: torch.device) -> bool:
    """Return whether a device multiplies whole numbers of 8 bits faster than those of 16 bits.

    NVIDIA's GPUs do since Turing, and x86 processors with AVX512-VNNI.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (7, 5)
    return device.type == "cpu" and _is_x86() and _CPU._is_vnni_supported()


def multiplies_in_fp8(device: torch.device) -> bool:
    """Return whether a device multiplies in fp8: NVIDIA's GPUs do since Ada."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


def _is_x86() -> bool:
    return platform.machine() in {"x86_64", "AMD64"}
