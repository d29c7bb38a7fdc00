"""Classifier-free guidance as a function of two predictions."""

import pytest
import torch

from overpaint.diffusion.guidance import Guidance

SHAPE = (1, 4, 8, 8)


@pytest.fixture
def predictions() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(SHAPE, generator=generator), torch.randn(SHAPE, generator=generator)


def test_guidance_scale_1_returns_the_conditional_prediction(
    predictions: tuple[torch.Tensor, torch.Tensor],
) -> None:
    torch.testing.assert_close(Guidance(1.0)(*predictions), predictions[0])


def test_guidance_scale_above_1_extrapolates(
    predictions: tuple[torch.Tensor, torch.Tensor],
) -> None:
    conditional, unconditional = predictions
    expected = conditional + 6.5 * (conditional - unconditional)
    torch.testing.assert_close(Guidance(7.5)(*predictions), expected)


def test_guidance_rescale_1_restores_the_standard_deviation(
    predictions: tuple[torch.Tensor, torch.Tensor],
) -> None:
    guided = Guidance(7.5, rescale=1.0)(*predictions)
    torch.testing.assert_close(guided.std(), predictions[0].std())


def test_guidance_rescale_half_is_halfway(predictions: tuple[torch.Tensor, torch.Tensor]) -> None:
    plain, full = Guidance(5.0)(*predictions), Guidance(5.0, rescale=1.0)(*predictions)
    torch.testing.assert_close(Guidance(5.0, rescale=0.5)(*predictions), (plain + full) / 2)


@pytest.mark.parametrize(
    ("guidance", "progress", "acts"),
    [
        (Guidance(5.0), 0.0, True),
        (Guidance(5.0), 1.0, True),
        (Guidance(1.0), 0.5, False),
        (Guidance(0.0), 0.5, False),
        (Guidance(5.0, interval=(0.2, 0.8)), 0.1, False),
        (Guidance(5.0, interval=(0.2, 0.8)), 0.5, True),
        (Guidance(5.0, interval=(0.2, 0.8)), 0.9, False),
    ],
)
def test_guidance_acts_inside_its_interval_only(
    guidance: Guidance, progress: float, acts: bool
) -> None:
    assert guidance.acts(progress) is acts
