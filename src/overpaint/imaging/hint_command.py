"""The frame of the commands that make a control image in a separate process.

They read a picture from stdin and write the control image as a PNG to stdout.
"""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from overpaint.errors import OverpaintError
from overpaint.picture import Picture

if TYPE_CHECKING:
    from PIL.Image import Image


def run_hint_command(make: "Callable[[Picture], Image]") -> int:
    """Run a command, and return its exit code.

    Args:
        make: makes the control image of an encoded picture. Its `OverpaintError` goes to stderr.
    """
    picture = Picture(data=sys.stdin.buffer.read())
    try:
        hint = make(picture)
    except OverpaintError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    hint.save(sys.stdout.buffer, "PNG")
    return 0
