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


@contextmanager
def beside(
    network: nn.Module, layers: Sequence[str], has: Callable[[Any, str], Has]
) -> Generator[None]:
    """Have layers add what the rows have, for as long as this lasts.

    Args:
        network: whose layers.
        layers: by the names of `packed.weighted`.
        has: what a set has of a layer.
    """
    lent: list[nn.Module] = []
    for name in layers:
        module = layer(network, name)
        module.forward = partial(_forward, module, name, has)
        lent.append(module)
    try:
        yield
    finally:
        for module in lent:
            del module.forward


def _forward(module: Any, name: str, has: Callable[[Any, str], Has], x: Tensor) -> Tensor:
    """The layer's own result for x [B, …], with the rows' changes."""
    split = isinstance(module, PackedGEGLU)
    y = torch.cat(module.parts(x), -1) if split else type(module).forward(module, x)
    members: dict[Any, list[int]] = {}
    for number, own in enumerate(rows.current()):
        members.setdefault(own, []).append(number)
    for own, numbers in members.items():
        for change, scale in has(own, name):
            index = torch.tensor(numbers, device=x.device)
            path = _path(module, change, x if len(numbers) == len(x) else x[index])
            y = y.index_add(0, index, (path * scale).to(y.dtype))
    if split:
        value, gate = y.chunk(2, -1)
        return value * F.gelu(gate)
    return y


def _path(module: Any, change: Change, x: Tensor) -> Tensor:
    """What a change adds for x: through its factors where it has two, else as a whole weight."""
    convolution = isinstance(module, nn.Conv2d | PackedConv2d)
    if isinstance(change, LowRank) and change.mid is None:
        down, up = (t.to(x) for t in (change.down, change.up))
        if not convolution:
            return F.linear(F.linear(x, down.flatten(1)), up.flatten(1)) * change.scale
        inner = _convolved(module, x, down.reshape(len(down), *module.weight.shape[1:]))
        return F.conv2d(inner, up.reshape(*up.shape[:2], 1, 1)) * change.scale
    delta = change.delta(plain_weight(module)).to(x)
    return _convolved(module, x, delta) if convolution else F.linear(x, delta)


def _convolved(module: Any, x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, None, module.stride, module.padding, module.dilation, module.groups)
