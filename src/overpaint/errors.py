"""The errors that Overpaint raises deliberately.

    OverpaintError                exit code 1
    ├── RequestError              2   a field is unknown, out of range or inconsistent
    ├── PictureError              3   a file is not a readable picture
    │   └── FormatError               the picture's format is not supported
    ├── ModelError                4   a model cannot be used
    │   ├── ModelNotFoundError        no model has this name, file, folder or hub id
    │   └── CheckpointError           the file is damaged or of another kind
    ├── OutputError               5   the result cannot be written
    ├── DeviceError               6   no such device, out of memory, results not finite
    ├── StoreError                7   the job store is unreachable, or rejects a job
    │   ├── QueueFullError            the queue is full
    │   └── IdempotencyError          the idempotency key belongs to another request
    └── SafetyError               8   the safety checker failed, or flagged every picture

A message names the problem, the value, the limit and the remedy. The command line prints the
message and exits with the code of the class.
"""

from difflib import get_close_matches
from reprlib import Repr
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterable


class OverpaintError(Exception):
    """Base class of all errors; the command line exits with `exit_code`."""

    exit_code: ClassVar[int] = 1


class RequestError(OverpaintError):
    """A field of a request is invalid.

    Attributes:
        field: the name of the invalid field, as in `Request`.
        message: the problem and its remedy, without the field's name.
    """

    exit_code = 2

    def __init__(self, field: str, message: str):
        super().__init__(f"{field}: {message}")
        self.field, self.message = field, message

    def __reduce__(self) -> "tuple[type[RequestError], tuple[str, str]]":
        """Return how another process makes this error, with both arguments."""
        return type(self), (self.field, self.message)


class PictureError(OverpaintError):
    """A file is not a picture, or is not safe to decode."""

    exit_code = 3


class FormatError(PictureError):
    """A picture has a known format that is not supported."""


class ModelError(OverpaintError):
    """A model cannot be used."""

    exit_code = 4


class ModelNotFoundError(ModelError):
    """No model has this name, file, folder or hub id."""


class CheckpointError(ModelError):
    """A checkpoint has the wrong keys, shapes or format."""


class OutputError(OverpaintError):
    """A result cannot be written to its path."""

    exit_code = 5


class DeviceError(OverpaintError):
    """The device is missing, ran out of memory, or computed results that are not finite."""

    exit_code = 6


class StoreError(OverpaintError):
    """The job store cannot be reached, has an unsupported version, or cannot write."""

    exit_code = 7


class QueueFullError(StoreError):
    """The queue has reached its limit.

    Attributes:
        seconds: the estimated time of the work that waits, in seconds.
    """

    def __init__(self, message: str, seconds: float):
        super().__init__(message)
        self.seconds = seconds


class IdempotencyError(StoreError):
    """A client used an idempotency key again, with another request."""


class SafetyError(OverpaintError):
    """The safety checker failed or flagged every picture, so the server publishes no picture."""

    exit_code = 8


MAX_NAME_CHARS = 100
"""Characters of an unknown name that are compared with the known names."""


class _ShortRepr(Repr):
    """A `repr` whose cost is bounded by its output, for values that may be large or deep."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 60
        self.maxdict = self.maxlist = self.maxtuple = 20

    def repr_bytes(self, value: bytes, level: int) -> str:
        return repr(value[:60])


def quote_value(value: object) -> str:
    """Return the `repr` of a value for a message, shortened to 60 characters."""
    text = _ShortRepr().repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def did_you_mean(name: str, known: "Iterable[str]") -> str:
    """Return a suggestion for an unknown name, to append to a message.

    Returns:
        " Did you mean a, b?" with the closest names, or " Known: a, b, c." if no name is close.
    """
    names = sorted(known)
    by_folded = {name.casefold(): name for name in names}
    found = get_close_matches(name[:MAX_NAME_CHARS].casefold(), by_folded, n=3, cutoff=0.5)
    close = [by_folded[folded] for folded in found]
    return f" Did you mean {', '.join(close)}?" if close else f" Known: {', '.join(names)}."
