"""Pictures larger than a network can see at once: it looks through overlapping windows."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from overpaint.diffusion.denoise import Conditioning, Network, Row

if TYPE_CHECKING:
    from overpaint.diffusion.schedule import NoiseSchedule

Window = tuple[int, int, int, int]

OVERLAP = 0.25
"""Of a window's side, with each neighbour."""


class Tiled:
    """A `Network` over windows of another: their predictions, blended where they overlap.

    MultiDiffusion (Bar-Tal et al. 2023, arXiv 2302.08113, equation 5), with weights that fall off
    towards a window's edges. Each window is told where in the picture it lies, by the crop's
    coordinates among the size ids (arXiv 2307.01952, section 2.2).
    """

    def __init__(self, network: Network, side: int, factor: int, *, cells: int):
        """Look through windows of `side` × `side` latent cells.

        Args:
            network: that sees a window.
            side: of a window, in latent cells.
            factor: pixels per latent cell.
            cells: how many, over all windows, to give to the network at once.
        """
        self.schedule: NoiseSchedule = network.schedule
        self.device = network.device
        self._network = network
        self._side = side
        self._factor = factor
        self._at_once = max(1, cells // side**2)

    def predict(self, rows: Sequence[Row]) -> Tensor:
        """As the network, for rows of any one shape."""
        _, channels, height, width = rows[0].x.shape
        windows = [
            (top, left, min(self._side, height), min(self._side, width))
            for top in starts(height, self._side)
            for left in starts(width, self._side)
        ]
        tiles = [self._tile(row, window) for row in rows for window in windows]
        seen = torch.cat([self._network.predict(part) for part in self._parts(tiles)])
        total = seen.new_zeros(len(rows), channels, height, width)
        weight = seen.new_zeros(1, 1, height, width)
        for i, (top, left, high, wide) in enumerate(windows):
            share = ramp(top, high, height, seen)[:, None] * ramp(left, wide, width, seen)
            place = (..., slice(top, top + high), slice(left, left + wide))
            total[place] += seen[i :: len(windows)] * share
            weight[place] += share
        return total / weight

    def denoised(self, x: Tensor, sigma: float, prediction: Tensor) -> Tensor:
        """As the network's."""
        return self._network.denoised(x, sigma, prediction)

    def _tile(self, row: Row, window: Window) -> Row:
        top, left, high, wide = window
        x = row.x[..., top : top + high, left : left + wide]
        return Row(x, row.sigma, through(row.conditioning, window, self._factor))

    def _parts(self, tiles: list[Row]) -> Iterator[list[Row]]:
        yield from (tiles[i : i + self._at_once] for i in range(0, len(tiles), self._at_once))


def starts(length: int, side: int) -> list[int]:
    """Where windows begin, evenly, so that they cover a length and overlap by `OVERLAP` or more."""
    if length <= side:
        return [0]
    stride = side * (1 - OVERLAP)
    count = 1 + -int(-(length - side) // stride)
    return [round(i * (length - side) / (count - 1)) for i in range(count)]


def ramp(start: int, length: int, whole: int, like: Tensor) -> Tensor:
    """A window's weight along one side, [length]: it falls off where a neighbour goes on."""
    reach = max(1, int(length * OVERLAP))
    places = torch.arange(length, dtype=like.dtype, device=like.device)
    weight = torch.ones_like(places)
    if start > 0:
        weight = torch.minimum(weight, (places + 0.5) / reach)
    if start + length < whole:
        weight = torch.minimum(weight, (length - places - 0.5) / reach)
    return weight


@lru_cache(maxsize=1024)
def through(conditioning: Conditioning, window: Window, factor: int) -> Conditioning:
    """What the network is told of a window; the same object each time, so that it is kept."""
    top, left, high, wide = window
    ids = conditioning.size_ids.clone()
    ids[:, 2] += top * factor
    ids[:, 3] += left * factor
    if ids.shape[1] == 6:
        ids[:, 4], ids[:, 5] = high * factor, wide * factor
    beside = conditioning.channels
    if beside is not None:
        beside = beside[..., top : top + high, left : left + wide]
    return replace(conditioning, size_ids=ids, channels=beside)
