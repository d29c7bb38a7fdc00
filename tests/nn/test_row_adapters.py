"""Adapters per row compared with layers whose weights contain the change."""

from functools import partial
from typing import Any

import pytest
import torch
from diffusers.models.activations import GEGLU
from torch import Tensor, nn

from overpaint.nn import packed
from overpaint.nn.lowrank import (
    Dora,
    FullDelta,
    Loha,
    Lokr,
    LowRank,
    WeightDelta,
    merge_deltas,
)
from overpaint.nn.packed import (
    find_layer,
    list_weight_shapes,
    pack_network,
    read_weight,
    unpacked_state,
    write_weight,
)
from overpaint.nn.row_adapters import RowAdapters
from overpaint.nn.weight_slots import make_weight_slot


class Network(nn.Module):
    """Return a network with a layer of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.proj_in = nn.Linear(8, 8, bias=False)
        self.ff = nn.Sequential(GEGLU(8, 16), nn.Linear(16, 8))
        self.one = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        tokens = self.proj_in(x.flatten(2).transpose(1, 2))
        tokens = tokens + self.ff(tokens)
        return self.one(tokens.transpose(1, 2).reshape(x.shape))


def network(dtype: torch.dtype) -> Network:
    torch.manual_seed(0)
    made = Network().to(dtype).eval().requires_grad_(False)
    pack_network(made)
    return made


def changes(seed: int) -> dict[str, WeightDelta]:
    """Return a delta of each kind for each layer."""
    draw = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return 0.3 * torch.randn(*shape, generator=draw)

    return {
        "conv": LowRank(noise(2, 4, 3, 3), noise(8, 2, 1, 1), 0.5),
        "proj_in": Dora(LowRank(noise(2, 8), noise(8, 2), 1.0), 1 + noise(8)),
        "ff.0.proj": LowRank(noise(2, 8), noise(32, 2), 0.7),
        "ff.1": Loha((noise(8, 2), noise(2, 16), None), (noise(8, 2), noise(2, 16), None), 2.0),
        "one": Lokr((noise(2, 2),), (noise(2, 4, 1, 1),), 1.0) if seed % 2
        else FullDelta(noise(4, 8, 1, 1)),
    }  # fmt: skip


SETS: tuple[tuple[tuple[int, float], ...], ...] = (
    (),
    ((1, 1.0),),
    ((2, -0.5),),
    ((1, 0.3), (2, 1.0)),
)
"""For each row, the seeds of its deltas and their scales."""


def has(own: Any, name: str) -> list[tuple[WeightDelta, float]]:
    return [(changes(seed)[name], scale) for seed, scale in own if name in changes(seed)]


def merged(dtype: torch.dtype, own: tuple[tuple[int, float], ...]) -> Network:
    made = network(dtype)
    for name in list_weight_shapes(made):
        held = find_layer(made, name)
        weight = read_weight(held)
        total = weight.float()
        for change, scale in has(own, name):
            total = total + scale * change.to_dense(weight)
        write_weight(held, total)
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_row_adapters_match_changed_layers(dtype: torch.dtype) -> None:
    x = torch.randn(len(SETS), 4, 8, 8, generator=torch.Generator().manual_seed(9)).to(dtype)
    made = network(dtype)
    assert set(list_weight_shapes(made)) == set(changes(1))
    sides = RowAdapters(made, lambda own: list_weight_shapes(made) if own else (), has)
    with sides.applied(SETS):
        together = made(x)
    with sides.applied(SETS):
        again = made(x)
    assert torch.equal(again, together)
    atol, rtol = (1e-4, 1e-4) if dtype == torch.float32 else (0.15, 0.1)
    for own, row, alone in zip(SETS, x.split(1), together.split(1), strict=True):
        torch.testing.assert_close(alone, merged(dtype, own)(row), atol=atol, rtol=rtol)
    assert torch.equal(made(x), network(dtype)(x))  # nothing is applied after the `with` block


def test_written_weight_is_read_back_from_every_layer() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        made = network(dtype)
        before = {k: v.clone() for k, v in unpacked_state(made).items()}
        torch.manual_seed(0)
        wanted = Network().to(dtype).state_dict()
        assert before.keys() == wanted.keys()
        assert all(torch.equal(v, wanted[k]) for k, v in before.items())
        for name in list_weight_shapes(made):
            held = find_layer(made, name)
            weight = read_weight(held).clone()
            write_weight(held, weight + 1)
            assert torch.equal(read_weight(held), weight + 1)
            write_weight(held, weight)
        assert all(torch.equal(v, before[k]) for k, v in unpacked_state(made).items())


def test_layer_after_write_stays_packed() -> None:
    made = network(torch.bfloat16)
    kinds = {name: type(module) for name, module in made.named_modules()}
    for name in list_weight_shapes(made):
        held = find_layer(made, name)
        write_weight(held, read_weight(held))
    assert {name: type(module) for name, module in made.named_modules()} == kinds
    if packed.PackedLinear in kinds.values():  # where packing is faster
        assert isinstance(made.ff[0], packed.PackedGEGLU)


class Normed(nn.Module):
    """Layers with biases and norms, which adapters can change."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(2, 4)
        self.conv = nn.Conv2d(4, 8, 3, padding=1)
        self.norm2 = nn.LayerNorm(8)
        self.ff = GEGLU(8, 8)
        self.out = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.conv(self.norm1(x)).flatten(2).mT
        return self.out(self.ff(self.norm2(tokens)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_row_adapters_of_biases_and_norms_match_changed_vectors(dtype: torch.dtype) -> None:
    def build() -> nn.Module:
        torch.manual_seed(1)
        made = Normed().to(dtype).requires_grad_(False)
        packed.pack_network(made)
        return made

    generator = torch.Generator().manual_seed(2)
    made = build()
    shapes = packed.list_vector_shapes(made)
    assert {"norm1.weight", "norm2.bias", "conv.bias", "ff.proj.bias", "out.bias"} <= set(shapes)
    deltas = {
        (seed, name): FullDelta(0.3 * torch.randn(shape, generator=generator))
        for seed in (1, 2)
        for name, shape in shapes.items()
    }

    def has_vector(own: Any, name: str) -> list[tuple[WeightDelta, float]]:
        return [(deltas[seed, name], scale) for seed, scale in own if (seed, name) in deltas]

    x = torch.randn(len(SETS), 4, 8, 8, generator=generator).to(dtype)
    rows = RowAdapters(made, lambda own: shapes if own else (), has_vector)
    with rows.applied(SETS):
        together = made(x)
    atol, rtol = (1e-4, 1e-4) if dtype == torch.float32 else (0.2, 0.1)
    for own, row, alone in zip(SETS, x.split(1), together.split(1), strict=True):
        changed = build()
        for name in shapes:
            slot = make_weight_slot(changed, name)
            slot.change(partial(merge_deltas, changes=has_vector(own, name)))
        torch.testing.assert_close(alone, changed(row), atol=atol, rtol=rtol)
    assert torch.equal(made(x), build()(x))
