"""Decoding of latents that are too large for the memory: window by window, as if at once.

What a convolution sees beyond a window's edge is in the overlap. A group norm sees the whole
picture, so the windows are decoded several times: each time every norm takes the mean and the
variance that all windows together had the last time. The attention in the middle, which sees all
of the picture too, sees a window.
"""

import math
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from overpaint.diffusion.windows import cover, shares

PASSES = 3
"""The last makes the picture; those before it teach the norms what the whole is like."""


def decode_in_windows(
    vae: Any, run: Callable[[Tensor], Tensor], latent: Tensor, *, side: int, factor: int
) -> Tensor:
    """The pixels of a latent.

    Args:
        vae: whose group norms are to see the whole.
        run: decodes a window of the latent, to fp32.
        latent: [1, C, h, w].
        side: of a window in cells.
        factor: pixels per cell.

    Returns:
        [1, 3, factor × h, factor × w] on the CPU.
    """
    height, width = latent.shape[2:]
    windows = cover(height, width, side)
    cells = shares(windows, height, width)
    places = shares(windows, height, width, factor)
    result = torch.zeros(1, 3, factor * height, factor * width)
    with whole_norms(vae) as norms:
        for turn in range(PASSES):
            for window, cell, place in zip(windows, cells, places, strict=True):
                norms.share = cell.to(latent.device)
                pixels = run(window.of(latent))
                if turn == PASSES - 1:
                    window.of(result, factor).add_(pixels.cpu() * place)
            norms.learn()
    return result


class WholeNorms:
    """Group norms that share their statistics between windows.

    Attributes:
        share: of the window under way: how much it counts at each cell, fp32 [h, w].
    """

    def __init__(self) -> None:
        self.share = torch.ones(1, 1)
        self._known: dict[nn.GroupNorm, tuple[Tensor, Tensor]] = {}
        self._seen: dict[nn.GroupNorm, tuple[Tensor, Tensor, Tensor]] = {}

    def learn(self) -> None:
        """From now on use what was seen since the last time."""
        self._known = {n: (m / count, s / count) for n, (m, s, count) in self._seen.items()}
        self._seen = {}

    def __call__(self, norm: nn.GroupNorm, x: Tensor) -> Tensor:
        """In place of the norm's own forward, for x [1, C, h, w] or [1, C, h × w]."""
        grouped = x.float().reshape(norm.num_groups, x.shape[1] // norm.num_groups, -1)
        share = _enlarged(self.share, grouped.shape[2])
        count = share.sum() * grouped.shape[1]
        own = [(v * share).sum((1, 2)) for v in (grouped, grouped.square())]
        before = self._seen.get(norm, (0.0, 0.0, 0.0))
        self._seen[norm] = (before[0] + own[0], before[1] + own[1], before[2] + count)
        mean, square = self._known.get(norm) or (own[0] / count, own[1] / count)
        scale = (square - mean.square() + norm.eps).rsqrt()
        grouped = (grouped - mean[:, None, None]) * scale[:, None, None]
        flat = grouped.reshape(1, x.shape[1], -1) * norm.weight[:, None] + norm.bias[:, None]
        return flat.reshape(x.shape).to(x.dtype)


@contextmanager
def whole_norms(module: nn.Module) -> Generator[WholeNorms]:
    """Have the group norms in a module share their statistics, for as long as this lasts."""
    shared = WholeNorms()
    norms = [m for m in module.modules() if isinstance(m, nn.GroupNorm)]
    for norm in norms:
        forward: Any = partial(shared, norm)
        norm.forward = forward
    try:
        yield shared
    finally:
        for norm in norms:
            del norm.forward


def _enlarged(share: Tensor, elements: int) -> Tensor:
    """A window's share of each cell as that of each element of a finer grid, [elements]."""
    factor = math.isqrt(elements // share.numel())
    return share.repeat_interleave(factor, 0).repeat_interleave(factor, 1).flatten()
