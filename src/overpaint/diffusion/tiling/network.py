"""Denoise latents beyond the sizes that a network draws, through overlapping windows."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from overpaint.diffusion.conditioning import Conditioning, ControlInput, Network, Row
from overpaint.diffusion.schedule import NoiseSchedule
from overpaint.diffusion.tiling.windows import Window, blend_windows, cover_grid


class TiledNetwork:
    """A `Network` that runs another one on overlapping windows and blends the predictions.

    MultiDiffusion (Bar-Tal et al. 2023, arXiv 2302.08113, equation 5), with weights that fall
    toward a window's edges. The size ids state the place of each window in the picture, as crop
    coordinates (arXiv 2307.01952, section 2.2).
    """

    def __init__(self, network: Network, side: int, factor: int, *, cells: int):
        """Use windows of `side` × `side` latent cells.

        Args:
            network: runs on one window.
            side: of a window, in latent cells.
            factor: pixels per latent cell and side.
            cells: the maximum number of latent cells, over all windows of one network call.
        """
        self.schedule: NoiseSchedule = network.schedule
        self.device = network.device
        self._network = network
        self._side = side
        self._factor = factor
        self._windows_per_call = max(1, cells // side**2)

    def predict(self, rows: Sequence[Row]) -> Tensor:
        """Return the blended network output for rows of any one shape."""
        height, width = rows[0].x.shape[2:]
        windows = cover_grid(height, width, self._side)
        tiles = [self._crop_row(row, window) for row in rows for window in windows]
        predicted = torch.cat([self._network.predict(part) for part in self._batches(tiles)])
        parts = (predicted[i :: len(windows)] for i in range(len(windows)))
        return blend_windows(windows, parts, height, width)

    def denoised(self, x: Tensor, sigma: float, prediction: Tensor) -> Tensor:
        """Return the clean latent that a prediction implies, as the wrapped network does."""
        return self._network.denoised(x, sigma, prediction)

    def _crop_row(self, row: Row, window: Window) -> Row:
        conditioning = crop_conditioning(row.conditioning, window, self._factor)
        return Row(window.crop(row.x), row.sigma, conditioning)

    def _batches(self, tiles: list[Row]) -> Iterator[list[Row]]:
        count = self._windows_per_call
        yield from (tiles[i : i + count] for i in range(0, len(tiles), count))


@lru_cache(maxsize=1024)
def crop_conditioning(conditioning: Conditioning, window: Window, factor: int) -> Conditioning:
    """Return the conditioning of a window.

    Equal arguments give the same object, so that networks can cache by identity.

    Args:
        conditioning: of the whole picture.
        window: in latent cells.
        factor: pixels per latent cell and side.
    """
    ids = conditioning.size_ids.clone()
    ids[:, 2] += window.top * factor
    ids[:, 3] += window.left * factor
    if ids.shape[1] == 6:
        ids[:, 4], ids[:, 5] = window.height * factor, window.width * factor
    channels = conditioning.channels
    return replace(
        conditioning,
        size_ids=ids,
        channels=None if channels is None else window.crop(channels),
        controls=tuple(
            crop_control_input(control, window, factor) for control in conditioning.controls
        ),
    )


def crop_control_input(control: ControlInput, window: Window, factor: int) -> ControlInput:
    """Return the part of a control input that lies in a window.

    Args:
        control: of the whole picture.
        window: in latent cells.
        factor: pixels per latent cell and side.
    """
    hint = window.crop(control.hint, factor)
    return replace(
        control,
        hint=hint,
        features=control.net.extract_features(hint),
        mask=None if control.mask is None else window.crop(control.mask),
    )
