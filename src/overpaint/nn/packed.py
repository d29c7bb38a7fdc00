"""Convolutions and linear layers whose weights lie as the CPU's kernels want them.

torch stores weights plainly, and oneDNN reorders them at every call. `pack` has them reordered
once, by the operators that torch's own compiler uses for this.
"""

import ctypes
import platform
import sys
from typing import Any

import torch
from diffusers.models.activations import GEGLU
from torch import Tensor, nn

from overpaint.nn.blocks import TransformerBlock

_OPS: Any = torch.ops.mkldnn
TILE_ROWS = 64


def pack_network(network: nn.Module) -> None:
    """Replace the network's convolutions, and its linear layers in bf16, by packed ones, in place.

    Does nothing where there is nothing to win: off the CPU, or without oneDNN on x86. (In fp32 a
    plain linear layer is as fast.) Afterwards the network can be neither trained nor moved.
    """
    parameter = next(network.parameters())
    if parameter.device.type == "cpu" and is_fast(parameter.device, parameter.dtype):
        network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] stub gap
        _replace(network)


def is_fast(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether products in this dtype are fast: on a CPU, by oneDNN on x86."""
    return device.type != "cpu" or (
        platform.machine() in {"x86_64", "AMD64"}
        and torch.backends.mkldnn.is_available()
        and (
            dtype == torch.float32 or (dtype == torch.bfloat16 and _OPS._is_mkldnn_bf16_supported())
        )
    )


def _replace(parent: nn.Module) -> None:
    for name, child in list(parent.named_children()):
        match child:
            case nn.Conv2d() if child.kernel_size != (1, 1):
                setattr(parent, name, PackedConv2d(child))
            case GEGLU() if child.proj.weight.dtype == torch.bfloat16:
                setattr(parent, name, PackedGEGLU(child))
            case nn.Linear() if child.weight.dtype == torch.bfloat16:
                setattr(parent, name, PackedLinear(child.weight, child.bias))
            case _:
                _replace(child)
                if isinstance(child, TransformerBlock):
                    _return_freed_memory()


def _return_freed_memory() -> None:
    """Give the plain weights' memory back to the system.

    glibc would keep it, and the packed ones, whose sizes differ a little, take new: 15 % more.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc and hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def unpacked_state(network: nn.Module) -> dict[str, Tensor]:
    """The network's state dict as it was before it was packed, to the bit."""
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
    """The linear layers and convolutions of a network, packed or not: names and weights' shapes."""
    found: dict[str, torch.Size] = {}
    for name, module in network.named_modules():
        match module:
            case PackedGEGLU():
                rows, columns = module.value.shape
                found[f"{name}.proj"] = torch.Size((2 * rows, columns))
            case PackedLinear() if not name.endswith((".value", ".gate")):
                found[name] = module.shape
            case nn.Linear() | nn.Conv2d() | PackedConv2d():
                found[name] = module.weight.shape
            case _:
                pass
    return found


def find_layer(network: nn.Module, name: str) -> Any:
    """The module that holds one of `weighted`'s weights: of a packed GEGLU, the whole of it."""
    stem = name.removesuffix(".proj")
    split = network.get_submodule(stem) if stem != name else None
    return split if isinstance(split, PackedGEGLU) else network.get_submodule(name)


def read_weight(module: Any) -> Tensor:
    """The weight of a `layer` as it was before it was packed; where it never was, itself."""
    return module.plain if isinstance(module, PackedLinear | PackedGEGLU) else module.weight


def write_weight(module: Any, weight: Tensor) -> None:
    """Put another weight in the place of a `layer`'s, in its dtype, packed if it was."""
    if isinstance(module, PackedLinear | PackedGEGLU):
        module.replace(weight)
    else:
        with torch.no_grad():
            module.weight.copy_(weight)


class PackedConv2d(nn.Module):
    """`nn.Conv2d` with its weight packed for the input shape that came last.

    Which order is right depends on the shape: with another's oneDNN may fall back to a kernel that
    takes twenty times as long. So the plain weight stays, and a new shape, or a weight changed in
    place, packs it again, which costs what torch spends at every call.
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
        """[B, C, h, w] → [B, C', h', w'], channels_last, where oneDNN is fastest."""
        x = x.contiguous(memory_format=torch.channels_last)
        key = x.shape, x.dtype, self.weight._version
        packed = self._packed  # read and written once: another thread may have another shape
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
            activation: applied to the output before it is rounded: "none" or "gelu".
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
        """Of the weight."""
        return self._weight.shape

    @property
    def plain(self) -> Tensor:
        """The weight [out, in] as it was."""
        return self._weight.to_dense()

    @property
    def tiled(self) -> bool:
        """Whether the packed weight has room for `tiles` and no more."""
        rows, columns = self.shape
        room = _OPS._nbytes(self._weight) == 2 * rows * columns
        return room and rows % TILE_ROWS == 0 and columns % 2 == 0

    @property
    def tiles(self) -> Tensor:
        """The packed weight where it lies, a view until it is replaced: [out/64, in/2, 2 · 64].

        As oneDNN has it for AVX-512 (its format AB16b64a2b): of 64 rows pairs of columns, a pair's
        two numbers side by side. On another machine it may lie otherwise.
        """
        rows, columns = self.shape
        memory = (ctypes.c_uint16 * (rows * columns)).from_address(_OPS.data_ptr(self._weight))
        numbers = torch.frombuffer(memory, dtype=torch.bfloat16)
        return numbers.view(rows // TILE_ROWS, columns // 2, 2 * TILE_ROWS)

    def without_activation(self, x: Tensor) -> Tensor:
        """[..., in] → [..., out], as a plain linear layer."""
        return _OPS._linear_pointwise(x, self._weight, self.bias, "none", [], "none")

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] → [..., out]."""
        return _OPS._linear_pointwise(x, self._weight, self.bias, self._activation, [], "none")


class PackedGEGLU(nn.Module):
    """x₁ · gelu(x₂), the two halves of a linear layer (arXiv 2002.05202), as two packed ones."""

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
        """The linear layer's weight [2 · out, in] as it was."""
        return torch.cat([self.value.plain, self.gate.plain])

    def replace(self, weight: Tensor) -> None:
        """Pack another weight [2 · out, in], in bf16."""
        for half, part in zip((self.value, self.gate), weight.chunk(2), strict=True):
            half.replace(part)

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Both halves of the linear layer's result, before any activation."""
        return self.value(x), self.gate.without_activation(x)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] → [..., out]."""
        return self.value(x).mul_(self.gate(x))
