"""Events of a running request.

The progress bar, server-sent events, webhooks and the job store all read this one stream.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Notice:
    """A message for the user, such as a size outside the trained range or a retry in fp32."""

    message: str


@dataclass(frozen=True)
class Step:
    """The network was evaluated once more for the request."""

    done: int
    """Sampler steps finished, over all pictures of the request."""

    total: int
    """Sampler steps of the whole request."""

    sigma: float
    """The noise level of the first unfinished picture."""


@dataclass(frozen=True)
class Preview:
    """A quickly decoded preview of an unfinished picture."""

    index: int
    """The picture of the request, from 0."""

    image: "Image"
    """RGB; the linear preview has an eighth of the result's width and height."""


@dataclass(frozen=True)
class Finished:
    """The pictures of a finished request; always the last event."""

    images: "tuple[Image, ...]"
    """The pictures, RGB; RGBA if a part that is kept is transparent."""

    seeds: tuple[int, ...]
    """The seed of each picture."""

    metadata: tuple[dict[str, Any], ...] = field(repr=False)
    """The settings of each picture, for `metadata.write`."""


@dataclass(frozen=True)
class Failed:
    """The request failed; an engine's last event, in place of `Finished`."""

    error: Exception


@dataclass(frozen=True)
class Canceled:
    """The request was canceled; an engine's last event, in place of `Finished`."""


@dataclass(frozen=True)
class Spent:
    """The cost of a request; an engine yields it just before the last event."""

    seconds: float = 0.0
    """Device time: the request's share of every step and decoding, by rows."""

    megapixel_steps: float = 0.0
    """Network evaluations, each times the million pixels that it painted."""


NO_COST = Spent()

Event = Notice | Step | Preview | Finished
