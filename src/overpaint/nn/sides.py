"""Changes of weights that belong to rows of a batch, as paths beside the layers that they change.

Rows with unlike LoRAs share one call: y = W·x for all, plus each row's own B·(A·x). What a row has
is told by `rows.given`; `beside` lends the layers a forward that adds it.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from overpaint.nn import rows
from overpaint.nn.lowrank import Change, LowRank
from overpaint.nn.packed import PackedConv2d, PackedGEGLU, layer, plain_weight

Has = Sequence[tuple[Change, float]]
"""What a row has of a layer: changes, and their scales."""

Products = dict[str, tuple[tuple[LowRank, ...], Tensor, Tensor]]
"""By layer, changes and their factors as one product: down [r, …], up [out, r]."""

TOGETHER = 128
"""Ranks in all, up to which one product for all rows is faster than one for each change."""


@contextmanager
def beside(
    network: nn.Module,
    layers: Sequence[str],
    has: Callable[[Any, str], Has],
    products: Products | None = None,
) -> Generator[None]:
    """Have layers add what the rows have, for as long as this lasts.

    Args:
        network: whose layers.
        layers: by the names of `packed.weighted`.
        has: what a set has of a layer.
        products: kept from one call to the next, where the same changes come again.
    """
    kept = _Kept(has, {} if products is None else products)
    lent: list[nn.Module] = []
    for name in layers:
        module = layer(network, name)
        module.forward = partial(_forward, module, name, kept)
        lent.append(module)
    try:
        yield
    finally:
        for module in lent:
            del module.forward


class _Kept:
    """What need not be made anew for every layer."""

    def __init__(self, has: Callable[[Any, str], Has], products: Products):
        self.has = has
        self._products = products
        self._scales: dict[tuple[Any, ...], Tensor] = {}

    def product(self, name: str, changes: tuple[LowRank, ...], x: Tensor) -> tuple[Tensor, Tensor]:
        """The factors of changes of a layer, as one, each with its own scale in it."""
        found = self._products.get(name)
        if found is None or found[0] != changes or (found[1].dtype, found[1].device) != _kind(x):
            down = torch.cat([c.down.flatten(1) for c in changes]).to(x)
            up = torch.cat([c.up.flatten(1).float() * c.scale for c in changes], 1).to(x)
            self._products[name] = found = (changes, down, up)
        return found[1], found[2]

    def scales(self, of: Sequence[dict[int, float]], ranks: Sequence[int], x: Tensor) -> Tensor:
        """Each row's scales of changes, [B, r], one for each of their ranks."""
        key = (tuple(tuple(sorted(own.items())) for own in of), *ranks, len(x), _kind(x))
        if key not in self._scales:
            wide = torch.zeros(len(x), len(of))
            for column, own in enumerate(of):
                wide[list(own), column] = torch.tensor(list(own.values()))
            self._scales[key] = wide.repeat_interleave(torch.tensor(ranks), 1).to(x)
        return self._scales[key]


def _forward(module: Any, name: str, kept: _Kept, x: Tensor) -> Tensor:
    """The layer's own result for x [B, …], with the rows' changes."""
    split = isinstance(module, PackedGEGLU)
    y = torch.cat(module.parts(x), -1) if split else type(module).forward(module, x)
    sets = rows.current()
    of_set = {own: kept.has(own, name) for own in dict.fromkeys(sets)}
    owners: dict[Change, dict[int, float]] = {}
    for number, own in enumerate(sets):
        for change, scale in of_set[own]:
            of = owners.setdefault(change, {})
            of[number] = of.get(number, 0.0) + scale
    low = tuple(c for c in owners if isinstance(c, LowRank) and c.mid is None)
    if len(low) > 1 and sum(len(c.down) for c in low) <= TOGETHER:
        spread = [owners.pop(c) for c in low]
        at = _at(sorted({number for own in spread for number in own}), x)
        scales = kept.scales(spread, [len(c.down) for c in low], x)
        factors = kept.product(name, low, x)
        _add(y, at, _product(module, *factors, x[at], scales[at]))
    for change, of in owners.items():
        at = _at(list(of), x)
        scale = torch.tensor(list(of.values())).to(x).reshape(-1, *[1] * (y.ndim - 1))
        _add(y, at, _path(module, change, x[at]) * scale)
    if split:
        value, gate = y.chunk(2, -1)
        return value * F.gelu(gate)
    return y


def _path(module: Any, change: Change, x: Tensor) -> Tensor:
    """What a change adds for x: through its factors where it has two, else as a whole weight."""
    if isinstance(change, LowRank) and change.mid is None:
        down, up = (t.flatten(1).to(x) for t in (change.down, change.up))
        return _product(module, down, up, x, None) * change.scale
    delta = change.delta(plain_weight(module)).to(x)
    return _convolved(module, x, delta) if _convolves(module) else F.linear(x, delta)


def _product(module: Any, down: Tensor, up: Tensor, x: Tensor, scales: Tensor | None) -> Tensor:
    """Up · down · x, between them at each row's scales [B, r]."""
    if _convolves(module):
        inner = _convolved(module, x, down.reshape(len(down), *module.weight.shape[1:]))
        inner = inner if scales is None else inner * scales[..., None, None]
        return F.conv2d(inner, up[..., None, None])
    inner = F.linear(x, down)
    if scales is not None:
        inner = inner * scales.reshape(len(x), *[1] * (x.ndim - 2), -1)
    return F.linear(inner, up)


def _at(numbers: Sequence[int], x: Tensor) -> slice | Tensor:
    """Rows of x as an index: a slice where they lie side by side, which copies nothing."""
    first, last = numbers[0], numbers[-1]
    if last - first == len(numbers) - 1:
        return slice(first, last + 1)
    return torch.tensor(numbers, device=x.device)


def _add(y: Tensor, at: slice | Tensor, change: Tensor) -> None:
    """Add to rows of y, in place."""
    if isinstance(at, slice):
        y[at].add_(change)
    else:
        y.index_add_(0, at, change.to(y.dtype))


def _convolves(module: Any) -> bool:
    return isinstance(module, nn.Conv2d | PackedConv2d)


def _kind(x: Tensor) -> tuple[torch.dtype, torch.device]:
    return x.dtype, x.device


def _convolved(module: Any, x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, None, module.stride, module.padding, module.dilation, module.groups)
