"""Count the work of a function, so that tests need no clock."""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from overpaint import errors

SOURCE = errors.__file__.removesuffix("errors.py")


def count_lines(function: Callable[[], object]) -> int:
    """Return how many lines of Overpaint's source a call executes."""
    count = 0

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal count
        if not frame.f_code.co_filename.startswith(SOURCE):
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(before)
    return count


def assert_linear(make: Callable[[int], Callable[[], object]], size: int = 40) -> None:
    """Check that a call on an input of twice the size executes at most some twice the lines.

    Args:
        make: returns the call for the size of an input.
        size: the smaller size.
    """
    first, second = count_lines(make(size)), count_lines(make(2 * size))
    assert second < 2.5 * first, (first, second)
