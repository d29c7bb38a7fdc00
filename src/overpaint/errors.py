"""Every error that Overpaint raises on purpose.

    OverpaintError                exit code 1
    ├── RequestError              2   a field is out of range, unknown or inconsistent
    ├── PictureError              3   a file is not a picture we can read
    │   └── FormatError               it is one, or the like, of a format that is not read
    ├── ModelError                4   a checkpoint cannot be used
    │   ├── ModelNotFoundError        no such name, file or folder
    │   └── CheckpointError           found, but not what it should be
    ├── OutputError               5   the result cannot be written
    ├── DeviceError               6   no such device, out of memory, numbers not finite
    ├── StoreError                7   the job store cannot be reached, or turns a job away
    │   ├── QueueFullError            as much waits as may
    │   └── IdempotencyError          a client's token was used for something else
    └── SafetyError               8   the safety checker failed, or flagged every picture

Each message says what was wrong, with which value, and what to do about it. The command line
prints the message alone and ends with the class's exit code.
"""

from difflib import get_close_matches
from reprlib import Repr
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterable


class OverpaintError(Exception):
    """The root of the tree."""

    exit_code: ClassVar[int] = 1


class RequestError(OverpaintError):
    """A request cannot be carried out as asked.

    Attributes:
        field: the name of the field at fault, as in `Request`.
        message: what is wrong with it.
    """

    exit_code = 2

    def __init__(self, field: str, message: str):
        super().__init__(f"{field}: {message}")
        self.field, self.message = field, message


class PictureError(OverpaintError):
    """A file is not a picture, or not one that is safe to decode."""

    exit_code = 3


class FormatError(PictureError):
    """A file of a known format that is not read."""


class ModelError(OverpaintError):
    """A model cannot be used."""

    exit_code = 4


class ModelNotFoundError(ModelError):
    """No model by that name, file, folder or hub id."""


class CheckpointError(ModelError):
    """A checkpoint is there but is not what it should be: keys, shapes, format."""


class OutputError(OverpaintError):
    """A result cannot be written where it should go."""

    exit_code = 5


class DeviceError(OverpaintError):
    """The device is missing, has too little memory, or computed numbers that are not finite."""

    exit_code = 6


class StoreError(OverpaintError):
    """The job store cannot be reached, is another version's, or cannot write."""

    exit_code = 7


class QueueFullError(StoreError):
    """As many jobs wait as may.

    Attributes:
        seconds: of work that are waiting.
    """

    def __init__(self, message: str, seconds: float):
        super().__init__(message)
        self.seconds = seconds


class IdempotencyError(StoreError):
    """A client's idempotency key came before, with another request."""


class SafetyError(OverpaintError):
    """The safety checker failed, or flagged every picture of a request: none is published."""

    exit_code = 8


LONGEST_NAME = 100
"""Characters of what somebody gave for a name that are compared with the names there are."""


class _Shown(Repr):
    """What a message shows of a value, which may be large or deep: as much work as it shows."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 60
        self.maxdict = self.maxlist = self.maxtuple = 20

    def repr_bytes(self, value: bytes, level: int) -> str:
        return repr(value[:60])


def quote_value(value: object) -> str:
    """A value for a message, of sixty characters at most."""
    text = _Shown().repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def did_you_mean(name: str, known: "Iterable[str]") -> str:
    """A hint naming the known names closest to `name`, ready to end a message with.

    Returns:
        " Did you mean a, b?" or, where nothing is close, " Known: a, b, c."
    """
    names = sorted(known)
    close = get_close_matches(name[:LONGEST_NAME].lower(), names, n=3, cutoff=0.5)
    return f" Did you mean {', '.join(close)}?" if close else f" Known: {', '.join(names)}."
