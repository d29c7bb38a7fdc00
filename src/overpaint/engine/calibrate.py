"""How long network calls take by their rows: what `overpaint bench` measures."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import torch

from overpaint.diffusion.conditioning import Network, Row
from overpaint.diffusion.denoise import Trajectory
from overpaint.diffusion.planner import plan
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

    It ends early where memory runs out, or where calls are long and twice the rows bring less than
    `GAIN` in throughput; not before four, since a picture with its guidance has two. They take
    turns, so that a machine that is slower for a while is so for all of them.

    Args:
        model: whose network.
        width: of the picture, in pixels.
        height: likewise.
        clock: seconds.

    Yields:
        One for each number of rows.

    Raises:
        RequestError: pictures of this size cannot be asked for.
        ModelError: the model cannot paint by itself.
        DeviceError: there is too little memory for a single row.
    """
    request = Request(prompt="a picture", width=width, height=height, num_inference_steps=1)
    (planned,) = plan(request, model).plans
    pair = Trajectory(planned).rows()
    _, *shape = planned.shape

    def call(rows: int) -> float:
        return _seconds(planned.network, (pair * rows)[:rows], clock)

    taken: dict[int, list[float]] = {}
    before, rows, too_many = 0.0, 1, None
    while rows <= MOST:
        try:
            warming = call(rows)
        except torch.OutOfMemoryError as error:
            if rows == 1:
                raise DeviceError(
                    f"there is too little memory for {width}x{height}: {error}. Measure a smaller "
                    "size."
                ) from error
            too_many = rows
            break
        taken[rows] = []
        if rows > 2 and warming >= SPELL and rows / warming < GAIN * before:
            break
        before, rows = rows / warming, 2 * rows
    while few := [r for r, own in taken.items() if len(own) < FEWEST or sum(own) < SPELL]:
        for rows in few:
            taken[rows].append(call(rows))
    for rows, own in taken.items():
        yield Call((shape[0], shape[1]), rows, median(own))
    if too_many:
        yield Call((shape[0], shape[1]), too_many, None)


@torch.inference_mode()
def _seconds(network: Network, rows: Sequence[Row], clock: Callable[[], float]) -> float:
    """One call, to its end: accelerators compute behind our back."""
    began = clock()
    network.predict(rows)
    if network.device.type != "cpu":
        torch.accelerator.synchronize(network.device)
    return clock() - began
