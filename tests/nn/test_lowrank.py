"""Deltas merged into a weight: the exact sum, rounded once."""

import pytest
import torch

from overpaint.nn.lowrank import FullDelta, Loha, LowRank, WeightDelta, merge_deltas

HALF_STEP = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
"""The largest relative rounding error of each dtype (for fp32, twice that)."""


@pytest.mark.parametrize("dtype", HALF_STEP)
@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kinds", ["low", "low, low", "low, whole", "hadamard, low"])
def test_merged_weight_is_the_sum_rounded_once(
    kinds: str, stored: torch.dtype, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    weight = torch.randn(96, 64).to(dtype)
    known: dict[str, WeightDelta] = {
        "low": LowRank(torch.randn(8, 64).to(stored), torch.randn(96, 8).to(stored), 0.5),
        "whole": FullDelta(torch.randn(96, 64).to(stored)),
        "hadamard": Loha(
            (torch.randn(96, 4).to(stored), torch.randn(4, 64).to(stored), None),
            (torch.randn(96, 4).to(stored), torch.randn(4, 64).to(stored), None),
            0.25,
        ),
    }
    changes = [(known[kind], 0.7 - 1.1 * i) for i, kind in enumerate(kinds.split(", "))]
    exact = weight.double() + sum(scale * c.to_dense(weight).double() for c, scale in changes)
    merged = merge_deltas(weight, changes)
    assert merged.dtype == dtype
    error = (merged.double() - exact).abs()
    assert (error <= 1.01 * HALF_STEP[dtype] * exact.abs() + 2e-5).all()


def test_merged_convolution_keeps_its_memory_layout() -> None:
    weight = torch.randn(8, 4, 3, 3).to(memory_format=torch.channels_last)
    change = LowRank(torch.randn(2, 4, 3, 3), torch.randn(8, 2, 1, 1), 1.0)
    merged = merge_deltas(weight, [(change, 0.5)])
    torch.testing.assert_close(merged, weight + 0.5 * change.to_dense(weight))
    assert merged.is_contiguous(memory_format=torch.channels_last)
