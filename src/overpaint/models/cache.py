"""Results that are worth keeping between requests, in a budget of bytes."""

import sys
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

T = TypeVar("T")

DEFAULT_CACHE_BYTES = 512 * 2**20
"""Bytes that a cache keeps where nothing else is said: the pictures and prompts of dozens of
requests of 1024²."""

ENTRY_OVERHEAD_BYTES = 1024
"""Bytes that an entry takes by itself, beside its value: its key, and our notes of it."""

PIXEL_BYTES = {"1": 1, "L": 1, "P": 1}
"""Of a pixel in memory, by Pillow's mode; 4 in all others."""


@dataclass(frozen=True)
class CachedValue:
    """A value that is kept, and its bytes."""

    value: Any
    size: int


class Cache:
    """Values by kind and key; the one that was not used for longest is forgotten first.

    What is in it may be forgotten at any time, and is then made anew, to the same value. Any thread
    may call it.

    Attributes:
        budget: bytes that are kept at most, of all kinds together.
        size: bytes that are kept.
    """

    def __init__(self, budget: float = DEFAULT_CACHE_BYTES):
        """Nothing is kept yet; with a budget of 0, nothing ever is."""
        self.budget = budget
        self.size = 0
        self._hits = Counter[str]()
        self._misses = Counter[str]()
        self._entries: OrderedDict[Hashable, CachedValue] = OrderedDict()
        self._changing = threading.Lock()

    def __len__(self) -> int:
        """How many values are kept."""
        return len(self._entries)

    def remember(self, kind: str, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` returned for this key; it is shared, so do not write to it.

        Threads that miss the same key at once each make it.

        Args:
            kind: of value, each with keys of its own.
            key: all that the value depends on, by content: values and digests, no identities.
            make: makes it; its tensors, arrays and pictures are what counts against the budget.
        """
        where = (kind, key)
        with self._changing:
            if found := self._entries.get(where):
                self._hits[kind] += 1
                self._entries.move_to_end(where)
                return found.value
            self._misses[kind] += 1
        made = make()
        entry = CachedValue(made, ENTRY_OVERHEAD_BYTES + measure_bytes(made))
        with self._changing:
            self._keep(where, entry)
        return made

    def counts(self) -> tuple[dict[str, int], dict[str, int]]:
        """How often a value was there, and how often it had to be made, by kind."""
        with self._changing:
            return dict(self._hits), dict(self._misses)

    def clear(self) -> None:
        """Forget everything; hits and misses stay counted."""
        with self._changing:
            self._entries.clear()
            self.size = 0

    def _keep(self, where: Hashable, entry: CachedValue) -> None:
        if entry.size > self.budget:
            return  # it would push out all others, and itself
        if before := self._entries.pop(where, None):
            self.size -= before.size
        self._entries[where] = entry
        self.size += entry.size
        while self.size > self.budget:
            _, oldest = self._entries.popitem(last=False)
            self.size -= oldest.size


def measure_bytes(value: object) -> int:
    """Bytes of the tensors, arrays, pictures and text in a value; what is in it twice counts once.

    Raises:
        TypeError: there is something in it whose size cannot be told.
    """
    found: dict[int, int] = {}
    _collect_bytes(value, found)
    return sum(found.values())


def _collect_bytes(value: Any, found: dict[int, int]) -> None:
    match value:
        case torch.Tensor():
            storage = value.untyped_storage()  # a view keeps all of it
            found[storage.data_ptr()] = storage.nbytes()
        case np.ndarray():
            base: Any = value.base
            owner: NDArray[Any] = base if isinstance(base, np.ndarray) else value
            found[id(owner)] = owner.nbytes
        case Image.Image():
            found[id(value)] = value.width * value.height * PIXEL_BYTES.get(value.mode, 4)
        case None | int() | float() | str() | bytes():
            found[id(value)] = sys.getsizeof(value)
        case tuple() | list():
            for part in value:
                _collect_bytes(part, found)
        case Mapping():
            for part in value.values():
                _collect_bytes(part, found)
        case _ if is_dataclass(value):
            for own in fields(value):
                _collect_bytes(getattr(value, own.name), found)
        case _:
            raise TypeError(f"cannot tell the size of a {type(value).__name__}")
