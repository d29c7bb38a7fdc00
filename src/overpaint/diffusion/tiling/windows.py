"""Overlapping windows that cover a grid of latent cells, and the blending of their results."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

MIN_OVERLAP_FRACTION = 0.25
"""The smallest overlap of adjacent windows, as a fraction of a window's side."""


@dataclass(frozen=True)
class Window:
    """A rectangle in a grid of latent cells."""

    top: int
    left: int
    height: int
    width: int

    def crop(self, x: Tensor, factor: int = 1) -> Tensor:
        """Return a view of the window's part of x [..., h, w].

        Args:
            x: the whole.
            factor: elements of `x` per cell and side.
        """
        top, left = factor * self.top, factor * self.left
        return x[..., top : top + factor * self.height, left : left + factor * self.width]


def cover_grid(height: int, width: int, side: int) -> list[Window]:
    """Return windows of at most `side` × `side` cells that cover a grid."""
    return [
        Window(top, left, min(side, height), min(side, width))
        for top in list_window_starts(height, side)
        for left in list_window_starts(width, side)
    ]


def compute_window_weights(
    windows: list[Window], height: int, width: int, factor: int = 1
) -> list[Tensor]:
    """Return the blending weights of each window, fp32 [h, w]; they sum to 1 everywhere.

    Args:
        windows: windows that cover the grid.
        height: of the grid in cells.
        width: of the grid in cells.
        factor: elements per cell and side.
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
    """Return the weighted sum of the windows' results.

    Args:
        windows: windows that cover the grid.
        parts: one result per window, [..., factor × its height, factor × its width].
        height: of the grid in cells.
        width: of the grid in cells.
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
    """Return evenly spaced window starts that cover a length with at least the minimum overlap."""
    if length <= side:
        return [0]
    stride = side * (1 - MIN_OVERLAP_FRACTION)
    count = 1 + -int(-(length - side) // stride)
    return [round(i * (length - side) / (count - 1)) for i in range(count)]


def make_edge_ramp(start: int, length: int, whole: int) -> Tensor:
    """Return a window's weight along one axis, fp32 [length]; it falls toward adjacent windows."""
    reach = max(1, int(length * MIN_OVERLAP_FRACTION))
    positions = torch.arange(length, dtype=torch.float32)
    weight = torch.ones(length)
    if start > 0:
        weight = torch.minimum(weight, (positions + 0.5) / reach)
    if start + length < whole:
        weight = torch.minimum(weight, (length - positions - 0.5) / reach)
    return weight
