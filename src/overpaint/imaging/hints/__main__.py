"""Make a hint in a separate process: `python -m overpaint.imaging.hints KIND OPTIONS`.

Reads a picture from stdin and writes the hint as a PNG to stdout. The server uses this command, so
that its own process needs no OpenCV.
"""

import json
import sys

from overpaint.errors import OverpaintError
from overpaint.imaging import codec, hints
from overpaint.picture import Picture


def main() -> int:
    """Run the command; return its exit code."""
    kind, options = sys.argv[1], json.loads(sys.argv[2])
    picture = Picture(data=sys.stdin.buffer.read())
    try:
        hint = hints.make_hint(kind, codec.decode(picture), options)
    except OverpaintError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    hint.save(sys.stdout.buffer, "PNG")
    return 0


if __name__ == "__main__":
    sys.exit(main())
