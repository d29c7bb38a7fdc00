"""Copies in the host's memory."""

import torch
from torch import Tensor


def copy_to_host(values: Tensor) -> Tensor:
    """Return a copy in the host's memory; zeros for a tensor of the meta device, without values."""
    return torch.zeros(values.shape, dtype=values.dtype) if values.is_meta else values.cpu()
