"""The mask constraint: kept cells stay, gray cells change by their share, in every sampler."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from overpaint.diffusion.constraint import MaskConstraint
from overpaint.diffusion.denoise import Trajectory, step
from overpaint.diffusion.planner import plan
from overpaint.imaging import codec
from overpaint.models.model import Model
from overpaint.registry import SAMPLERS
from overpaint.request import Request
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model()


def gradient() -> Image.Image:
    return Image.linear_gradient("L").rotate(20).resize((128, 128)).convert("RGB")


def request(mask: Image.Image | None = None, **fields: Any) -> Request:
    defaults: dict[str, Any] = {"prompt": "a red cat", "num_inference_steps": 5, "seed": 3}
    defaults["crop"] = "off"
    if mask:
        defaults["mask"] = codec.read_picture(mask)
    elif "mask_from" not in fields:
        defaults["mask_from"] = "box:32,32,96,96"
    return Request(image=codec.read_picture(gradient()), **{**defaults, **fields})


def latents(model: Model, *requests: Request) -> list[torch.Tensor]:
    trajectories = [Trajectory(own) for r in requests for own in plan(r, model).plans]
    while live := [t for t in trajectories if not t.done]:
        step(live)
    return [t.latent for t in trajectories if t.latent is not None]


@pytest.mark.parametrize("strength", [0.4, 1.0])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_mask_constraint_returns_kept_cells_unchanged(
    model: Model, sampler: str, strength: float
) -> None:
    asked = request(sampler=sampler, strength=strength)
    (own,) = plan(asked, model).plans
    assert isinstance(own.constraint, MaskConstraint)
    kept = (own.constraint.mask == 0).expand(1, 4, 16, 16)
    (latent,) = latents(model, asked)
    torch.testing.assert_close(latent[kept], own.constraint.latent[kept], atol=1e-4, rtol=1e-4)
    assert (latent - own.constraint.latent)[~kept].abs().mean() > 0.05


def test_mask_constraint_gives_kept_cells_the_noise_of_the_level(model: Model) -> None:
    (own,) = plan(request(sampler="euler", strength=1.0), model).plans
    assert isinstance(own.constraint, MaskConstraint)
    kept = (own.constraint.mask == 0).expand(1, 4, 16, 16)
    trajectory = Trajectory(own)
    while not trajectory.done:
        assert trajectory.pending is not None
        seen = trajectory.pending.x - own.constraint.latent
        spread = float(seen[kept].std()) / trajectory.pending.sigma
        assert 0.9 < spread < 1.1
        step([trajectory])


def test_gray_cell_is_repainted_in_its_share_of_the_steps() -> None:
    sigmas = (8.0, 4.0, 2.0, 1.0, 0.0)
    mask = torch.tensor([0.0, 0.2, 0.25, 0.5, 0.75, 0.99, 1.0]).reshape(1, 1, 1, 7)
    kept = MaskConstraint(torch.zeros(1, 1, 1, 7), mask, sigmas)
    ones = torch.ones(1, 1, 1, 7)
    painted = [kept.denoised(ones, sigma).flatten().tolist() for sigma in sigmas[:-1]]
    assert painted == [
        [0, 0, 0, 0, 0, 0, 1],
        [0, 0, 0, 0, 1, 1, 1],
        [0, 0, 0, 1, 1, 1, 1],
        [0, 0, 1, 1, 1, 1, 1],
    ]


def test_gray_ramp_increases_the_change_monotonically(model: Model) -> None:
    ramp = Image.fromarray(np.repeat(np.linspace(0, 255, 128)[None], 128, 0).astype(np.uint8))
    changes = torch.zeros(16)
    for seed in range(4):
        asked = request(ramp, seed=seed, num_inference_steps=16, strength=1.0, sampler="euler")
        (own,) = plan(asked, model).plans
        assert isinstance(own.constraint, MaskConstraint)
        (latent,) = latents(model, asked)
        changes += (latent - own.constraint.latent).abs().mean((0, 1, 2))
    quarters = changes.reshape(4, 4).mean(1).tolist()
    assert quarters == sorted(quarters)
    assert quarters[-1] > 2 * quarters[0]
