"""Linear layers whose weights have 8 bits.

A weight W [out, in] is stored as codes and one scale for each output: W ≈ codes · scale. Where the
device multiplies in 8 bits, the inputs are rounded to 8 bits too, with one scale for each token.
Elsewhere the layer multiplies with the rounded weight in 16 or 32 bits, which saves only memory.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from overpaint.nn.blocks import SpatialTransformer
from overpaint.nn.kernels import EightBits, multiplies_in_fp8, multiplies_in_int8

MAX_ROTATED = 128
"""Inputs that are rotated together, at most."""

MIN_INT8_ROWS = 17
"""Rows of a product in int8 that CUDA accepts, at least."""

TINY = 1e-12
"""Replaces a scale of zero."""

_TORCH: Any = torch  # its products in 8 bits have no public names


@dataclass(frozen=True)
class Format:
    """A number format with 8 bits.

    Attributes:
        dtype: The dtype of the codes.
        max_code: The largest code.
        multiplies: Whether a device multiplies in this format.
    """

    dtype: torch.dtype
    max_code: float
    multiplies: Callable[[torch.device], bool]

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the codes of x [n, k] in fp32, and the scale of each row, [n, 1] in fp32."""
        scales = (x.abs().amax(1, keepdim=True) / self.max_code).clamp_min(TINY)
        codes = x / scales
        if not self.dtype.is_floating_point:
            codes = codes.round()
        return codes.clamp(-self.max_code, self.max_code).to(self.dtype), scales


FORMATS: dict[EightBits, Format] = {
    "int8": Format(torch.int8, 127, multiplies_in_int8),
    "fp8": Format(torch.float8_e4m3fn, 448, multiplies_in_fp8),
}


def list_transformers(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """List the parts of a network for `round_layers`, with their names.

    They have most of SDXL's weights: 2.2 of the UNet's 2.6 billion. Convolutions and the layers of
    the embeddings keep their bits, because errors there change the whole picture.
    """
    modules = network.named_modules()
    return [(name, own) for name, own in modules if isinstance(own, SpatialTransformer)]


def round_layers(parent: nn.Module, kind: Format, *, multiplies: bool) -> None:
    """Replace the linear layers of a module by those with 8 bits, in place.

    Args:
        parent: The module.
        kind: The number format.
        multiplies: Whether the device on which the module will run multiplies in this format.
    """
    for name, child in list(parent.named_children()):
        if isinstance(child, nn.Linear):
            setattr(parent, name, EightBitLinear(child, kind, multiplies=multiplies))
        else:
            round_layers(child, kind, multiplies=multiplies)


class EightBitLinear(nn.Module):
    """`nn.Linear` whose weight has 8 bits, and a change of the weight beside it.

    Attributes:
        codes: [out, in].
        scales: [out, 1] in fp32.
        bias: [out].
        rotated: Inputs that are rotated together; 1 if none are.
        product: A product up [out, r] · down [r, in] that is added to the weight.
        change: Returns what replaces the weight.
    """

    def __init__(self, source: nn.Linear, kind: Format, *, multiplies: bool):
        """Round the weight of a layer.

        Args:
            source: The layer.
            kind: The number format.
            multiplies: Whether the device multiplies in this format.
        """
        super().__init__()
        self._kind, self._multiplies = kind, multiplies
        self._dtype = source.weight.dtype
        # Whole numbers have few steps near zero, so a rotation spreads large inputs.
        self.rotated = _rotated_width(source.in_features) if _is_rotated(kind, multiplies) else 1
        weight = rotate(source.weight.detach().float(), self.rotated)
        codes, scales = kind.encode(weight)
        self.codes = nn.Parameter(codes, requires_grad=False)
        self.scales = nn.Parameter(scales, requires_grad=False)
        self.bias: nn.Parameter | None = source.bias
        self.product: tuple[Tensor, Tensor] | None = None
        self.change: Callable[[Tensor], Tensor] | None = None

    @property
    def shape(self) -> torch.Size:
        """The shape of the weight."""
        return self.codes.shape

    @property
    def weight(self) -> Tensor:
        """The weight [out, in] without changes, in the dtype that it had."""
        return rotate(self.codes.float() * self.scales, self.rotated).to(self._dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., out] from x [..., in]."""
        if self.change:
            y = F.linear(x, self.change(self.weight).to(x.dtype), self.bias)
        elif self._multiplies:
            y = self._multiply(x.flatten(0, -2)).unflatten(0, x.shape[:-1])
        else:
            y = F.linear(x, self.weight.to(x.dtype), self.bias)
        if self.product:
            up, down = self.product = self.product[0].to(x), self.product[1].to(x)
            y = y + F.linear(F.linear(x, down), up)
        return y

    def _multiply(self, x: Tensor) -> Tensor:
        """Return [n, out] from x [n, in], by a product in 8 bits."""
        codes, scales = self._kind.encode(rotate(x.float(), self.rotated))
        if self._kind.dtype == torch.int8:
            missing = max(0, MIN_INT8_ROWS - len(codes))
            y: Any = _TORCH._int_mm(F.pad(codes, (0, 0, 0, missing)), self.codes.t())
            y = y[: len(codes)].float() * scales * self.scales.T
        else:
            y = _TORCH._scaled_mm(
                codes,
                self.codes.t(),
                scale_a=scales,
                scale_b=self.scales.T,
                out_dtype=torch.bfloat16,
            ).float()
        return (y if self.bias is None else y + self.bias).to(x.dtype)


def list_weight_readers(network: nn.Module) -> dict[str, Callable[[], Tensor]]:
    """Return functions that return the weights with 8 bits, in the dtype that they had, by name."""

    def read(layer: EightBitLinear) -> Tensor:
        return layer.weight

    return {
        f"{name}.weight": partial(read, module)
        for name, module in network.named_modules()
        if isinstance(module, EightBitLinear)
    }


def _is_rotated(kind: Format, multiplies: bool) -> bool:
    return multiplies and kind.dtype == torch.int8


def _rotated_width(inputs: int) -> int:
    """Return the largest power of two that divides a number of inputs, up to `MAX_ROTATED`."""
    return min(inputs & -inputs, MAX_ROTATED)


def rotate(x: Tensor, width: int) -> Tensor:
    """Multiply each group of adjacent columns of x [n, k] by a Hadamard matrix, its own inverse.

    (x H)(w H)ᵀ = x wᵀ, and no column of x H is much larger than the others (QuaRot, arXiv
    2404.00456).

    Args:
        x: [n, k].
        width: Columns of a group: a power of two that divides k. 1 changes nothing.
    """
    if width == 1:
        return x
    return (x.unflatten(1, (-1, width)) @ _hadamard(width, x.dtype, x.device)).flatten(1)


@cache
def _hadamard(width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return Sylvester's Hadamard matrix [width, width], divided by √width."""
    made = torch.ones(1, 1)
    while len(made) < width:
        made = torch.cat([torch.cat([made, made], 1), torch.cat([made, -made], 1)])
    return (made / sqrt(width)).to(device, dtype)
