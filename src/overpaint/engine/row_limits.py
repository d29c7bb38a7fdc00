"""How many rows a call of a network takes."""

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from overpaint.engine.profile import Profile


class RowLimits:
    """The rows of the profile, or fewer after a call ran out of memory.

    Attributes:
        halvings: how often a call ran out of memory.
    """

    def __init__(self, profile: "Profile"):
        """Start with the rows of a profile."""
        self.halvings = 0
        self._profile = profile
        self._lowered: WeakKeyDictionary[Any, dict[Any, int]] = WeakKeyDictionary()

    def get(self, group: Hashable) -> int:
        """Return the rows of a group that one call takes; pictures are decoded one by one."""
        if not isinstance(group, tuple):
            return 1
        network, shape = group
        _, height, width = shape
        return self._lowered.get(network, {}).get(shape) or self._profile.cap(height, width)

    def halve(self, group: Hashable, rows: int) -> None:
        """Let a call of a group take at most half of the rows that were too many."""
        if isinstance(group, tuple):
            network, shape = group
            self.halvings += 1
            self._lowered.setdefault(network, {})[shape] = max(1, rows // 2)
