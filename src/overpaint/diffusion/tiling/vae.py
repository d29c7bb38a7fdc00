"""Pictures larger than a network can see at once: it looks through overlapping windows."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from overpaint.diffusion.denoise import Conditioning, Network, Row
from overpaint.diffusion.tiling.windows import Window, blend, cover

if TYPE_CHECKING:
    from overpaint.diffusion.schedule import NoiseSchedule


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
        height, width = rows[0].x.shape[2:]
        windows = cover(height, width, self._side)
        tiles = [self._tile(row, window) for row in rows for window in windows]
        seen = torch.cat([self._network.predict(part) for part in self._parts(tiles)])
        parts = (seen[i :: len(windows)] for i in range(len(windows)))
        return blend(windows, parts, height, width)

    def denoised(self, x: Tensor, sigma: float, prediction: Tensor) -> Tensor:
        """As the network's."""
        return self._network.denoised(x, sigma, prediction)

    def _tile(self, row: Row, window: Window) -> Row:
        return Row(window.of(row.x), row.sigma, through(row.conditioning, window, self._factor))

    def _parts(self, tiles: list[Row]) -> Iterator[list[Row]]:
        yield from (tiles[i : i + self._at_once] for i in range(0, len(tiles), self._at_once))


@lru_cache(maxsize=1024)
def through(conditioning: Conditioning, window: Window, factor: int) -> Conditioning:
    """What the network is told of a window; the same object each time, so that it is kept."""
    ids = conditioning.size_ids.clone()
    ids[:, 2] += window.top * factor
    ids[:, 3] += window.left * factor
    if ids.shape[1] == 6:
        ids[:, 4], ids[:, 5] = window.height * factor, window.width * factor
    beside = conditioning.channels
    return replace(
        conditioning,
        size_ids=ids,
        channels=None if beside is None else window.of(beside),
        controls=tuple(control.through(window, factor) for control in conditioning.controls),
    )
