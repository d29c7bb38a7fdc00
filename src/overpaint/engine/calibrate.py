"""Measure network calls by their number of rows, for `overpaint bench`."""

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

MIN_CALLS = 3
"""Smallest number of calls whose median is taken."""

MIN_SECONDS = 1.0
"""Smallest sum of their seconds, so that short calls are repeated more often."""


@dataclass(frozen=True)
class Call:
    """A measured network call.

    Attributes:
        shape: (height, width) of the latents.
        rows: rows of the batch.
        seconds: of the call; None if memory ran out.
    """

    shape: tuple[int, int]
    rows: int
    seconds: float | None


def calls(
    model: "Model",
    width: int,
    height: int,
    clock: Callable[[], float] = time.perf_counter,
    min_calls: int = MIN_CALLS,
    min_seconds: float = MIN_SECONDS,
) -> Iterator[Call]:
    """Measure guided network calls of 1, 2, 4 … rows, up to `MOST`.

    It stops early if memory runs out, or if calls are long and twice the rows raise the throughput
    by less than `GAIN`. It does not stop before four rows, because a picture with guidance has two.
    The sizes take turns, so that a slow period of the machine affects all of them.

    Args:
        model: whose network is measured.
        width: of the picture in pixels.
        height: of the picture in pixels.
        clock: returns seconds.
        min_calls: smallest number of calls whose median is taken.
        min_seconds: smallest sum of their seconds.

    Yields:
        One call for each number of rows.

    Raises:
        RequestError: the size is not valid.
        ModelError: the model cannot paint by itself.
        DeviceError: there is too little memory for one row.
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
                    f"There is too little memory for {width}x{height}: {error}. Measure a smaller "
                    "size."
                ) from error
            too_many = rows
            break
        taken[rows] = []
        if rows > 2 and warming >= min_seconds and rows / warming < GAIN * before:
            break
        before, rows = rows / warming, 2 * rows
    while few := [r for r, own in taken.items() if len(own) < min_calls or sum(own) < min_seconds]:
        for rows in few:
            taken[rows].append(call(rows))
    for rows, own in taken.items():
        yield Call((shape[0], shape[1]), rows, median(own))
    if too_many:
        yield Call((shape[0], shape[1]), too_many, None)


@torch.inference_mode()
def _seconds(network: Network, rows: Sequence[Row], clock: Callable[[], float]) -> float:
    """Return the seconds of one call, after the accelerator has finished it."""
    began = clock()
    network.predict(rows)
    if network.device.type != "cpu":
        torch.accelerator.synchronize(network.device)
    return clock() - began
