"""What happens while a request runs: the one stream that every reader reads."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Notice:
    """Something the user should be told: a size outside the trained range, a retry in fp32."""

    message: str


@dataclass(frozen=True)
class Step:
    """The network has been evaluated once more for this request.

    Attributes:
        done: sampler steps finished, over all pictures of the request.
        total: steps that the request takes.
        sigma: the noise level that the first unfinished picture has reached.
    """

    done: int
    total: int
    sigma: float


@dataclass(frozen=True)
class Preview:
    """A cheap look at a picture in the making.

    Attributes:
        index: which picture of the request, from 0.
        image: RGB, an eighth of the result's size for the linear preview.
    """

    index: int
    image: "Image"


@dataclass(frozen=True)
class Finished:
    """The request is done; always the last event.

    Attributes:
        images: RGB, one per picture of the request.
        seeds: of each picture.
        metadata: of each picture, as `metadata.write` takes it.
    """

    images: "tuple[Image, ...]"
    seeds: tuple[int, ...]
    metadata: tuple[dict[str, Any], ...] = field(repr=False)


@dataclass(frozen=True)
class Failed:
    """The request ended without pictures; the last event of an engine in place of `Finished`."""

    error: Exception


@dataclass(frozen=True)
class Canceled:
    """The request ended because that was asked for; the last event of an engine likewise."""


@dataclass(frozen=True)
class Spent:
    """What the request has cost; an engine tells it just before the last event.

    Attributes:
        seconds: of the device: its rows' share of every step and decoding that it took part in.
        megapixel_steps: evaluations of the network, each by the million pixels that it painted.
    """

    seconds: float = 0.0
    megapixel_steps: float = 0.0


NOTHING = Spent()

Event = Notice | Step | Preview | Finished
