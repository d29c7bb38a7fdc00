"""Convolutions and linear layers whose weights have the memory layout of the CPU's kernels.

torch stores weights in plain layout, and oneDNN reorders them at every call. `pack_network`
reorders them once, with the operators that torch's compiler uses.
"""

import ctypes
from typing import Any

import torch
from diffusers.models.activations import GEGLU
from torch import Tensor, nn

from overpaint.nn.blocks import TransformerBlock
from overpaint.nn.eight_bits import EightBitLinear
from overpaint.nn.kernels import is_fast
from overpaint.system.malloc import trim_heap

_OPS: Any = torch.ops.mkldnn
TILE_ROWS = 64


def pack_network(network: nn.Module) -> None:
    """Replace convolutions, and linear layers in bf16, by packed ones, in place.

    This does nothing off the CPU, or without oneDNN on x86. In fp32 a plain linear layer is as
    fast as a packed one. A packed network can neither be trained nor moved to another device.
    """
    parameter = next(network.parameters())
    if parameter.device.type == "cpu" and is_fast(parameter.device, parameter.dtype):
        network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] stub gap
        _replace(network)


def _replace(parent: nn.Module) -> None:
    for name, child in list(parent.named_children()):
        match child:
            case nn.Conv2d() if child.kernel_size != (1, 1):
                setattr(parent, name, PackedConv2d(child))
            case GEGLU() if _is_in_bf16(child.proj):
                setattr(parent, name, PackedGEGLU(child))
            case nn.Linear() if _is_in_bf16(child):
                setattr(parent, name, PackedLinear(child.weight, child.bias))
            case _:
                _replace(child)
                if isinstance(child, TransformerBlock):
                    trim_heap()  # The plain weights are free now.


def _is_in_bf16(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) and layer.weight.dtype == torch.bfloat16


def unpacked_state(network: nn.Module) -> dict[str, Tensor]:
    """Return the state dict that the network had before packing, bit for bit."""
    state = dict(network.state_dict())
    for name, module in network.named_modules():
        if isinstance(module, PackedLinear):
            state[f"{name}.weight"] = module.plain
    for name, module in network.named_modules():
        if isinstance(module, PackedGEGLU):
            for leaf in ("weight", "bias"):
                halves = [state.pop(f"{name}.{half}.{leaf}") for half in ("value", "gate")]
                state[f"{name}.proj.{leaf}"] = torch.cat(halves)
    return state


def list_weight_shapes(network: nn.Module) -> dict[str, torch.Size]:
    """Return the weight shapes of all linear layers and convolutions, packed or not, by name."""
    found: dict[str, torch.Size] = {}
    for name, module in network.named_modules():
        match module:
            case PackedGEGLU():
                rows, columns = module.value.shape
                found[f"{name}.proj"] = torch.Size((2 * rows, columns))
            case PackedLinear() | EightBitLinear() if not name.endswith((".value", ".gate")):
                found[name] = module.shape
            case nn.Linear() | nn.Conv2d() | PackedConv2d():
                found[name] = module.weight.shape
            case _:
                pass
    return found


def list_vector_shapes(network: nn.Module) -> dict[str, torch.Size]:
    """Return the shapes of the biases of all layers, and of the weights of all norms, by name."""
    found: dict[str, torch.Size] = {}
    for name, module in network.named_modules():
        vectors: dict[str, Any] = {}
        match module:
            case PackedGEGLU():
                found[f"{name}.proj.bias"] = torch.Size((2 * module.value.shape[0],))
            case nn.GroupNorm() | nn.LayerNorm():
                vectors = {"weight": module.weight, "bias": module.bias}
            case nn.Linear() | nn.Conv2d() | PackedConv2d() | PackedLinear() | EightBitLinear() if (
                not name.endswith((".value", ".gate"))
            ):
                vectors = {"bias": module.bias}
            case _:
                pass
        found |= {f"{name}.{leaf}": own.shape for leaf, own in vectors.items() if own is not None}
    return found


def is_vector(name: str) -> bool:
    """Return whether a name is one of `list_vector_shapes`, not of `list_weight_shapes`."""
    return name.endswith((".weight", ".bias"))


def find_vectors(network: nn.Module, name: str) -> list[Tensor]:
    """Return the parameters that hold a vector of `list_vector_shapes`, one after the other."""
    owner, _, leaf = name.rpartition(".")
    module = find_layer(network, owner)
    parts = [module.value, module.gate] if isinstance(module, PackedGEGLU) else [module]
    return [getattr(part, leaf) for part in parts]


def find_layer(network: nn.Module, name: str) -> Any:
    """Return the module that holds a weight of `list_weight_shapes`, or the PackedGEGLU."""
    stem = name.removesuffix(".proj")
    split = network.get_submodule(stem) if stem != name else None
    return split if isinstance(split, PackedGEGLU) else network.get_submodule(name)


def read_weight(module: Any) -> Tensor:
    """Return a layer's weight in plain layout: a copy if the layer is packed, else the weight."""
    return module.plain if isinstance(module, PackedLinear | PackedGEGLU) else module.weight


def write_weight(module: Any, weight: Tensor) -> None:
    """Replace a layer's weight, in the layer's dtype and layout."""
    if isinstance(module, PackedLinear | PackedGEGLU):
        module.replace(weight)
    else:
        with torch.no_grad():
            module.weight.copy_(weight)


class PackedConv2d(nn.Module):
    """`nn.Conv2d` with its weight packed for the latest input shape.

    The right layout depends on the input shape; in a wrong layout oneDNN can fall back to a kernel
    that takes twenty times as long. The plain weight therefore stays in memory. A new input shape,
    or a weight changed in place, packs it again, which takes as long as torch's own reordering.
    """

    def __init__(self, source: nn.Conv2d):
        super().__init__()
        self.weight = source.weight
        self.bias = source.bias
        self.padding: Any = source.padding
        self.stride, self.dilation, self.groups = source.stride, source.dilation, source.groups
        self._geometry = source.padding, source.stride, source.dilation, source.groups
        self._packed: tuple[tuple[torch.Size, torch.dtype, int], Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, C', h', w'] from x [B, C, h, w], in channels_last, oneDNN's fastest layout."""
        x = x.contiguous(memory_format=torch.channels_last)
        key = x.shape, x.dtype, self.weight._version
        packed = self._packed  # read once: another thread can replace it for another shape
        if packed is None or packed[0] != key:
            weight = _OPS._reorder_convolution_weight(self.weight, *self._geometry, x.shape)
            self._packed = packed = (key, weight)
        return _OPS._convolution_pointwise(
            x, packed[1], self.bias, *self._geometry, "none", [], None
        )


class PackedLinear(nn.Module):
    """`nn.Linear` with a packed weight."""

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: str = "none"):
        """Pack a weight [out, in].

        Args:
            weight: [out, in].
            bias: [out].
            activation: "none" or "gelu"; applied to the output before rounding.
        """
        super().__init__()
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self._activation = activation
        self.replace(weight)

    def replace(self, weight: Tensor) -> None:
        """Pack another weight [out, in], in bf16."""
        plain = weight.detach().to(torch.bfloat16).contiguous()
        self._weight: Tensor = _OPS._reorder_linear_weight(plain, None)

    @property
    def shape(self) -> torch.Size:
        """The shape of the weight."""
        return self._weight.shape

    @property
    def plain(self) -> Tensor:
        """The weight [out, in] in plain layout."""
        return self._weight.to_dense()

    @property
    def tiled(self) -> bool:
        """True if the packed weight has exactly the size of `tiles`."""
        rows, columns = self.shape
        room = _OPS._nbytes(self._weight) == 2 * rows * columns
        return room and rows % TILE_ROWS == 0 and columns % 2 == 0

    @property
    def tiles(self) -> Tensor:
        """A view of the packed weight, [out/64, in/2, 2 · 64]; `replace` makes it invalid.

        This is oneDNN's layout for AVX-512 (AB16b64a2b): a tile holds 64 rows, and within it the
        two numbers of each pair of columns are adjacent. Other machines can have another layout.
        """
        rows, columns = self.shape
        memory = (ctypes.c_uint16 * (rows * columns)).from_address(_OPS.data_ptr(self._weight))
        numbers = torch.frombuffer(memory, dtype=torch.bfloat16)
        return numbers.view(rows // TILE_ROWS, columns // 2, 2 * TILE_ROWS)

    def without_activation(self, x: Tensor) -> Tensor:
        """Return [..., out] from x [..., in], without the activation."""
        return _OPS._linear_pointwise(x, self._weight, self.bias, "none", [], "none")

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., out] from x [..., in]."""
        return _OPS._linear_pointwise(x, self._weight, self.bias, self._activation, [], "none")


class PackedGEGLU(nn.Module):
    """x₁ · gelu(x₂) of the halves of a linear layer (arXiv 2002.05202), as two packed layers."""

    def __init__(self, source: GEGLU):
        super().__init__()
        (weight, gate_weight), (bias, gate_bias) = (
            source.proj.weight.chunk(2),
            source.proj.bias.chunk(2),
        )
        self.value = PackedLinear(weight, bias)
        self.gate = PackedLinear(gate_weight, gate_bias, "gelu")

    @property
    def plain(self) -> Tensor:
        """The linear layer's weight [2 · out, in] in plain layout."""
        return torch.cat([self.value.plain, self.gate.plain])

    def replace(self, weight: Tensor) -> None:
        """Pack another weight [2 · out, in], in bf16."""
        for half, part in zip((self.value, self.gate), weight.chunk(2), strict=True):
            half.replace(part)

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return both halves of the linear layer's output, without the activation."""
        return self.value(x), self.gate.without_activation(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., out] from x [..., in]."""
        return self.value(x).mul_(self.gate(x))
