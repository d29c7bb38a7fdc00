"""Copies between the host's memory and a device."""

import torch
from torch import Tensor


def copy_to_host(values: Tensor) -> Tensor:
    """Return a copy in the host's memory; zeros for a tensor of the meta device, without values."""
    return torch.zeros(values.shape, dtype=values.dtype) if values.is_meta else values.cpu()


def copy_to_device(
    values: Tensor, device: torch.device, dtype: torch.dtype | None = None
) -> Tensor:
    """Return values of the host on a device, without waiting for the kernels that run there.

    CUDA reads memory that is not pinned before the call returns, so that it can be freed at once
    (CUDA Runtime API, "API synchronization behavior").
    """
    return values.to(device, dtype, non_blocking=True)
