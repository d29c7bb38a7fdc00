"""Count the memory of a computation's tensors, also of one that has no values.

Under a `MemoryMeter`, a computation on the meta device runs without memory and time, and gives the
bytes that it needs on a device. On the CPU the meter counts a real computation in the same way.
"""

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

STRIDED = torch.strided
"""Packed weights of oneDNN have another layout, and no storage."""


class MemoryMeter(TorchDispatchMode):
    """Counts the bytes of the tensors that are made while it is active.

    Tensors that exist before do not count. A storage that several tensors share counts once. The
    meter does not see what kernels allocate for their own use, and no rounding of allocators.

    Attributes:
        bytes: the bytes of the tensors that are alive now.
        peak: the largest number of bytes since the start or the last `restart`.
    """

    def __init__(self, device: torch.device):
        """Count tensors on a device."""
        super().__init__()
        self.bytes = self.peak = 0
        self._device = device
        self._alive: dict[int, weakref.finalize[Any, Any]] = {}

    def restart(self) -> int:
        """Return the peak, and begin another one at the present bytes."""
        peak, self.peak = self.peak, self.bytes
        return peak

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run an operator and count its results."""
        before = {id(own.untyped_storage()) for own in self._list_tensors((args, kwargs))}
        made = func(*args, **(kwargs or {}))
        for own in self._list_tensors(made):
            self._count(own.untyped_storage(), before)
        return made

    def _count(self, storage: torch.UntypedStorage, before: set[int]) -> None:
        key = id(storage)
        if key in self._alive or key in before:
            return
        size = storage.nbytes()
        self.bytes += size
        self.peak = max(self.peak, self.bytes)
        self._alive[key] = weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        del self._alive[key]
        self.bytes -= size

    def _list_tensors(self, values: Any) -> list[Tensor]:
        tensors = [value for value in tree_leaves(values) if isinstance(value, Tensor)]
        return [own for own in tensors if own.device == self._device and own.layout == STRIDED]
