"""In-memory caches between requests: of results, limited in bytes, and of a number of values."""

import sys
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

T = TypeVar("T")

DEFAULT_CACHE_BYTES = 512 * 2**20
"""The default limit of a cache: pictures and prompts of dozens of requests at 1024 x 1024."""

ENTRY_OVERHEAD_BYTES = 1024
"""Estimated size of an entry's key and bookkeeping, without its value."""

PIXEL_BYTES = {"1": 1, "L": 1, "P": 1}
"""Bytes of a pixel in memory by Pillow mode; other modes take 4."""


@dataclass(frozen=True)
class CachedValue:
    """A cached value and its size in bytes."""

    value: Any
    size: int


class Cache:
    """A least-recently-used cache of values by kind and key, safe for threads.

    The cache can drop a value at any time. `remember` then computes an equal value again.

    Attributes:
        budget: The limit in bytes for all kinds together.
        size: The current size in bytes.
    """

    def __init__(self, budget: float = DEFAULT_CACHE_BYTES):
        """Make an empty cache. A budget of 0 disables caching."""
        self.budget = budget
        self.size = 0
        self._hits = Counter[str]()
        self._misses = Counter[str]()
        self._entries: OrderedDict[Hashable, CachedValue] = OrderedDict()
        self._changing = threading.Lock()

    def __len__(self) -> int:
        """Return the number of cached values."""
        return len(self._entries)

    def remember(self, kind: str, key: Hashable, make: Callable[[], T]) -> T:
        """Return the cached value for a key, or call `make` and cache its result.

        Callers share the value, so they must not modify it. Threads that miss the same key at the
        same time each call `make`.

        Args:
            kind: The kind of value. Each kind has separate keys.
            key: All inputs of the value, by content: values and digests, not object identities.
            make: A function that computes the value.
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
        """Return the numbers of hits and misses by kind."""
        with self._changing:
            return dict(self._hits), dict(self._misses)

    def clear(self) -> None:
        """Drop all values. The numbers of hits and misses stay."""
        with self._changing:
            self._entries.clear()
            self.size = 0

    def _keep(self, where: Hashable, entry: CachedValue) -> None:
        if entry.size > self.budget:
            return  # it would evict all other values
        if before := self._entries.pop(where, None):
            self.size -= before.size
        self._entries[where] = entry
        self.size += entry.size
        while self.size > self.budget:
            _, oldest = self._entries.popitem(last=False)
            self.size -= oldest.size


class RecentValues(Generic[T]):
    """The values of the keys that were used last, limited in number, safe for threads.

    `Cache` limits bytes instead; it does not take networks, whose size on a device it cannot tell.
    """

    def __init__(self, most: int):
        """Make an empty map for a number of values."""
        self._most = most
        self._values: OrderedDict[Hashable, T] = OrderedDict()
        self._changing = threading.Lock()

    def __len__(self) -> int:
        """Return the number of values."""
        return len(self._values)

    def get(self, key: Hashable) -> T | None:
        """Return the value of a key, which counts as a use, or None."""
        with self._changing:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def put(self, key: Hashable, value: T) -> None:
        """Set the value of a key, and drop the value that was not used for longest if needed."""
        with self._changing:
            self._values[key] = value
            self._values.move_to_end(key)
            if len(self._values) > self._most:
                self._values.popitem(last=False)


def measure_bytes(value: object) -> int:
    """Return the bytes of all tensors, arrays, pictures and strings in a value.

    An object that occurs several times counts once.

    Raises:
        TypeError: The value contains an object of an unknown type.
    """
    found: dict[int, int] = {}
    _collect_bytes(value, found)
    return sum(found.values())


def _collect_bytes(value: Any, found: dict[int, int]) -> None:
    match value:
        case torch.Tensor():
            storage = value.untyped_storage()  # a view keeps its whole storage alive
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
