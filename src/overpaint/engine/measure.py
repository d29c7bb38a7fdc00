"""How long network calls take by their rows: what `overpaint bench` measures."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import torch

from overpaint.diffusion.denoise import Network, Row, Trajectory
from overpaint.diffusion.plan import plan
from overpaint.engine.profile import GAIN, MOST
from overpaint.errors import DeviceError
from overpaint.request import Request

if TYPE_CHECKING:
    from overpaint.models.model import Model

FEWEST = 3
"""Calls of which the median is taken, at least."""

SPELL = 1.0
"""Seconds that these take, at least: short calls are made more often."""


@dataclass(frozen=True)
class Call:
    """A network call that was measured.

    Attributes:
        shape: (height, width) of its latents.
        rows: of its batch.
        seconds: that it takes; None where memory runs out.
    """

    shape: tuple[int, int]
    rows: int
    seconds: float | None


def calls(
    model: "Model", width: int, height: int, clock: Callable[[], float] = time.perf_counter
) -> Iterator[Call]:
    """Measure guided network calls of 1, 2, 4 … rows, up to `MOST`.

    It ends early where memory runs out, or where twice the rows bring less than `GAIN` in
    throughput; not before four, since a picture with its guidance has two.

    Args:
        model: whose network.
        width: of the picture, in pixels.
        height: likewise.
        clock: seconds.

    Yields:
        One after the other, as they are measured.

    Raises:
        RequestError: pictures of this size cannot be asked for.
        ModelError: the model cannot paint by itself.
        DeviceError: there is too little memory for a single row.
    """
    request = Request(prompt="a picture", width=width, height=height, num_inference_steps=1)
    (planned,) = plan(request, model).plans
    pair = Trajectory(planned).rows()
    _, *shape = planned.shape
    before, rows = 0.0, 1
    while rows <= MOST:
        together = (pair * rows)[:rows]
        try:
            seconds = _seconds(planned.network, together, clock)
        except torch.OutOfMemoryError as error:
            if rows == 1:
                raise DeviceError(
                    f"there is too little memory for {width}x{height}: {error}. Measure a smaller "
                    "size."
                ) from error
            yield Call((shape[0], shape[1]), rows, None)
            return
        yield Call((shape[0], shape[1]), rows, seconds)
        if rows > 2 and rows / seconds < GAIN * before:
            return
        before, rows = rows / seconds, 2 * rows


@torch.inference_mode()
def _seconds(network: Network, rows: Sequence[Row], clock: Callable[[], float]) -> float:
    """The median over several calls, after one to warm up."""
    _call(network, rows)
    taken: list[float] = []
    while len(taken) < FEWEST or sum(taken) < SPELL:
        began = clock()
        _call(network, rows)
        taken.append(clock() - began)
    return median(taken)


def _call(network: Network, rows: Sequence[Row]) -> None:
    """One call, to its end: accelerators compute behind our back."""
    network.predict(rows)
    if network.device.type != "cpu":
        torch.accelerator.synchronize(network.device)
