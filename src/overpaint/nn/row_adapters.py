"""Changes of weights that belong to rows of a batch, as paths beside the layers that they change.

Rows with unlike LoRAs share one call: y = W·x for all, plus each row's own B·(A·x). What a row has
is told by `rows.given`; `Sides` lends the layers a forward that adds it.
"""

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from overpaint.nn import row_context
from overpaint.nn.lowrank import LowRank, WeightDelta
from overpaint.nn.packed import PackedConv2d, PackedGEGLU, find_layer, read_weight

AdapterSets = tuple[Any, ...]
"""What each row of a batch has, in whoever's terms."""

SidePath = Callable[[Tensor, Tensor], None]
"""Adds what some rows have besides, of what goes into a layer, to what comes out of it."""

MAX_FUSED_RANK = 128
"""Ranks in all, up to which one product for all rows is faster than one for each change."""


class RowAdapters:
    """Paths beside the layers of a network.

    Those of the latest batch's rows are kept: the next step is mostly of the same.
    """

    def __init__(
        self,
        network: nn.Module,
        layers: Callable[[Any], Iterable[str]],
        has: Callable[[Any, str], Sequence[tuple[WeightDelta, float]]],
    ):
        """Nothing is lent yet.

        Args:
            network: whose layers.
            layers: those that a set changes, by the names of `packed.weighted`.
            has: what a set has of a layer: changes, and their scales.
        """
        self._network = network
        self._layers = layers
        self._has = has
        self._sets: AdapterSets = ()
        self._forwards: dict[str, tuple[nn.Module, Callable[[Tensor], Tensor]]] = {}
        self._lent: list[tuple[nn.Module, Callable[[Tensor], Tensor]]] = []
        self._paths: dict[str, list[SidePath]] = {}
        self._products: dict[str, tuple[tuple[LowRank, ...], Tensor, Tensor]] = {}
        self._scales: dict[tuple[Any, ...], Tensor] = {}

    @contextmanager
    def applied(self, sets: AdapterSets) -> Generator[None]:
        """Have the layers add what the rows of a batch have, for as long as this lasts."""
        if sets != self._sets:
            names = dict.fromkeys(name for own in dict.fromkeys(sets) for name in self._layers(own))
            self._lent = [self._forwards.get(name) or self._made_forward(name) for name in names]
            self._sets, self._paths, self._scales = sets, {}, {}
        for module, forward in self._lent:
            module.forward = forward
        try:
            with row_context.use_rows(self._sets):
                yield
        finally:
            for module, _ in self._lent:
                del module.forward

    def _made_forward(self, name: str) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
        module = find_layer(self._network, name)
        self._forwards[name] = module, partial(self._forward, module, name)
        return self._forwards[name]

    def _forward(self, module: Any, name: str, x: Tensor) -> Tensor:
        """The layer's own result for x [B, …], with the rows' changes."""
        split = isinstance(module, PackedGEGLU)
        y = torch.cat(module.parts(x), -1) if split else type(module).forward(module, x)
        for path in self._beside(module, name, x):
            path(x, y)
        if split:
            value, gate = y.chunk(2, -1)
            return value * F.gelu(gate)
        return y

    def _beside(self, module: Any, name: str, x: Tensor) -> list[SidePath]:
        """A layer's paths. Within a batch, prompts may be encoded by rows of their own."""
        sets = row_context.get_rows()
        if sets is not self._sets:
            return self._made(module, name, sets, x)
        if name not in self._paths:
            self._paths[name] = self._made(module, name, sets, x)
        return self._paths[name]

    def _made(self, module: Any, name: str, sets: AdapterSets, x: Tensor) -> list[SidePath]:
        of_set = {own: self._has(own, name) for own in dict.fromkeys(sets)}
        owners: dict[WeightDelta, dict[int, float]] = {}
        for number, own in enumerate(sets):
            for change, scale in of_set[own]:
                of = owners.setdefault(change, {})
                of[number] = of.get(number, 0.0) + scale
        paths: list[SidePath] = []
        low = tuple(c for c in owners if isinstance(c, LowRank) and c.mid is None)
        together = 0 < sum(len(c.down) for c in low) <= MAX_FUSED_RANK
        for group in [low] if together else [(c,) for c in low]:
            spread = [owners.pop(c) for c in group]
            numbers = sorted({number for own in spread for number in own})
            table = tuple(tuple(own.get(number, 0.0) for own in spread) for number in numbers)
            scales = self._wide(table, tuple(len(c.down) for c in group))
            product = self._product(name, group, x)
            paths.append(_through(module, _at(numbers, x), *product, scales, x))
        for change, of in owners.items():
            scales = torch.tensor([[scale] for scale in of.values()])
            paths.append(_whole(module, _at(list(of), x), change, scales, x))
        return paths

    def _wide(self, table: tuple[tuple[float, ...], ...], ranks: tuple[int, ...]) -> Tensor:
        """Each row's scales of changes, repeated for each of their ranks: alike in most layers."""
        if (table, ranks) not in self._scales:
            wide = torch.tensor(table).repeat_interleave(torch.tensor(ranks), 1)
            self._scales[table, ranks] = wide
        return self._scales[table, ranks]

    def _product(self, name: str, low: tuple[LowRank, ...], x: Tensor) -> tuple[Tensor, Tensor]:
        """Changes of a layer as one product: down [r, in …], up [r, out], their own scales in it.

        The latest is kept: those rows that come and go have mostly one of a few.
        """
        found = self._products.get(name)
        if found is None or found[0] != low or (found[1].dtype, found[1].device) != _kind(x):
            down = torch.cat([c.down.flatten(1) for c in low]).to(x)
            up = torch.cat([c.up.flatten(1).T.float() * c.scale for c in low]).to(x)
            self._products[name] = found = (low, down, up)
        return found[1], found[2]


def _through(
    module: Any, at: slice | Tensor, down: Tensor, up: Tensor, scales: Tensor, x: Tensor
) -> SidePath:
    """Down [r, in …], then up [r, out], between them at each row's scales [B, r]."""
    scales, ups = scales.to(x)[:, None], up.expand(len(scales), -1, -1)
    inner = partial(F.linear, weight=down)
    if _convolves(module):
        kernel = down.reshape(len(down), *module.weight.shape[1:])
        inner = partial(_convolved, module, weight=kernel)

    def path(x: Tensor, y: Tensor) -> None:
        own = y[at]
        _places(own).baddbmm_(_places(inner(x[at])).mul_(scales), ups)
        if isinstance(at, Tensor):
            y[at] = own

    return path


def _whole(
    module: Any, at: slice | Tensor, change: WeightDelta, scales: Tensor, x: Tensor
) -> SidePath:
    """A change that is no product, as a weight of its own at each row's scale [B, 1].

    It is made anew at every call: kept, it would take as much room as the layer.
    """
    scales = scales.to(x).reshape(len(scales), *[1] * (x.ndim - 1))

    def path(x: Tensor, y: Tensor) -> None:
        delta = change.to_dense(read_weight(module)).to(x)
        given = _convolved(module, x[at], delta) if _convolves(module) else F.linear(x[at], delta)
        y[at] += scales * given

    return path


def _places(x: Tensor) -> Tensor:
    """[B, C], [B, N, C] or [B, C, h, w] as [B, places, C], where it lies."""
    match x.ndim:
        case 2:
            return x[:, None]
        case 3:
            return x
        case _:
            return x.flatten(2).mT


def _at(numbers: Sequence[int], x: Tensor) -> slice | Tensor:
    """Rows of x as an index: a slice where they lie side by side, which copies nothing."""
    first, last = numbers[0], numbers[-1]
    if last - first == len(numbers) - 1:
        return slice(first, last + 1)
    return torch.tensor(numbers, device=x.device)


def _convolves(module: Any) -> bool:
    return isinstance(module, nn.Conv2d | PackedConv2d)


def _kind(x: Tensor) -> tuple[torch.dtype, torch.device]:
    return x.dtype, x.device


def _convolved(module: Any, x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, None, module.stride, module.padding, module.dilation, module.groups)
