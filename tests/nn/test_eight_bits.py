"""Linear layers whose weights have 8 bits compute nearly what they did before."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from overpaint.nn.eight_bits import (
    FORMATS,
    MAX_ROTATED,
    EightBitLinear,
    list_transformers,
    list_weight_readers,
    rotate,
    round_layers,
)
from overpaint.nn.kernels import EightBits
from overpaint.nn.packed import list_vector_shapes, list_weight_shapes, read_weight
from overpaint.nn.weight_slots import make_weight_slot
from tests.tiny import tiny_model

SHAPES = [(640, 640), (1280, 5120), (10240, 1280), (1280, 2048)]
"""Weights of SDXL's transformers: attention, feed-forward, and keys from prompts."""

MAX_ERRORS: dict[tuple[EightBits, bool], float] = {
    ("int8", False): 0.01,
    ("int8", True): 0.015,
    ("fp8", False): 0.03,
    ("fp8", True): 0.045,
}
"""The largest error of a layer's outputs, relative to their root mean square, by the format and
whether the inputs have 8 bits too."""


def make_layer(out: int = 48, inputs: int = 96) -> nn.Linear:
    torch.manual_seed(5)
    return nn.Linear(inputs, out).requires_grad_(False)


def relative_error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).square().mean().sqrt() / wanted.square().mean().sqrt())


def with_outliers(x: Tensor) -> Tensor:
    """Make a few inputs a hundred times as large, as those of SDXL's attention are."""
    x[..., 3], x[..., 17] = 100 * x[..., 3], -60 * x[..., 17]
    return x


@pytest.mark.parametrize("multiplies", [False, True], ids=["weights", "weights and inputs"])
@pytest.mark.parametrize("name", ["int8", "fp8"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_layers_of_sdxl_keep_their_outputs(
    shape: tuple[int, int], name: EightBits, multiplies: bool
) -> None:
    source, x = make_layer(*shape), torch.randn(2, 40, shape[1])
    layer = EightBitLinear(source, FORMATS[name], multiplies=multiplies)
    assert layer.shape == source.weight.shape
    error = relative_error(layer(x), source(x))
    assert 0 < error < MAX_ERRORS[name, multiplies]


def test_product_in_int8_is_exact_for_rounded_numbers() -> None:
    layer = EightBitLinear(make_layer(), FORMATS["int8"], multiplies=True)
    x = torch.randn(5, 96)
    codes, scales = FORMATS["int8"].encode(rotate(x, 32))
    wanted = F.linear((codes * scales).double(), (layer.codes * layer.scales).double())
    with_zeros = layer(torch.zeros(5, 96))  # the bias
    torch.testing.assert_close(layer(x).double(), wanted + with_zeros, atol=1e-5, rtol=1e-5)


def test_rotation_keeps_products_and_spreads_large_inputs() -> None:
    x, weight = with_outliers(torch.randn(50, 640)), torch.randn(30, 640)
    turned = rotate(x, MAX_ROTATED)
    torch.testing.assert_close(
        turned @ rotate(weight, MAX_ROTATED).T, x @ weight.T, atol=1e-2, rtol=1e-4
    )
    torch.testing.assert_close(rotate(turned, MAX_ROTATED), x, atol=1e-4, rtol=1e-4)
    assert turned.abs().max() < 0.3 * x.abs().max()


def test_rotation_makes_products_with_large_inputs_more_exact() -> None:
    source, x = make_layer(64, 640), with_outliers(torch.randn(200, 640))
    layer = EightBitLinear(source, FORMATS["int8"], multiplies=True)
    plain = EightBitLinear(source, FORMATS["int8"], multiplies=True)
    plain.rotated = 1
    codes, scales = FORMATS["int8"].encode(source.weight)
    plain.codes.data, plain.scales.data = codes, scales
    assert relative_error(layer(x), source(x)) < 0.5 * relative_error(plain(x), source(x))


@pytest.mark.parametrize("inputs", [8, 24, 96, 640])
def test_few_rows_and_inputs_are_multiplied(inputs: int) -> None:
    source = make_layer(16, inputs)
    layer = EightBitLinear(source, FORMATS["int8"], multiplies=True)
    assert relative_error(layer(torch.ones(1, inputs)), source(torch.ones(1, inputs))) < 0.02


def test_layer_of_zeros_gives_its_bias() -> None:
    source = make_layer()
    source.weight.zero_()
    for name in FORMATS:
        for multiplies in (False, True):
            layer = EightBitLinear(source, FORMATS[name], multiplies=multiplies)
            wanted = source(torch.zeros(3, 96))  # the bias
            assert torch.equal(layer(torch.zeros(3, 96)), wanted)


def network(name: EightBits = "int8") -> nn.Module:
    unet = tiny_model().unet
    for _, transformer in list_transformers(unet):
        round_layers(transformer, FORMATS[name], multiplies=False)
    return unet


def test_only_linear_layers_of_transformers_have_8_bits() -> None:
    before, unet = tiny_model().unet, network()
    for name, module in unet.named_modules():
        if isinstance(before_module := _find(before, name), nn.Linear):
            assert isinstance(module, EightBitLinear) == (".attentions." in f".{name}"), name
            assert isinstance(module, EightBitLinear | nn.Linear), before_module
    assert list_weight_shapes(unet) == list_weight_shapes(before)
    assert list_vector_shapes(unet) == list_vector_shapes(before)
    linear = {f"{n}.weight" for n, m in unet.named_modules() if isinstance(m, EightBitLinear)}
    assert set(list_weight_readers(unet)) == linear


def _find(network: nn.Module, name: str) -> nn.Module | None:
    try:
        return network.get_submodule(name)
    except AttributeError:
        return None


def test_weights_take_a_quarter_of_fp32() -> None:
    source = make_layer(512, 512)
    layer = EightBitLinear(source, FORMATS["fp8"], multiplies=False)
    own = sum(tensor.nbytes for tensor in layer.state_dict().values())
    assert own < 0.26 * sum(tensor.nbytes for tensor in source.state_dict().values())


@pytest.mark.parametrize("multiplies", [False, True])
def test_slot_adds_a_product_without_rounding_it(multiplies: bool) -> None:
    parent = nn.Sequential(EightBitLinear(make_layer(), FORMATS["int8"], multiplies=multiplies))
    x, before = torch.randn(4, 96), None
    slot = make_weight_slot(parent, "0")
    before = parent(x)
    up, down = 1e-5 * torch.randn(48, 2), torch.randn(2, 96)  # smaller than a step of the codes
    slot.add(up, down)
    torch.testing.assert_close(parent(x) - before, x @ down.T @ up.T, atol=1e-6, rtol=1e-2)
    slot.restore()
    assert torch.equal(parent(x), before)


def test_slot_replaces_the_weight_by_a_function_of_it() -> None:
    layer = EightBitLinear(make_layer(), FORMATS["int8"], multiplies=True)
    parent = nn.Sequential(layer)
    slot, x = make_weight_slot(parent, "0"), torch.randn(4, 96)
    assert torch.equal(slot.pristine, read_weight(layer))
    slot.change(lambda weight: 2 * weight)
    wanted = F.linear(x, 2 * layer.weight, layer.bias)
    assert torch.equal(parent(x), wanted)
    slot.add(torch.zeros(48, 1), torch.zeros(1, 96))
    slot.restore()
    assert torch.equal(parent(x), layer(x))


def test_fp8_product_of_a_gpu_gets_rows_and_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    def multiply(a: Tensor, b: Tensor, *, scale_a: Tensor, scale_b: Tensor, out_dtype: Any) -> Any:
        given.append((scale_a.shape, scale_b.shape, out_dtype))
        return ((a.float() @ b.float()) * scale_a * scale_b).to(out_dtype)

    monkeypatch.setattr(torch, "_scaled_mm", multiply)
    source, x = make_layer(), torch.randn(2, 20, 96)
    layer = EightBitLinear(source, FORMATS["fp8"], multiplies=True)
    assert relative_error(layer(x), source(x)) < 0.045
    assert given == [((40, 1), (1, 48), torch.bfloat16)]
