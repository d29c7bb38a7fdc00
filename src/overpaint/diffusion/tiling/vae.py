"""The VAE over pictures too large for the memory: window by window, as if it saw them whole.

What a convolution sees beyond a window's edge is in the overlap. Group norms and the attention in
the middle see the whole picture, so the windows are run several times. Every norm takes the mean
and the variance of all windows, of each as it was when last seen; the attention takes the keys and
values that all of them had in the pass before. (Norms that all wait for the next pass overshoot:
what one corrects, those behind it have not heard of.)
"""

import math
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn import functional as F

from overpaint.diffusion.tiling.windows import (
    Window,
    blend_windows,
    compute_window_weights,
    cover_grid,
)

PASS_COUNT = 3
"""The last makes the result; those before it teach the layers what the whole is like."""

MAX_QUERIES_PER_CALL = 4096
"""That the attention answers at once: not every kernel spares the memory for all scores."""


def run_in_windows(
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
        module: whose group norms and attention are to see the whole.
        run: of a window of `x`, to fp32.
        x: [1, C, reads × h, reads × w], a picture (or its latent) of h × w cells.
        side: of a window in cells.
        reads: elements of `x` per cell and side.
        writes: elements of the result per cell and side.

    Returns:
        [1, C', writes × h, writes × w] on the CPU.
    """
    height, width = (length // reads for length in x.shape[2:])
    windows = cover_grid(height, width, side)
    counts = compute_window_weights(windows, height, width)

    def seen() -> Iterator[Tensor]:
        for window, count in zip(windows, counts, strict=True):
            together.enter(window, count.to(x.device))
            yield run(window.crop(x, reads)).cpu()

    with share_layers(module, height, width) as together:
        for _ in range(PASS_COUNT - 1):
            for _ in seen():
                pass
            together.learn()
        return blend_windows(windows, seen(), height, width, writes)


class SharedLayers:
    """What layers that see a whole picture share between its windows."""

    def __init__(self, height: int, width: int) -> None:
        """Nothing is known yet of a picture of so many cells."""
        self._size = height, width
        self._window = Window(0, 0, height, width)
        self._share = torch.ones(height, width)
        self._sums: dict[nn.GroupNorm, dict[Window, Tensor]] = {}
        self._known: dict[Attention, tuple[Tensor, ...]] = {}
        self._seen: dict[Attention, tuple[Tensor, ...]] = {}

    def enter(self, window: Window, share: Tensor) -> None:
        """Go to a window, which counts `share` [h, w], fp32, at each of its cells."""
        self._window, self._share = window, share

    def learn(self) -> None:
        """From now on attend to what was seen since the last time."""
        self._known, self._seen = self._seen, {}

    def norm(self, norm: nn.GroupNorm, x: Tensor) -> Tensor:
        """In place of the norm's own forward, for x [1, C, h, w] or [1, C, h × w]."""
        grouped = x.float().reshape(norm.num_groups, x.shape[1] // norm.num_groups, -1)
        share = _enlarged(self._share, grouped.shape[2])
        own = [(v * share).sum((1, 2)) for v in (grouped, grouped.square())]
        own.append((share.sum() * grouped.shape[1]).expand_as(own[0]))
        sums = self._sums.setdefault(norm, {})
        sums[self._window] = torch.stack(own)
        total, square, count = torch.stack(list(sums.values())).sum(0)
        mean = total / count
        scale = (square / count - mean.square() + norm.eps).rsqrt()
        grouped = (grouped - mean[:, None, None]) * scale[:, None, None]
        flat = grouped.reshape(1, x.shape[1], -1) * norm.weight[:, None] + norm.bias[:, None]
        return flat.reshape(x.shape).to(x.dtype)

    def attention(self, layer: Attention, x: Tensor, **extras: Any) -> Tensor:
        """In place of the layer's own forward, for x [1, C, h, w] with a cell for each of ours."""
        del extras  # the time embedding, which a VAE has none of
        parts: Any = layer  # typed as if any of them could be missing
        tokens = parts.group_norm(x.flatten(2)).transpose(1, 2)
        queries, keys, values = parts.to_q(tokens), parts.to_k(tokens), parts.to_v(tokens)
        known = self._known.get(layer, (keys[0], values[0]))
        seen = self._seen.get(layer) or tuple(
            v.new_zeros(*self._size, v.shape[2]) for v in (keys, values)
        )
        for whole, own in zip(seen, (keys, values), strict=True):
            grid = own[0].unflatten(0, x.shape[2:]) * self._share[..., None].to(own)
            self._window.crop(whole.movedim(2, 0)).add_(grid.movedim(2, 0))
        self._seen[layer] = seen
        keys, values = (v.reshape(1, 1, -1, v.shape[-1]) for v in known)
        attended = [
            F.scaled_dot_product_attention(part, keys, values)
            for part in queries[:, None].split(MAX_QUERIES_PER_CALL, 2)
        ]
        out = parts.to_out[0](torch.cat(attended, 2)[:, 0])
        return x + out.transpose(1, 2).reshape(x.shape)


@contextmanager
def share_layers(module: nn.Module, height: int, width: int) -> Generator[SharedLayers]:
    """Have norms and attention see all windows of a picture, for as long as this lasts.

    Args:
        module: a VAE, or a part of one.
        height: of the picture in cells.
        width: likewise.
    """
    together = SharedLayers(height, width)
    takes: dict[type[nn.Module], Any] = {
        nn.GroupNorm: together.norm,
        Attention: together.attention,
    }
    layers = [m for m in module.modules() if type(m) in takes]
    for layer in layers:
        forward: Any = partial(takes[type(layer)], layer)
        layer.forward = forward
    try:
        yield together
    finally:
        for layer in layers:
            del layer.forward


def _enlarged(share: Tensor, elements: int) -> Tensor:
    """A window's share of each cell as that of each element of a finer grid, [elements]."""
    factor = math.isqrt(elements // share.numel())
    return share.repeat_interleave(factor, 0).repeat_interleave(factor, 1).flatten()
