"""Packed layers compared with plain ones."""

import pytest
import torch
from diffusers.models.activations import GEGLU
from torch import nn
from torch.nn import functional as F

from overpaint.nn.packed import PackedConv2d, PackedGEGLU, PackedLinear, pack_network

BF16 = torch.bfloat16
BF16_STEP = 2.0**-8
"""Half the relative distance of adjacent numbers in bf16."""


def available(dtype: torch.dtype) -> bool:
    network = nn.Sequential(nn.Conv2d(4, 4, 3)).to(dtype)
    pack_network(network)
    return isinstance(network[0], PackedConv2d)


needs_fp32 = pytest.mark.skipif(not available(torch.float32), reason="no oneDNN on this CPU")
needs_bf16 = pytest.mark.skipif(not available(BF16), reason="no bf16 on this CPU")


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


@needs_fp32
@torch.no_grad()
@pytest.mark.parametrize("stride", [1, 2])
def test_packed_convolution_of_changing_shapes_matches_the_plain_one(stride: int) -> None:
    """Each new input shape packs the weight again."""
    plain = nn.Conv2d(16, 32, 3, stride=stride, padding=1)
    packed = PackedConv2d(plain)
    for shape in [(2, 16, 16, 16), (1, 16, 8, 12), (2, 16, 16, 16), (5, 16, 4, 4)]:
        x = noise(*shape)
        assert (packed(x) - plain(x)).abs().max() < 1e-5


@needs_fp32
@torch.no_grad()
def test_packed_convolution_with_a_changed_weight_is_packed_again() -> None:
    plain = nn.Conv2d(8, 8, 3)
    packed = PackedConv2d(plain)
    x = noise(1, 8, 8, 8)
    packed(x)
    plain.weight.mul_(2)
    assert (packed(x) - plain(x)).abs().max() < 1e-5


@needs_bf16
@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
def test_packed_linear_layer_matches_the_plain_one(*, bias: bool) -> None:
    plain = nn.Linear(48, 80, bias=bias).to(BF16)
    packed = PackedLinear(plain.weight, plain.bias)
    for shape in [(2, 48), (2, 77, 48), (600, 48)]:
        x = noise(*shape).to(BF16)
        torch.testing.assert_close(packed(x), plain(x), rtol=2 * BF16_STEP, atol=1e-3)


@needs_bf16
@torch.no_grad()
def test_packed_geglu_is_at_least_as_close_to_exact_as_the_plain_one() -> None:
    """The packed layer does not round the input of the gelu."""
    plain = GEGLU(48, 80).to(BF16)
    x = noise(2, 30, 48).to(BF16)
    value, gate = F.linear(x.double(), plain.proj.weight.double(), plain.proj.bias.double()).chunk(
        2, -1
    )
    exact = value * F.gelu(gate)
    errors = [(layer(x).double() - exact).abs().mean() for layer in (PackedGEGLU(plain), plain)]
    assert errors[0] < 1.05 * errors[1]


@needs_fp32
def test_pack_network_in_fp32_packs_convolutions_only() -> None:
    network = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1), nn.Linear(4, 4))
    pack_network(network)
    assert [type(layer) for layer in network] == [PackedConv2d, nn.Conv2d, nn.Linear]


@needs_bf16
def test_pack_network_in_bf16_packs_nested_linear_layers() -> None:
    network = nn.Sequential(nn.Sequential(nn.Linear(4, 4)), nn.ModuleList([GEGLU(4, 4)])).to(BF16)
    pack_network(network)
    inner, listed = network
    assert isinstance(inner, nn.Sequential)
    assert isinstance(listed, nn.ModuleList)
    assert isinstance(inner[0], PackedLinear)
    assert isinstance(listed[0], PackedGEGLU)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_pack_network_in_other_dtypes_changes_nothing(dtype: torch.dtype) -> None:
    network = nn.Sequential(nn.Conv2d(4, 4, 3)).to(dtype)
    pack_network(network)
    assert isinstance(network[0], nn.Conv2d)
