"""Make a hint in a separate process: `python -m overpaint.imaging.hints KIND OPTIONS`.

Reads a picture from stdin and writes the hint as a PNG to stdout. The server uses this command, so
that its own process needs no OpenCV.
"""

import json
import sys

from overpaint.imaging import codec, hints
from overpaint.imaging.hint_command import run_hint_command


def main() -> int:
    """Run the command; return its exit code."""
    kind, options = sys.argv[1], json.loads(sys.argv[2])
    return run_hint_command(lambda picture: hints.make_hint(kind, codec.decode(picture), options))


if __name__ == "__main__":
    sys.exit(main())
