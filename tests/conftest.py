"""What holds for all tests."""

import logging
from collections.abc import Iterator

import pytest
from hypothesis import settings

# No deadline: how long an example takes says more about the machine than about the code.
settings.register_profile("overpaint", deadline=None)
settings.load_profile("overpaint")


@pytest.fixture(autouse=True)
def logs_as_they_were() -> Iterator[None]:
    """`serve` has all loggers write to stderr, which in tests is another one every time."""
    root, own = logging.getLogger(), logging.getLogger("overpaint.server")
    handlers, levels = list(root.handlers), (root.level, own.level)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    own.setLevel(levels[1])
