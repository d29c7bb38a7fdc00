"""Run the VAE window by window on pictures that are too large for the memory.

The overlap of windows covers the surroundings that a convolution needs. Group norms and the middle
block's attention depend on the whole picture, so all windows run several times:

- Each group norm uses the mean and the variance over all windows, from the latest run of each.
- The attention uses the keys and values of all windows in the pass before.

If the norms waited for the next pass as well, they would overshoot, since a norm would not react to
the corrections of the norms before it.
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
from overpaint.nn.host import copy_to_host
from overpaint.system.abandon import check_abandoned

PASS_COUNT = 3
"""Runs of each window. The last pass gives the result; the others collect global statistics."""

MAX_QUERIES_PER_CALL = 4096
"""Queries per attention call: some kernels store all scores, which takes too much memory."""


def run_in_windows(
    module: nn.Module,
    run: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    device: torch.device,
    side: int,
    reads: int = 1,
    writes: int = 1,
) -> Tensor:
    """Run a function on `x` window by window, with layers that use the whole picture.

    Args:
        module: contains the group norms and the attention that use the whole picture.
        run: maps a window of `x` to a result in fp32.
        x: [1, C, reads × h, reads × w], a picture or a latent of h × w cells.
        device: on which the function runs.
        side: of a window in cells.
        reads: elements of `x` per cell and side.
        writes: elements of the result per cell and side.

    Returns:
        [1, C', writes × h, writes × w], on the CPU.
    """
    height, width = (length // reads for length in x.shape[2:])
    windows = cover_grid(height, width, side)
    shares = compute_window_weights(windows, height, width)

    def run_windows() -> Iterator[Tensor]:
        for window, share in zip(windows, shares, strict=True):
            check_abandoned()
            shared.select_window(window, share.to(device))  # once, for all layers
            yield copy_to_host(run(window.crop(x, reads)))

    with share_layers(module, height, width) as shared:
        for _ in range(PASS_COUNT - 1 if shared.has_layers else 0):
            for _ in run_windows():
                pass
            shared.begin_pass()
        return blend_windows(windows, run_windows(), height, width, writes)


class SharedLayers:
    """The state that group norms and attention share between the windows of a picture.

    Attributes:
        has_layers: whether the module has such layers.
    """

    def __init__(self, height: int, width: int) -> None:
        """Start with no statistics for a picture of `height` × `width` cells."""
        self.has_layers = False
        self._size = height, width
        self._window = Window(0, 0, height, width)
        self._share = torch.ones(height, width)
        self._sums: dict[nn.GroupNorm, dict[Window, Tensor]] = {}
        self._last_pass: dict[Attention, tuple[Tensor, ...]] = {}
        self._this_pass: dict[Attention, tuple[Tensor, ...]] = {}

    def select_window(self, window: Window, share: Tensor) -> None:
        """Select the current window and its weight at each of its cells, `share` [h, w], fp32."""
        self._window, self._share = window, share

    def begin_pass(self) -> None:
        """Begin the next pass: attend to the keys and values that the last pass collected."""
        self._last_pass, self._this_pass = self._this_pass, {}

    def norm(self, norm: nn.GroupNorm, x: Tensor) -> Tensor:
        """Replace a norm's forward, for x [1, C, h, w] or [1, C, h × w]."""
        grouped = x.float().reshape(norm.num_groups, x.shape[1] // norm.num_groups, -1)
        share = _expand_share(self._share, grouped.shape[2])
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
        """Replace an attention layer's forward, for x [1, C, h, w] with one token per cell."""
        del extras  # the time embedding, which a VAE does not have
        parts: Any = layer  # diffusers types each part as optional
        tokens = parts.group_norm(x.flatten(2)).transpose(1, 2)
        queries, keys, values = parts.to_q(tokens), parts.to_k(tokens), parts.to_v(tokens)
        tokens_of_all = self._last_pass.get(layer, (keys[0], values[0]))
        collected = self._this_pass.get(layer) or tuple(
            v.new_zeros(*self._size, v.shape[2]) for v in (keys, values)
        )
        for whole, own in zip(collected, (keys, values), strict=True):
            grid = own[0].unflatten(0, x.shape[2:]) * self._share[..., None].to(own)
            self._window.crop(whole.movedim(2, 0)).add_(grid.movedim(2, 0))
        self._this_pass[layer] = collected
        keys, values = (v.reshape(1, 1, -1, v.shape[-1]) for v in tokens_of_all)
        attended = [
            F.scaled_dot_product_attention(part, keys, values)
            for part in queries[:, None].split(MAX_QUERIES_PER_CALL, 2)
        ]
        out = parts.to_out[0](torch.cat(attended, 2)[:, 0])
        return x + out.transpose(1, 2).reshape(x.shape)


@contextmanager
def share_layers(module: nn.Module, height: int, width: int) -> Generator[SharedLayers]:
    """Make norms and attention use all windows of a picture, within the `with` block.

    Args:
        module: a VAE or a part of one.
        height: of the picture in cells.
        width: of the picture in cells.
    """
    shared = SharedLayers(height, width)
    takes: dict[type[nn.Module], Any] = {
        nn.GroupNorm: shared.norm,
        Attention: shared.attention,
    }
    layers = [m for m in module.modules() if type(m) in takes]
    shared.has_layers = bool(layers)
    for layer in layers:
        forward: Any = partial(takes[type(layer)], layer)
        layer.forward = forward
    try:
        yield shared
    finally:
        for layer in layers:
            del layer.forward


def _expand_share(share: Tensor, elements: int) -> Tensor:
    """Return a window's weight at each element of a finer grid, [elements]."""
    factor = math.isqrt(elements // share.numel())
    return share.repeat_interleave(factor, 0).repeat_interleave(factor, 1).flatten()
