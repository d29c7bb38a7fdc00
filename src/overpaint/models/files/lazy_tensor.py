"""A tensor that is still in its file."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from overpaint.errors import CheckpointError
from overpaint.system.progress import add_bytes


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is still in its file, with operations to apply after reading.

    The class has the few tensor methods that diffusers' key converters call. The converters can
    therefore rename, slice and transpose a checkpoint before any tensor is in memory.

    Attributes:
        path: The file.
        key: The tensor's name in the file.
        offset: The position of its first byte in the file.
        dtype: Its dtype in the file.
        shape: Its shape after all steps.
        file_shape: Its shape in the file.
        steps: The operations to apply, in order.
    """

    path: Path
    key: str
    offset: int
    dtype: torch.dtype
    shape: torch.Size
    file_shape: torch.Size
    steps: tuple[Callable[[torch.Tensor], torch.Tensor], ...] = field(default=(), compare=False)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def file_bytes(self) -> int:
        """Bytes that `read` reads."""
        return self.file_shape.numel() * self.dtype.itemsize

    @property
    def T(self) -> "LazyTensor":  # noqa: N802 (torch's name)
        """The transposed tensor."""
        return self._then(lambda tensor: tensor.T)

    def __getitem__(self, index: Any) -> "LazyTensor":
        return self._then(lambda tensor: tensor[index])

    def contiguous(self) -> "LazyTensor":
        """Return the tensor itself: `read` returns contiguous tensors."""
        return self

    def clone(self) -> "LazyTensor":
        """Return the tensor itself: `read` returns a new tensor each time."""
        return self

    def detach(self) -> "LazyTensor":
        """Return the tensor itself: tensors from files have no gradients."""
        return self

    def changed_by(self, step: Callable[[torch.Tensor], torch.Tensor]) -> "LazyTensor":
        """Return the tensor after a step that keeps its shape, such as a scale."""
        return replace(self, steps=(*self.steps, step))

    def _then(self, step: Callable[[torch.Tensor], torch.Tensor]) -> "LazyTensor":
        shape = step(torch.empty(self.shape, device="meta")).shape
        return replace(self, shape=shape, steps=(*self.steps, step))

    def read(self, device: torch.device | None = None) -> torch.Tensor:
        """Read the tensor into new memory of the host and apply the steps.

        Args:
            device: "meta" for a tensor without values, which is not read.

        Raises:
            CheckpointError: The file became shorter after it was opened.
        """
        if device is not None and device.type == "meta":
            return torch.empty(self.shape, dtype=self.dtype, device=device)
        tensor = torch.empty(self.file_shape, dtype=self.dtype)
        target = tensor.reshape(-1).view(torch.uint8).numpy()
        with self.path.open("rb") as file:
            file.seek(self.offset)
            if file.readinto(target.data) != target.nbytes:
                raise CheckpointError(f"{self.path} changed while it was being read")
        add_bytes(target.nbytes)
        for step in self.steps:
            tensor = step(tensor)
        return torch.clone(tensor, memory_format=torch.contiguous_format) if self.steps else tensor
