"""Weight slots: write weights in place and restore the pristine ones."""

import pytest
import torch
from diffusers.models.activations import GEGLU
from torch import nn

from overpaint.nn.kernels import is_fast
from overpaint.nn.packed import PackedGEGLU, PackedLinear, pack_network, read_weight
from overpaint.nn.packed import find_layer as held
from overpaint.nn.weight_slots import PlainSlot, TiledSlot, make_weight_slot
from tests.nn.test_lowrank import HALF_STEP

LAYERS = {"tiles": "0", "half a tile": "1", "geglu": "2.proj", "convolution": "3"}


def network(dtype: torch.dtype) -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Linear(64, 128), nn.Linear(96, 80), GEGLU(64, 128), nn.Conv2d(8, 16, 3, padding=1)
    )
    layers.to(dtype).requires_grad_(False)
    pack_network(layers)
    return layers


def inputs(name: str, dtype: torch.dtype) -> torch.Tensor:
    shape = (2, 8, 5, 5) if name == "3" else (7, 96 if name == "1" else 64)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("dtype", HALF_STEP)
@pytest.mark.parametrize("name", LAYERS.values(), ids=LAYERS)
def test_weight_slot_restores_the_pristine_weight(name: str, dtype: torch.dtype) -> None:
    layers = network(dtype)
    before = read_weight(held(layers, name)).clone()
    x = inputs(name, dtype)
    result = layers[int(name[0])](x) if dtype != torch.float16 else None
    slot = make_weight_slot(layers, name)
    for _ in range(3):
        other = torch.randn_like(before)
        slot.change(lambda _, other=other: other)
        assert torch.equal(read_weight(held(layers, name)), other)
        slot.restore()
        assert torch.equal(read_weight(held(layers, name)), before)
        assert torch.equal(slot.pristine, before)
        if result is not None:
            assert torch.equal(layers[int(name[0])](x), result)


@pytest.mark.parametrize("dtype", HALF_STEP)
@pytest.mark.parametrize("name", LAYERS.values(), ids=LAYERS)
def test_weight_slot_adds_a_product_to_the_pristine_weight(name: str, dtype: torch.dtype) -> None:
    layers = network(dtype)
    slot = make_weight_slot(layers, name)
    weight = slot.pristine.double()
    for seed in range(2):  # the second product replaces the first
        torch.manual_seed(seed)
        up, down = torch.randn(weight.shape[0], 5), torch.randn(5, weight[0].numel())
        slot.add(up, down)
        exact = weight + (up.double() @ down.double()).view(weight.shape)
        allowed = 1.01 * HALF_STEP[dtype] * exact.abs() + 2e-5
        if dtype != torch.float32 and is_fast(torch.device("cpu"), dtype):
            size = up.double().abs() @ down.double().abs()
            allowed += 2.02 * HALF_STEP[dtype] * size.view(weight.shape)
        merged = read_weight(held(layers, name)).double()
        assert ((merged - exact).abs() <= allowed).all()
    slot.restore()
    assert torch.equal(slot.pristine.double(), weight)
    assert torch.equal(read_weight(held(layers, name)).double(), weight)


def test_tiled_slot_matches_the_plain_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight outside of the tiles gives the same result."""
    layers = network(torch.bfloat16)
    if not isinstance(layers[0], PackedLinear) or not isinstance(layers[2], PackedGEGLU):
        pytest.skip("this CPU has no bf16")
    if not isinstance(make_weight_slot(layers, "0"), TiledSlot):
        pytest.skip("this CPU uses another layout of tiles")
    assert isinstance(make_weight_slot(layers, "1"), PlainSlot)
    other = network(torch.bfloat16)
    tiles = {name: make_weight_slot(layers, name) for name in ("0", "2.proj")}
    assert all(isinstance(place, TiledSlot) for place in tiles.values())
    monkeypatch.setattr(PackedLinear, "tiled", False)
    for name in tiles:
        unlike = make_weight_slot(other, name)
        assert isinstance(unlike, PlainSlot)
        rows, columns = unlike.pristine.shape
        up, down = torch.randn(rows, 5), torch.randn(5, columns)
        tiles[name].add(up, down)
        unlike.add(up, down)
        x = inputs(name, torch.bfloat16)
        assert torch.equal(layers[int(name[0])](x), other[int(name[0])](x))
