"""Which dtypes have fast kernels on a device."""

import platform
from typing import Any

import torch

_OPS: Any = torch.ops.mkldnn


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


def _is_x86() -> bool:
    return platform.machine() in {"x86_64", "AMD64"}
