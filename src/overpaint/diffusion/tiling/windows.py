"""Windows over what is too large to be seen at once: they cover it, overlap, and are blended."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

MIN_OVERLAP_FRACTION = 0.25
"""Of a window's side, with each neighbour."""


@dataclass(frozen=True)
class Window:
    """A part of a grid of latent cells."""

    top: int
    left: int
    height: int
    width: int

    def crop(self, x: Tensor, factor: int = 1) -> Tensor:
        """What is seen of x [..., h, w]; `factor` is how many of its elements a cell has a side."""
        top, left = factor * self.top, factor * self.left
        return x[..., top : top + factor * self.height, left : left + factor * self.width]


def cover_grid(height: int, width: int, side: int) -> list[Window]:
    """Windows of up to `side` × `side` cells that cover a grid."""
    return [
        Window(top, left, min(side, height), min(side, width))
        for top in list_window_starts(height, side)
        for left in list_window_starts(width, side)
    ]


def compute_window_weights(
    windows: list[Window], height: int, width: int, factor: int = 1
) -> list[Tensor]:
    """How much each window counts at each of its places, fp32 [h, w]; they sum to one everywhere.

    Args:
        windows: that cover the grid.
        height: of the grid in cells.
        width: likewise.
        factor: elements per cell and side of what is to be blended.
    """
    weights = [
        make_edge_ramp(factor * w.top, factor * w.height, factor * height)[:, None]
        * make_edge_ramp(factor * w.left, factor * w.width, factor * width)
        for w in windows
    ]
    total = torch.zeros(factor * height, factor * width)
    for window, weight in zip(windows, weights, strict=True):
        window.crop(total, factor).add_(weight)
    return [w / window.crop(total, factor) for window, w in zip(windows, weights, strict=True)]


def blend_windows(
    windows: list[Window], parts: Iterable[Tensor], height: int, width: int, factor: int = 1
) -> Tensor:
    """One whole of what was made of each window, by their shares.

    Args:
        windows: that cover the grid.
        parts: one per window, [..., factor × its height, factor × its width].
        height: of the grid in cells.
        width: likewise.
        factor: elements of the parts per cell and side.

    Returns:
        [..., factor × height, factor × width].
    """
    whole = torch.empty(0)
    weights = compute_window_weights(windows, height, width, factor)
    for window, part, weight in zip(windows, parts, weights, strict=True):
        if not whole.numel():
            whole = part.new_zeros(*part.shape[:-2], factor * height, factor * width)
        window.crop(whole, factor).add_(part * weight.to(part))
    return whole


def list_window_starts(length: int, side: int) -> list[int]:
    """Where windows begin, evenly, so that they cover a length and overlap by `OVERLAP` or more."""
    if length <= side:
        return [0]
    stride = side * (1 - MIN_OVERLAP_FRACTION)
    count = 1 + -int(-(length - side) // stride)
    return [round(i * (length - side) / (count - 1)) for i in range(count)]


def make_edge_ramp(start: int, length: int, whole: int) -> Tensor:
    """A window's weight along one side, fp32 [length]: it falls off where a neighbour goes on."""
    reach = max(1, int(length * MIN_OVERLAP_FRACTION))
    places = torch.arange(length, dtype=torch.float32)
    weight = torch.ones(length)
    if start > 0:
        weight = torch.minimum(weight, (places + 0.5) / reach)
    if start + length < whole:
        weight = torch.minimum(weight, (length - places - 0.5) / reach)
    return weight
