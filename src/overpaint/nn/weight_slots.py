"""Where the weights of layers lie, so that they can be changed there and be as they were again."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from overpaint.nn.packed import (
    PackedGEGLU,
    PackedLinear,
    find_layer,
    is_fast,
    read_weight,
    write_weight,
)


class WeightSlot(Protocol):
    """The weight of one layer."""

    @property
    def pristine(self) -> Tensor:
        """The weight as it was when the place was made, [out, in] or [out, in, k, k]."""
        ...

    def restore(self) -> None:
        """Put the pristine weight there."""
        ...

    def write(self, weight: Tensor) -> None:
        """Put another weight there, in the place's dtype."""
        ...

    def add(self, up: Tensor, down: Tensor) -> None:
        """Put W + up · down there, W being the pristine one; up is [out, r], down [r, in · k²].

        The sum is made in fp32. Where W is in fewer bits the factors are rounded too, as they are
        beside a layer: of a change a tenth of W's size that adds 1 % to the rounding of the sum.
        """
        ...


def make_weight_slot(network: nn.Module, name: str) -> WeightSlot:
    """The place of one of the weights that `packed.weighted` names."""
    module = find_layer(network, name)
    split = [module.value, module.gate] if isinstance(module, PackedGEGLU) else [module]
    if all(isinstance(part, PackedLinear) and _in_tiles(part) for part in split):
        return TiledSlot(split)
    return PlainSlot(module)


class PlainSlot:
    """A weight that lies as it is, or in an order that is not known."""

    def __init__(self, module: Any):
        self._module = module
        self.pristine: Tensor = read_weight(module).detach().clone()

    def restore(self) -> None:
        """As `Place.restore`."""
        self.write(self.pristine)

    def write(self, weight: Tensor) -> None:
        """As `Place.write`."""
        write_weight(self._module, weight)

    def add(self, up: Tensor, down: Tensor) -> None:
        """As `Place.add`."""
        weight = self.pristine.flatten(1)
        if not is_fast(weight.device, weight.dtype):
            weight = weight.float()
        up, down = up.to(weight), down.to(weight)
        if isinstance(self._module, nn.Linear) and weight.dtype == self._module.weight.dtype:
            torch.addmm(weight, up, down, out=self._module.weight)
        else:
            self.write(torch.addmm(weight, up, down).view(self.pristine.shape))


class TiledSlot:
    """Packed weights, one below the other, whose tiles can be written where they lie.

    To pack a weight takes longer than the product; one that comes out in tiles needs no packing.
    """

    def __init__(self, layers: Sequence[PackedLinear]):
        self._layers = layers
        self._pristine = [own.tiles.clone() for own in layers]

    @property
    def pristine(self) -> Tensor:
        """As `Place.pristine`."""
        return torch.cat([_untiled(tiles) for tiles in self._pristine])

    def restore(self) -> None:
        """As `Place.restore`."""
        for own, pristine in zip(self._layers, self._pristine, strict=True):
            own.tiles.copy_(pristine)

    def write(self, weight: Tensor) -> None:
        """As `Place.write`."""
        for own, part in zip(self._layers, weight.chunk(len(self._layers)), strict=True):
            own.replace(part)

    def add(self, up: Tensor, down: Tensor) -> None:
        """As `Place.add`.

        A tile's row is two columns of 64 rows, side by side: for each of both columns its own r of
        2r terms, the others being 0.
        """
        rank, columns = down.shape
        pairs = down.bfloat16().reshape(rank, columns // 2, 2).permute(1, 2, 0)
        pairs = pairs.reshape(1, columns // 2, 2 * rank)
        parts = up.bfloat16().chunk(len(self._layers))
        for own, pristine, part in zip(self._layers, self._pristine, parts, strict=True):
            count, _, width = pristine.shape
            rows = part.reshape(count, width // 2, rank).transpose(1, 2)
            spread = rows.new_zeros(count, 2, rank, width // 2, 2)
            spread[:, 0, :, :, 0] = spread[:, 1, :, :, 1] = rows
            spread = spread.view(count, 2 * rank, width)
            torch.baddbmm(pristine, pairs.expand(count, -1, -1), spread, out=own.tiles)


def _in_tiles(own: PackedLinear) -> bool:
    """Whether a packed weight lies as `PackedLinear.tiles` says: oneDNN does not promise it."""
    return own.tiled and torch.equal(_untiled(own.tiles), own.plain)


def _untiled(tiles: Tensor) -> Tensor:
    """[out/64, in/2, 2 · 64] → [out, in]."""
    count, pairs, width = tiles.shape
    rows = width // 2
    return tiles.view(count, pairs, rows, 2).transpose(1, 2).reshape(count * rows, 2 * pairs)
