"""Per-row LoRA: rows with different adapters share one forward pass.

Each changed layer computes W·x for all rows and adds every row's B·(A·x) (S-LoRA, arXiv
2311.03285). `RowAdapters.applied` replaces the forward of these layers for the length of a `with`
block. `row_context` holds the adapter set of each row.
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
from overpaint.nn.packed import PackedConv2d, PackedGEGLU, find_layer, is_vector, read_weight

AdapterSets = tuple[Any, ...]
"""The adapter set of each row of a batch; any hashable values."""

SidePath = Callable[[Tensor, Tensor], None]
"""Takes a layer's input and adds the adapters of some rows to the layer's output, in place."""

MAX_FUSED_RANK = 128
"""The largest sum of ranks for which one product of all deltas is faster than one per delta."""


class RowAdapters:
    """Adds the adapters of each row to the layers of a network.

    It caches the paths of the latest batch, since consecutive steps mostly have the same rows.
    """

    def __init__(
        self,
        network: nn.Module,
        layers: Callable[[Any], Iterable[str]],
        has: Callable[[Any, str], Sequence[tuple[WeightDelta, float]]],
    ):
        """Prepare a network; nothing is applied yet.

        Args:
            network: the network to change.
            layers: returns the names of the weights and vectors that a set changes, which are
                those of `packed.list_weight_shapes` and `list_vector_shapes`.
            has: returns the deltas of a set for such a name, with their scales.
        """
        self._network = network
        self._layers = layers
        self._has = has
        self._sets: AdapterSets = ()
        self._forwards: dict[str, tuple[nn.Module, Callable[[Tensor], Tensor]]] = {}
        self._applied: list[tuple[nn.Module, Callable[[Tensor], Tensor]]] = []
        self._paths: dict[str, list[SidePath]] = {}
        self._products: dict[str, tuple[tuple[LowRank, ...], Tensor, Tensor]] = {}
        self._scales: dict[tuple[Any, ...], Tensor] = {}

    @contextmanager
    def applied(self, sets: AdapterSets) -> Generator[None]:
        """Make the layers add each row's adapters, within the `with` block."""
        if sets != self._sets:
            names = dict.fromkeys(
                name.rpartition(".")[0] if is_vector(name) else name
                for own in dict.fromkeys(sets)
                for name in self._layers(own)
            )
            self._applied = [self._forwards.get(name) or self._make_forward(name) for name in names]
            self._sets, self._paths, self._scales = sets, {}, {}
        for module, forward in self._applied:
            module.forward = forward
        try:
            with row_context.use_rows(self._sets):
                yield
        finally:
            for module, _ in self._applied:
                del module.forward

    def _make_forward(self, name: str) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
        module = find_layer(self._network, name)
        self._forwards[name] = module, partial(self._forward, module, name)
        return self._forwards[name]

    def _forward(self, module: Any, name: str, x: Tensor) -> Tensor:
        """Return the layer's output for x [B, …], plus the deltas of each row."""
        split = isinstance(module, PackedGEGLU)
        y = torch.cat(module.parts(x), -1) if split else type(module).forward(module, x)
        for path in self._get_paths(module, name, x):
            path(x, y)
        if split:
            value, gate = y.chunk(2, -1)
            return value * F.gelu(gate)
        return y

    def _get_paths(self, module: Any, name: str, x: Tensor) -> list[SidePath]:
        """Return a layer's paths; a `Context` can run a layer with other rows than the batch."""
        sets = row_context.get_rows()
        if sets is not self._sets:
            return self._make_paths(module, name, sets, x)
        if name not in self._paths:
            self._paths[name] = self._make_paths(module, name, sets, x)
        return self._paths[name]

    def _make_paths(self, module: Any, name: str, sets: AdapterSets, x: Tensor) -> list[SidePath]:
        owners = self._find_owners(name, sets)
        paths: list[SidePath] = []
        low = tuple(c for c in owners if isinstance(c, LowRank) and c.mid is None)
        together = 0 < sum(len(c.down) for c in low) <= MAX_FUSED_RANK
        for group in [low] if together else [(c,) for c in low]:
            spread = [owners.pop(c) for c in group]
            numbers = sorted({number for own in spread for number in own})
            table = tuple(tuple(own.get(number, 0.0) for own in spread) for number in numbers)
            scales = self._expand_scales(table, tuple(len(c.down) for c in group))
            product = self._get_product(name, group, x)
            paths.append(_make_product_path(module, _index_rows(numbers, x), *product, scales, x))
        for change, of in owners.items():
            scales = torch.tensor([[scale] for scale in of.values()])
            paths.append(_make_dense_path(module, _index_rows(list(of), x), change, scales, x))
        for leaf in ("bias", "weight"):
            for change, of in self._find_owners(f"{name}.{leaf}", sets).items():
                scales = torch.tensor([[scale] for scale in of.values()])
                at = _index_rows(list(of), x)
                paths.append(_make_vector_path(module, leaf, at, change, scales, x))
        return paths

    def _find_owners(self, name: str, sets: AdapterSets) -> dict[WeightDelta, dict[int, float]]:
        """Return the scale of each delta for each row that it changes, by the row's number."""
        of_set = {own: self._has(own, name) for own in dict.fromkeys(sets)}
        owners: dict[WeightDelta, dict[int, float]] = {}
        for number, own in enumerate(sets):
            for change, scale in of_set[own]:
                of = owners.setdefault(change, {})
                of[number] = of.get(number, 0.0) + scale
        return owners

    def _expand_scales(
        self, table: tuple[tuple[float, ...], ...], ranks: tuple[int, ...]
    ) -> Tensor:
        """Return each row's scale per rank; cached, since most layers have the same."""
        if (table, ranks) not in self._scales:
            wide = torch.tensor(table).repeat_interleave(torch.tensor(ranks), 1)
            self._scales[table, ranks] = wide
        return self._scales[table, ranks]

    def _get_product(self, name: str, low: tuple[LowRank, ...], x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the deltas of a layer as one product: down [r, in …] and up [r, out].

        `up` includes the scale α/r of each delta. The latest product is cached, since consecutive
        batches mostly use the same few LoRAs.
        """
        found = self._products.get(name)
        if (
            found is None
            or found[0] != low
            or (found[1].dtype, found[1].device) != _dtype_and_device(x)
        ):
            down = torch.cat([c.down.flatten(1) for c in low]).to(x)
            up = torch.cat([c.up.flatten(1).T.float() * c.alpha_over_rank for c in low]).to(x)
            self._products[name] = found = (low, down, up)
        return found[1], found[2]


def _make_product_path(
    module: Any, at: slice | Tensor, down: Tensor, up: Tensor, scales: Tensor, x: Tensor
) -> SidePath:
    """Return a path that applies down [r, in …], each row's scales [B, r], then up [r, out]."""
    scales, ups = scales.to(x)[:, None], up.expand(len(scales), -1, -1)
    inner = partial(F.linear, weight=down)
    if _is_convolution(module):
        kernel = down.reshape(len(down), *module.weight.shape[1:])
        inner = partial(_convolve, module, weight=kernel)

    def path(x: Tensor, y: Tensor) -> None:
        own = y[at]
        _flatten_positions(own).baddbmm_(_flatten_positions(inner(x[at])).mul_(scales), ups)
        if isinstance(at, Tensor):
            y[at] = own

    return path


def _make_dense_path(
    module: Any, at: slice | Tensor, change: WeightDelta, scales: Tensor, x: Tensor
) -> SidePath:
    """Return a path for a delta that is not a product, at each row's scale [B, 1].

    The path computes the dense delta at every call. A cached one would take as much memory as the
    layer's weight.
    """
    scales = scales.to(x).reshape(len(scales), *[1] * (x.ndim - 1))

    def path(x: Tensor, y: Tensor) -> None:
        delta = change.to_dense(read_weight(module)).to(x)
        given = (
            _convolve(module, x[at], delta) if _is_convolution(module) else F.linear(x[at], delta)
        )
        y[at] += scales * given

    return path


def _make_vector_path(
    module: Any, leaf: str, at: slice | Tensor, change: WeightDelta, scales: Tensor, x: Tensor
) -> SidePath:
    """Return a path for a delta of a bias or of a norm's weight, at each row's scale [B, 1]."""
    halves = 2 if isinstance(module, PackedGEGLU) else 1
    own: Any = module.value if isinstance(module, PackedGEGLU) else module
    size = halves * len(getattr(own, leaf))
    channels_first = _is_convolution(module) or isinstance(module, nn.GroupNorm)
    shape = [1, size, *[1] * (x.ndim - 2)] if channels_first else [size]
    delta = change.to_dense(torch.zeros(size, device=x.device)).reshape(shape).to(x)
    delta = delta * scales.to(x).reshape(len(scales), *[1] * (x.ndim - 1))

    def normalize(x: Tensor) -> Tensor:
        if isinstance(module, nn.GroupNorm):
            return F.group_norm(x, module.num_groups, eps=module.eps)
        return F.layer_norm(x, own.normalized_shape, eps=own.eps)

    def path(x: Tensor, y: Tensor) -> None:
        y[at] += delta if leaf == "bias" else normalize(x[at]) * delta

    return path


def _flatten_positions(x: Tensor) -> Tensor:
    """Return a view [B, positions, C] of [B, C], [B, N, C] or [B, C, h, w]."""
    match x.ndim:
        case 2:
            return x[:, None]
        case 3:
            return x
        case _:
            return x.flatten(2).mT


def _index_rows(numbers: Sequence[int], x: Tensor) -> slice | Tensor:
    """Return an index of rows of x: a slice if they are adjacent, since a slice copies nothing."""
    first, last = numbers[0], numbers[-1]
    if last - first == len(numbers) - 1:
        return slice(first, last + 1)
    return torch.tensor(numbers, device=x.device)


def _is_convolution(module: Any) -> bool:
    return isinstance(module, nn.Conv2d | PackedConv2d)


def _dtype_and_device(x: Tensor) -> tuple[torch.dtype, torch.device]:
    return x.dtype, x.device


def _convolve(module: Any, x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, None, module.stride, module.padding, module.dilation, module.groups)
