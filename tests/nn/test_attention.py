"""Attention compared with torch, and contexts: cached, stacked and padded."""

from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention as DiffusersAttention
from torch import Tensor
from torch.nn import functional as F

from overpaint.errors import CheckpointError
from overpaint.nn.attention import MAX_UNFUSED_KEYS, QUERIES_PER_BLOCK, Attention, Context, attend

WIDTH, TOKEN = 24, 20


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def layer() -> Attention:
    torch.manual_seed(0)
    source = DiffusersAttention(WIDTH, cross_attention_dim=TOKEN, heads=3, dim_head=8)
    return Attention(source).requires_grad_(False)


def tokens(generator: torch.Generator, length: int, rows: int = 1) -> Tensor:
    return torch.randn(rows, length, TOKEN, generator=generator)


def picture(generator: torch.Generator, rows: int) -> Tensor:
    return torch.randn(rows, 10, WIDTH, generator=generator)


def test_context_attention_matches_attention_to_its_tokens(
    layer: Attention, generator: torch.Generator
) -> None:
    x, prompt = picture(generator, 2), tokens(generator, 7, rows=2)
    context = Context(prompt)
    first, again = layer(x, context), layer(x, context)
    assert torch.equal(first, layer(x, prompt))
    assert torch.equal(first, again)
    assert context.keys_values(layer) is context.keys_values(layer)


def test_context_computes_keys_and_values_once(
    layer: Attention, generator: torch.Generator
) -> None:
    calls: list[tuple[int, ...]] = []
    layer.to_k.register_forward_pre_hook(lambda _, args: calls.append(tuple(args[0].shape)))
    row, other = Context(tokens(generator, 7)), Context(tokens(generator, 7))
    for batch in ([row], [row, other], [other, row, row]):
        stacked = Context.stack(batch)
        for _ in range(3):
            layer(picture(generator, len(batch)), stacked)
    assert calls == [(1, 7, TOKEN)] * 2


@pytest.mark.parametrize("lengths", [(7, 7, 7), (7, 14, 3)])
def test_each_row_of_a_stack_matches_the_row_alone(
    layer: Attention, generator: torch.Generator, lengths: tuple[int, ...]
) -> None:
    rows = [Context(tokens(generator, length)) for length in lengths]
    x = picture(generator, len(rows))
    together = layer(x, Context.stack(rows))
    alone = torch.cat([layer(x[i : i + 1], row) for i, row in enumerate(rows)])
    assert (together - alone).abs().max() < 1e-5


def test_stack_of_stacks_pads_every_row(layer: Attention, generator: torch.Generator) -> None:
    parts = [Context(tokens(generator, 5, rows=2)), Context(tokens(generator, 3))]
    nested = Context.stack([Context.stack(parts), Context(tokens(generator, 9))])
    bias = nested.keys_values(layer).bias
    assert bias is not None
    assert bias.isfinite().sum(dim=-1).flatten().tolist() == [5, 5, 3, 9]


def test_padding_has_exactly_no_weight(layer: Attention, generator: torch.Generator) -> None:
    short, long = Context(tokens(generator, 3)), Context(tokens(generator, 9))
    stacked = Context.stack([short, long])
    x = picture(generator, 2)
    before = layer(x, stacked)
    stacked.keys_values(layer).values[0, :, 3:] = 1e30
    assert torch.equal(layer(x, stacked), before)


def test_stack_of_one_part_is_that_part(generator: torch.Generator) -> None:
    row = Context(tokens(generator, 7))
    assert Context.stack([row]) is row


def test_context_caches_keys_and_values_per_layer(generator: torch.Generator) -> None:
    layers = [
        Attention(DiffusersAttention(WIDTH, cross_attention_dim=TOKEN, heads=3, dim_head=8))
        for _ in range(2)
    ]
    context = Context(tokens(generator, 7))
    keys = [context.keys_values(layer).keys for layer in layers]
    assert not torch.equal(*keys)


def test_attention_gradients_reach_projections_and_tokens(generator: torch.Generator) -> None:
    layer = Attention(DiffusersAttention(WIDTH, cross_attention_dim=TOKEN, heads=3, dim_head=8))
    prompt = tokens(generator, 7).requires_grad_()
    layer(picture(generator, 1), prompt).sum().backward()
    assert prompt.grad is not None
    assert all(parameter.grad is not None for parameter in layer.parameters())


@pytest.mark.parametrize("extra", [{"residual_connection": True}, {"norm_num_groups": 8}])
def test_attention_with_other_options_is_rejected_by_name(extra: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"mid\.attn1: .*(residual_connection|group_norm)"):
        Attention(DiffusersAttention(WIDTH, heads=3, dim_head=8, **extra), "mid.attn1")


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("keys", [77, MAX_UNFUSED_KEYS, MAX_UNFUSED_KEYS + 1])
def test_attention_in_bf16_on_the_cpu_is_close_to_exact(
    generator: torch.Generator, keys: int, *, padded: bool
) -> None:
    """Rounding scores and weights to bf16 (2⁻⁸ each) changes a mean of unit values little.

    The last 9 keys of the second row are padding. The queries fill more than one block, and not a
    whole number of blocks.
    """
    q, k, v = (
        torch.randn(2, 3, length, 16, generator=generator).bfloat16()
        for length in (QUERIES_PER_BLOCK + 30, keys, keys)
    )
    bias = None
    if padded:
        bias = torch.zeros(2, 1, 1, keys, dtype=torch.bfloat16)
        bias[1, ..., -9:] = -torch.inf
    exact = F.scaled_dot_product_attention(
        q.double(), k.double(), v.double(), bias if bias is None else bias.double()
    )
    fused = F.scaled_dot_product_attention(q, k, v, bias)
    error = (attend(q, k, v, bias).double() - exact.transpose(1, 2).flatten(2)).abs()
    assert error.max() < 0.04
    assert error.mean() < 4 * (fused.double() - exact).abs().mean()
