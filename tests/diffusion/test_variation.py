"""Variation seeds: the noise of two seeds, mixed spherically."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from overpaint import load
from overpaint.diffusion.noise import NoiseSource, Variation, slerp
from overpaint.errors import RequestError
from overpaint.painter import Painter
from overpaint.provenance import metadata
from overpaint.provenance.importers.a1111 import read_a1111
from overpaint.request import Request

SEEDS = st.integers(0, 2**63 - 1)
SHAPES = st.tuples(st.just(1), st.integers(1, 4), st.integers(1, 32), st.integers(1, 32))


@pytest.fixture(scope="module")
def painter() -> Painter:
    return load("miniature", device="cpu")


def reference_slerp(val: float, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """AUTOMATIC1111's `slerp` (modules/rng.py), for latents [C, h, w]."""
    low_norm = low / torch.norm(low, dim=1, keepdim=True)
    high_norm = high / torch.norm(high, dim=1, keepdim=True)
    omega = torch.acos((low_norm * high_norm).sum(1))
    so = torch.sin(omega)
    return (torch.sin((1.0 - val) * omega) / so).unsqueeze(1) * low + (
        torch.sin(val * omega) / so
    ).unsqueeze(1) * high


@settings(max_examples=60, deadline=None)
@given(SEEDS, SEEDS, SHAPES)
def test_strength_0_and_1_draw_the_noise_of_one_seed(
    seed: int, subseed: int, shape: tuple[int, ...]
) -> None:
    for strength, only in ((0.0, seed), (1.0, subseed)):
        mixed, plain = NoiseSource(seed, Variation(subseed, strength)), NoiseSource(only)
        for _ in range(3):
            assert torch.equal(mixed.draw(shape), plain.draw(shape))


@settings(max_examples=60, deadline=None)
@given(SEEDS, SEEDS, st.floats(0.01, 0.99), SHAPES)
def test_mixed_noise_is_finite_and_depends_only_on_seeds(
    seed: int, subseed: int, strength: float, shape: tuple[int, ...]
) -> None:
    one, two = (NoiseSource(seed, Variation(subseed, strength)) for _ in range(2))
    first = one.draw(shape)
    assert first.isfinite().all()
    assert torch.equal(first, two.draw(shape))
    same = NoiseSource(seed, Variation(seed, strength)).draw(shape)
    assert torch.equal(same, NoiseSource(seed).draw(shape))


@pytest.mark.parametrize("strength", [0.1, 0.5, 0.9])
def test_slerp_equals_that_of_the_web_ui(strength: float) -> None:
    low, high = NoiseSource(1).draw((1, 4, 64, 48)), NoiseSource(2).draw((1, 4, 64, 48))
    expected = reference_slerp(strength, low[0], high[0])
    torch.testing.assert_close(slerp(low, high, strength)[0], expected, atol=1e-5, rtol=1e-4)
    assert float(slerp(low, high, strength).std()) == pytest.approx(1, abs=0.02)


# Pictures


def paint(painter: Painter, **fields: Any) -> list[np.ndarray[Any, Any]]:
    options: dict[str, Any] = {"num_inference_steps": 3, "width": 64, "height": 64} | fields
    return [np.asarray(image) for image in painter.create("a cup", **options).images]


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "euler_a", "dpmpp_sde"])
def test_strength_0_and_1_paint_the_picture_of_one_seed(painter: Painter, sampler: str) -> None:
    (first,) = paint(painter, sampler=sampler, seed=7)
    (second,) = paint(painter, sampler=sampler, seed=11)
    ends = (paint(painter, sampler=sampler, seed=7, subseed=11, subseed_strength=s) for s in (0, 1))
    (at_0,), (at_1,) = ends
    (between,) = paint(painter, sampler=sampler, seed=7, subseed=11, subseed_strength=0.5)
    assert np.array_equal(at_0, first)
    assert np.array_equal(at_1, second)
    assert not np.array_equal(between, first)
    assert not np.array_equal(between, second)


def test_picture_of_a_batch_equals_its_variation_alone(painter: Painter) -> None:
    """All pictures have the seed; picture i has subseed + i."""
    several = paint(painter, seed=7, subseed=11, subseed_strength=0.3, num_images=3)
    alone = [paint(painter, seed=7, subseed=11 + i, subseed_strength=0.3)[0] for i in range(3)]
    assert all(map(np.array_equal, several, alone))


def test_record_of_each_picture_repeats_it(painter: Painter) -> None:
    result = painter.create(
        "a cup",
        num_inference_steps=2,
        width=64,
        height=64,
        seed=7,
        subseed=11,
        subseed_strength=0.3,
        num_images=2,
    )
    assert result.seeds == (7, 7)
    record = result.metadata[1]
    assert (record["seed"], record["subseed"]) == (7, 12)
    text = metadata.format_parameters(record)
    assert "Seed: 7, " in text
    assert "Variation seed: 12, Variation seed strength: 0.3" in text
    found = read_a1111(text)
    assert found
    assert (found.fields["subseed"], found.fields["subseed_strength"]) == (12, 0.3)
    assert "Variation" not in " ".join(found.notes)


def test_subseed_is_drawn_once_if_it_has_an_effect() -> None:
    request = Request(subseed_strength=0.2)
    assert request.subseed is not None
    assert Request(**request.model_dump()) == request
    assert Request().subseed is None


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"subseed": -1}, "subseed"),
        ({"subseed_strength": 1.1}, "subseed_strength"),
        ({"subseed_strength": float("nan")}, "subseed_strength"),
        ({"subseed": 2**63 - 1, "num_images": 2, "subseed_strength": 0.1}, "subseed"),
    ],
)
def test_invalid_variation_is_refused(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(RequestError) as caught:
        Request(**fields)
    assert caught.value.field == field
