"""Weights that stay in their file until they run."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from overpaint.errors import CheckpointError
from overpaint.models.files.lazy_tensor import LazyTensor
from overpaint.models.files.safetensors_io import check_tensors, number_positions


class FileHome:
    """A weight's file, as the place of the weight while it does not run."""

    def __init__(self, stored: LazyTensor, resting: Tensor, *, channels_last: bool):
        """Leave a weight in its file.

        Args:
            stored: The weight in the file.
            resting: A tensor of torch's meta device with the shape and dtype of the weight.
            channels_last: Use the channels-last memory format if the weight is 4-D.
        """
        self.resting = resting
        self._stored = stored
        self._version = _read_version(stored.path)
        self._format = (
            torch.channels_last if channels_last and stored.ndim == 4 else torch.preserve_format
        )

    def read(self) -> Tensor:
        """Read the weight.

        Raises:
            CheckpointError: The file is another one now, or is gone.
        """
        path = self._stored.path
        if _read_version(path) != self._version:
            # Clients of a server see this message, so it has no path.
            raise CheckpointError(
                f"{path.name} changed while a model used it. Load the model again."
            )
        return self._stored.read().to(self.resting.dtype, memory_format=self._format)


def _read_version(path: Path) -> tuple[int, int, int] | None:
    """Return numbers that differ after the content changed; None if there is no file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def leave_in_file(
    module: nn.Module,
    stored: Mapping[str, LazyTensor],
    *,
    part: str,
    dtype: torch.dtype,
    channels_last: bool,
) -> dict[str, FileHome]:
    """Leave the weights of a module on the meta device in a checkpoint's files.

    Args:
        module: The module. It is set to evaluation mode, without gradients.
        stored: The tensors by state dict name; exactly the names of the module.
        part: The name of the module in error messages.
        dtype: The dtype for floating-point tensors.
        channels_last: Use the channels-last memory format for 4-D tensors.

    Returns:
        The places of the weights by name.

    Raises:
        CheckpointError: A tensor is missing, unexpected or has another shape.
    """
    check_tensors(module, stored, part=part)
    nn.Module.to(module, dtype)  # not that of diffusers, which warns
    module.requires_grad_(False).eval()
    number_positions(module, torch.device("cpu"))
    weights = dict(module.named_parameters()) | dict(module.named_buffers())
    return {
        name: FileHome(own, weights[name], channels_last=channels_last)
        for name, own in stored.items()
    }
