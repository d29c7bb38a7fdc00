"""Weight slots: change a layer's weight in place, and restore it exactly."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from overpaint.nn.device_memory import DeviceMemory, HeldWeight
from overpaint.nn.eight_bits import EightBitLinear
from overpaint.nn.kernels import is_fast
from overpaint.nn.packed import (
    PackedGEGLU,
    PackedLinear,
    find_layer,
    find_vectors,
    is_vector,
    read_weight,
    write_weight,
)
from overpaint.nn.weight_blocks import Change


class WeightSlot(Protocol):
    """The weight of one layer, with a copy of its pristine value."""

    @property
    def pristine(self) -> Tensor:
        """The weight at the time when the slot was made, [out, in] or [out, in, k, k]."""
        ...

    def restore(self) -> None:
        """Write the pristine weight."""
        ...

    def change(self, change: Change) -> None:
        """Write what a function makes of the pristine weight, in the slot's dtype."""
        ...

    def add(self, up: Tensor, down: Tensor) -> None:
        """Write W + up · down, where W is the pristine weight.

        The sum is computed in fp32. If W has fewer bits, the factors are rounded to its dtype, as
        in `RowAdapters`. For a change of a tenth of W's size, that adds 1 % to the rounding error.

        Args:
            up: [out, r].
            down: [r, in · k²].
        """
        ...


def make_weight_slot(
    network: nn.Module, name: str, memory: DeviceMemory | None = None
) -> WeightSlot:
    """Return the slot of a weight.

    Args:
        network: The network that has it.
        name: Its name in `packed.list_weight_shapes` or `list_vector_shapes`.
        memory: Holds the network's weights if they are not always on the device.
    """
    if not is_vector(name) and isinstance(own := find_layer(network, name), EightBitLinear):
        return EightBitSlot(own)
    if memory and (held := _find_held_weight(network, name, memory)):
        return HeldSlot(held)
    if is_vector(name):
        return VectorSlot(find_vectors(network, name))
    module = find_layer(network, name)
    split = [module.value, module.gate] if isinstance(module, PackedGEGLU) else [module]
    if all(isinstance(part, PackedLinear) and _in_tiles(part) for part in split):
        return TiledSlot(split)
    return PlainSlot(module)


def _find_held_weight(network: nn.Module, name: str, memory: DeviceMemory) -> HeldWeight | None:
    owner, leaf = name.rsplit(".", 1) if is_vector(name) else (name, "weight")
    return memory.find_weight(network, network.get_submodule(owner), leaf)


class HeldSlot:
    """A weight that is not always on the device. It changes there, each time it comes."""

    def __init__(self, weight: HeldWeight):
        self._weight = weight

    @property
    def pristine(self) -> Tensor:
        """The weight in the host's memory."""
        return self._weight.read()

    def restore(self) -> None:
        """Let the weight come unchanged."""
        self._weight.set_change(None)

    def change(self, change: Change) -> None:
        """Let the weight come changed."""
        self._weight.set_change(change)

    def add(self, up: Tensor, down: Tensor) -> None:
        """Let W + up · down come; see `WeightSlot.add`."""
        self.change(partial(_add_product, up=up, down=down))


def _add_product(weight: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Return W + up · down in W's dtype; see `WeightSlot.add`."""
    if weight.ndim == 1:
        return (weight.float() + (up @ down).flatten().to(weight.device)).to(weight.dtype)
    flat = weight.flatten(1)
    if not is_fast(flat.device, flat.dtype):
        flat = flat.float()
    changed = torch.addmm(flat, up.to(flat), down.to(flat)).view(weight.shape)
    return torch.empty_like(weight).copy_(changed)  # which keeps the memory format


class EightBitSlot:
    """A weight of 8 bits. A change stays beside it, because rounding could remove it."""

    def __init__(self, layer: EightBitLinear):
        self._layer = layer

    @property
    def pristine(self) -> Tensor:
        """The weight without changes."""
        return self._layer.weight

    def restore(self) -> None:
        """Remove the change."""
        self._layer.product = self._layer.change = None

    def change(self, change: Change) -> None:
        """Compute with what a function makes of the pristine weight, at every call."""
        self._layer.product, self._layer.change = None, change

    def add(self, up: Tensor, down: Tensor) -> None:
        """Add up · down to the layer's outputs; see `WeightSlot.add`."""
        self._layer.product, self._layer.change = (up, down), None


class PlainSlot:
    """A weight in plain layout, or in an unknown packed layout."""

    def __init__(self, module: Any):
        self._module = module
        self.pristine: Tensor = read_weight(module).detach().clone()

    def restore(self) -> None:
        """Write the pristine weight."""
        self.write(self.pristine)

    def change(self, change: Change) -> None:
        """Write what a function makes of the pristine weight."""
        self.write(change(self.pristine))

    def write(self, weight: Tensor) -> None:
        """Write another weight, in the slot's dtype."""
        write_weight(self._module, weight)

    def add(self, up: Tensor, down: Tensor) -> None:
        """Write W + up · down; see `WeightSlot.add`."""
        weight = self.pristine
        if isinstance(self._module, nn.Linear) and is_fast(weight.device, weight.dtype):
            torch.addmm(weight, up.to(weight), down.to(weight), out=self._module.weight)
        else:
            self.write(_add_product(weight, up, down))


class VectorSlot:
    """A bias, or the weight of a norm, in one or more parameters."""

    def __init__(self, parameters: Sequence[Tensor]):
        self._parameters = parameters
        self.pristine: Tensor = torch.cat([own.detach() for own in parameters])

    def restore(self) -> None:
        """Write the pristine vector."""
        self.write(self.pristine)

    def change(self, change: Change) -> None:
        """Write what a function makes of the pristine vector."""
        self.write(change(self.pristine))

    def write(self, weight: Tensor) -> None:
        """Write another vector, in the slot's dtype."""
        with torch.no_grad():
            for own, part in zip(
                self._parameters, weight.chunk(len(self._parameters)), strict=True
            ):
                own.copy_(part)

    def add(self, up: Tensor, down: Tensor) -> None:
        """Write v + up · down; see `WeightSlot.add`."""
        self.write(_add_product(self.pristine, up, down))


class TiledSlot:
    """Packed weights, stacked along the output axis, whose tiles are written in place.

    Packing a weight takes longer than the product `up · down`. Here the product is computed in
    tiles, so that nothing is packed.
    """

    def __init__(self, layers: Sequence[PackedLinear]):
        self._layers = layers
        self._pristine = [own.tiles.clone() for own in layers]

    @property
    def pristine(self) -> Tensor:
        """The weight at the time when the slot was made."""
        return torch.cat([_untiled(tiles) for tiles in self._pristine])

    def restore(self) -> None:
        """Write the pristine weight."""
        for own, pristine in zip(self._layers, self._pristine, strict=True):
            own.tiles.copy_(pristine)

    def change(self, change: Change) -> None:
        """Write what a function makes of the pristine weight."""
        self.write(change(self.pristine))

    def write(self, weight: Tensor) -> None:
        """Write another weight, in the slot's dtype."""
        for own, part in zip(self._layers, weight.chunk(len(self._layers)), strict=True):
            own.replace(part)

    def add(self, up: Tensor, down: Tensor) -> None:
        """Write W + up · down; see `WeightSlot.add`.

        A tile's row holds two adjacent columns of 64 rows. The product has 2r terms: r for each of
        the two columns, and 0 for the other column.
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
    """Return whether a packed weight has the layout of `PackedLinear.tiles`.

    oneDNN does not guarantee it, so this function compares the values.
    """
    return own.tiled and torch.equal(_untiled(own.tiles), own.plain)


def _untiled(tiles: Tensor) -> Tensor:
    """Return the weight [out, in] from tiles [out/64, in/2, 2 · 64]."""
    count, pairs, width = tiles.shape
    rows = width // 2
    return tiles.view(count, pairs, rows, 2).transpose(1, 2).reshape(count * rows, 2 * pairs)
