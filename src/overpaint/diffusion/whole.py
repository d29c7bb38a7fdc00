"""The VAE over pictures too large for the memory: window by window, as if it saw them whole.

What a convolution sees beyond a window's edge is in the overlap. A group norm sees the whole
picture, so the windows are run several times: each time every norm takes the mean and the variance
that all windows together had the last time. The attention in the middle, which sees all of the
picture too, sees a window.
"""

import math
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from overpaint.diffusion.windows import blend, cover, shares

PASSES = 3
"""The last makes the result; those before it teach the norms what the whole is like."""


def in_windows(
    module: nn.Module,
    run: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    side: int,
    reads: int = 1,
    writes: int = 1,
) -> Tensor:
    """What `run` makes of `x`, window by window.

    Args:
        module: whose group norms are to see the whole.
        run: of a window of `x`, to fp32.
        x: [1, C, reads × h, reads × w], a picture (or its latent) of h × w cells.
        side: of a window in cells.
        reads: elements of `x` per cell and side.
        writes: elements of the result per cell and side.

    Returns:
        [1, C', writes × h, writes × w] on the CPU.
    """
    height, width = (length // reads for length in x.shape[2:])
    windows = cover(height, width, side)
    counts = shares(windows, height, width)

    def seen() -> Iterator[Tensor]:
        for window, count in zip(windows, counts, strict=True):
            norms.share = count.to(x.device)
            yield run(window.of(x, reads)).cpu()

    with whole_norms(module) as norms:
        for _ in range(PASSES - 1):
            for _ in seen():
                pass
            norms.learn()
        return blend(windows, seen(), height, width, writes)


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
