"""Langevin steps for masks: the painted part follows the kept one, and the kept one stays."""

import math
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from overpaint.diffusion.constraint import MaskConstraint
from overpaint.diffusion.denoise import Trajectory, step
from overpaint.diffusion.langevin import FreeConstraint, add_langevin_steps
from overpaint.diffusion.planner import plan
from overpaint.diffusion.samplers import Sampler, get_sampler
from overpaint.diffusion.schedule import NoiseSchedule, make_sigmas
from overpaint.errors import RequestError
from overpaint.imaging import codec
from overpaint.models.model import Model
from overpaint.models.noise_config import NoiseConfig
from overpaint.request import Request
from tests.tiny import tiny_model

CORRELATION = 0.9
KEPT = 1.5
"""The first of two values, of a Gaussian with unit variances and this correlation."""

EXACT = CORRELATION * KEPT, math.sqrt(1 - CORRELATION**2)
"""Mean and standard deviation of the second value, given the first."""

COUNT = 20_000


def denoise(x: Tensor, sigma: float) -> Tensor:
    """Return E[x0 | x] for the Gaussian."""
    covariance = torch.tensor([[1, CORRELATION], [CORRELATION, 1]])
    return x @ (covariance @ torch.linalg.inv(covariance + sigma**2 * torch.eye(2))).T


def paint_second(sampler: Sampler, constraint: MaskConstraint) -> tuple[float, float]:
    """Return the mean and the standard deviation of the second value."""
    generator = torch.Generator().manual_seed(0)

    def noise() -> Tensor:
        return torch.randn(COUNT, 1, 1, 2, generator=generator)

    sigmas = make_sigmas("karras", 30, NoiseSchedule(NoiseConfig()))
    drawn = noise()
    x = constraint.start(drawn * math.sqrt(sigmas[0] ** 2 + 1), drawn, sigmas[0])
    steps = sampler(x, sigmas, noise)
    asked = next(steps)
    while True:
        try:
            asked = steps.send(denoise(asked.x, asked.sigma))
        except StopIteration as stop:
            painted: Tensor = stop.value
            break
    assert torch.allclose(painted[..., 0], torch.tensor(KEPT), atol=1e-3)
    return float(painted[..., 1].mean()), float(painted[..., 1].std())


def make_constraint() -> MaskConstraint:
    mask = torch.tensor([0.0, 1.0]).reshape(1, 1, 1, 2)
    return MaskConstraint(torch.tensor([KEPT, 0.0]).reshape(1, 1, 1, 2), mask, (14.6, 0.0))


@pytest.mark.parametrize("name", ["euler", "euler_a", "dpmpp_2m", "heun"])
def test_painted_part_has_the_distribution_given_the_kept_part(name: str) -> None:
    constraint = make_constraint()
    mean, spread = paint_second(add_langevin_steps(get_sampler(name), constraint, 5), constraint)
    assert mean == pytest.approx(EXACT[0], abs=0.05)
    assert spread == pytest.approx(EXACT[1], abs=0.05)


def test_painted_part_without_langevin_steps_follows_little() -> None:
    """So that the test above can fail."""
    constraint = make_constraint()
    mean, _ = paint_second(add_langevin_steps(get_sampler("euler"), constraint, 0), constraint)
    assert mean < 0.6 * EXACT[0]


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model()


def make_request(**fields: Any) -> Request:
    picture = Image.linear_gradient("L").rotate(20).resize((128, 128)).convert("RGB")
    defaults: dict[str, Any] = {"num_inference_steps": 4, "seed": 3, "crop": "off"}
    defaults |= {"mask_from": "box:32,32,96,96", "langevin_steps": 2}
    return Request(prompt="a red cat", image=codec.read_picture(picture), **defaults | fields)


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "euler_a", "dpmpp_sde"])
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_kept_cells_stay(model: Model, sampler: str, strength: float) -> None:
    (own,) = plan(make_request(sampler=sampler, strength=strength), model).plans
    assert isinstance(own.constraint, FreeConstraint)
    trajectory = Trajectory(own)
    calls = 0
    while not trajectory.done:
        assert trajectory.steps_done == calls // 3 or sampler == "dpmpp_sde"
        step([trajectory])
        calls += 1
    assert calls >= 12
    masked = own.constraint.constraint
    kept = (masked.mask == 0).expand(1, 4, 16, 16)
    assert trajectory.latent is not None
    torch.testing.assert_close(trajectory.latent[kept], masked.latent[kept], atol=1e-4, rtol=1e-4)
    assert trajectory.steps_done == 4


def test_langevin_steps_without_a_mask_are_refused() -> None:
    with pytest.raises(RequestError, match="langevin_steps: 5 has no effect without a mask"):
        Request(prompt="a cat", langevin_steps=5)
