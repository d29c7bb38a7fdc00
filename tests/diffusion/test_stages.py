"""The second stage of a plan: its first noise level and its start."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image

from overpaint.diffusion.constraint import MaskConstraint
from overpaint.diffusion.denoise import Trajectory, group_by_batch_key, step
from overpaint.diffusion.noise import NoiseSource
from overpaint.diffusion.planner import plan
from overpaint.diffusion.schedule import NoiseSchedule, make_sigmas
from overpaint.diffusion.stages import split_sigmas
from overpaint.errors import ModelError
from overpaint.imaging import codec
from overpaint.models.addons import Addons
from overpaint.models.family import FAMILIES
from overpaint.models.model import Model
from overpaint.models.noise_config import NoiseConfig
from overpaint.request import Request
from tests.tiny import tiny_inpainter, tiny_model, tiny_refiner

NOISE = NoiseSchedule(NoiseConfig())


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model()


@pytest.fixture(scope="module")
def refiner() -> Model:
    return tiny_refiner()


def request(**fields: Any) -> Request:
    defaults: dict[str, Any] = {
        "prompt": "a red cat",
        "num_inference_steps": 6,
        "seed": 3,
        "sampler": "euler",
        "schedule": "normal",
    }
    return Request(**{**defaults, **fields})


def picture() -> Any:
    return codec.read_picture(
        Image.linear_gradient("L").rotate(20).resize((128, 128)).convert("RGB")
    )


def latent(asked: Request, model: Model, refiner: Model | None = None) -> torch.Tensor:
    (own,) = plan(asked, model, Addons(refiner)).plans
    trajectory = Trajectory(own)
    while not trajectory.done:
        step([trajectory])
    assert trajectory.latent is not None
    assert trajectory.steps_done == own.steps
    return trajectory.latent


@pytest.mark.parametrize("schedule", ["normal", "trailing", "karras", "exponential", "beta"])
def test_split_sigmas_splits_at_a_noise_level(schedule: str) -> None:
    whole = make_sigmas(schedule, 50, NOISE)
    above, below = split_sigmas(whole, 0.8)
    assert above[-1] == below[0]
    assert (*above, *below[1:]) == tuple(whole)
    threshold = NOISE.sigma(0.2 * NOISE.last_timestep)
    assert above[-2] > threshold >= below[0]


def test_split_sigmas_of_a_normal_schedule_splits_its_steps() -> None:
    above, below = split_sigmas(make_sigmas("normal", 50, NOISE), 0.8)
    assert (len(above) - 1, len(below) - 1) == (40, 10)


@pytest.mark.parametrize(("fraction", "steps"), [(0.0, (0, 20)), (1.0, (20, 0))])
def test_split_sigmas_at_0_or_1_gives_all_steps_to_one_run(
    fraction: float, steps: tuple[int, int]
) -> None:
    above, below = split_sigmas(make_sigmas("karras", 20, NOISE), fraction)
    assert (len(above) - 1, len(below) - 1) == steps


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.8, 1.0])
@pytest.mark.parametrize("sampler", ["euler", "euler_a", "heun", "ddim"])
def test_ensemble_of_one_model_matches_that_model(
    model: Model, sampler: str, fraction: float
) -> None:
    """A one-step sampler has no history, so that the split has no effect."""
    plain = request(sampler=sampler)
    split = request(sampler=sampler, refiner="same", high_noise_frac=fraction)
    assert torch.equal(latent(split, model, model), latent(plain, model))


def test_ensemble_hands_the_noisy_latent_to_the_refiner(model: Model, refiner: Model) -> None:
    asked = request(refiner="tiny", num_inference_steps=10)
    (own,) = plan(asked, model, Addons(refiner)).plans
    assert own.then is not None
    assert own.network is not own.then.plan.network
    assert (len(own.sigmas) - 1, own.steps) == (8, 10)
    assert own.then.plan.positive.size_ids.tolist() == [[128, 128, 0, 0, 6.0]]
    assert own.then.plan.negative is not None
    assert own.then.plan.negative.size_ids.tolist() == [[128, 128, 0, 0, 2.5]]
    assert not torch.equal(latent(asked, model, refiner), latent(request(), model))


def test_ensemble_at_high_noise_frac_0_runs_the_refiner_only(model: Model, refiner: Model) -> None:
    asked = request(refiner="tiny", high_noise_frac=0.0, image=picture(), strength=0.5)
    (own,) = plan(asked, model, Addons(refiner)).plans
    assert own.then is None
    assert own.init is not None
    assert own.positive.size_ids.shape == (1, 5)


def test_sequential_stage_repaints_the_result(model: Model, refiner: Model) -> None:
    asked = request(
        refiner="tiny", refine="sequential", refine_strength=0.4, refine_steps=4, sampler="euler"
    )
    (own,) = plan(asked, model, Addons(refiner)).plans
    assert own.then is not None
    assert own.steps == 6 + 4
    finished = latent(request(), model)
    second = own.then.start_from(finished)
    noise = second.noise(NoiseSource(3))
    noise()  # the first stage's noise
    assert second.init is not None
    start = second.start(noise)
    spread = (start - finished) / second.sigmas[0]
    assert float(spread.std()) == pytest.approx(1, abs=0.1)


def test_upscaled_stage_is_larger(model: Model) -> None:
    planned = plan(request(upscale=1.5), model)
    (own,) = planned.plans
    assert own.then is not None
    assert own.then.plan.shape == (4, 24, 24)
    assert latent(request(upscale=1.5), model).shape == (1, 4, 24, 24)


def test_latents_are_enlarged_without_the_vae(model: Model) -> None:
    (own,) = plan(request(upscale=1.5, upscale_in="latents"), model).plans
    assert own.then is not None
    ramp = torch.linspace(-1, 1, 16).expand(1, 4, 16, 16).contiguous()
    init = own.then.start_from(ramp).init
    assert init is not None
    assert init.mean.shape == (1, 4, 24, 24)
    wanted = torch.linspace(-1, 1, 24).expand(1, 4, 24, 24)
    torch.testing.assert_close(init.mean[..., 3:-3], wanted[..., 3:-3], atol=0.05, rtol=0)
    assert latent(request(upscale=1.5, upscale_in="latents"), model).shape == (1, 4, 24, 24)


@pytest.mark.parametrize(
    "fields", [{"refiner": "tiny"}, {"refiner": "tiny", "refine": "sequential"}, {"upscale": 1.5}]
)
def test_kept_area_is_kept_by_every_stage(
    model: Model, refiner: Model, fields: dict[str, Any]
) -> None:
    asked = request(
        image=picture(), mask_from="box:32,32,96,96", crop="off", num_inference_steps=10, **fields
    )
    (own,) = plan(asked, model, Addons(refiner if "refiner" in fields else None)).plans
    assert own.then is not None
    constraint = own.then.plan.constraint
    assert isinstance(constraint, MaskConstraint)
    found = latent(asked, model, refiner if "refiner" in fields else None)
    kept = (constraint.mask == 0).expand_as(found)
    torch.testing.assert_close(found[kept], constraint.latent[kept], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("sees_mask", [False, True])
def test_masks_crops_and_stages_in_shared_steps_match_solo_runs(
    model: Model, refiner: Model, sees_mask: bool
) -> None:
    """A picture does not depend on the other trajectories of its steps."""
    first = tiny_inpainter() if sees_mask else model
    masked: dict[str, Any] = {"image": picture(), "mask_from": "ellipse:20,30,90,100"}
    second: dict[str, Any] = {"refiner": "tiny"}
    mixed = [
        request(seed=9, num_inference_steps=9),
        request(**second),
        request(**second, high_noise_frac=0.4, seed=4, sampler="euler_a"),
        request(**masked, mask_blur=20, crop="off", sampler="dpmpp_2m"),
        request(**masked, crop=4, strength=0.6),
        request(**masked, **second, crop="off"),
        request(**masked, **second, refine="sequential", seed=7),
        request(image=picture(), extend=(0, 0, 40, 0), upscale=1.5, refine_steps=3),
    ]
    plans = [
        plan(asked, first, Addons(refiner if asked.refiner else None)).plans[0] for asked in mixed
    ]
    trajectories = [Trajectory(own) for own in plans]
    shared = 0
    while live := [t for t in trajectories if not t.done]:
        for together in group_by_batch_key(live):
            shared += len(together) > 1
            step(together)
    assert shared
    for asked, trajectory in zip(mixed, trajectories, strict=True):
        alone = latent(asked, first, refiner if asked.refiner else None)
        assert trajectory.latent is not None
        scale = alone.abs().max()
        torch.testing.assert_close(trajectory.latent / scale, alone / scale, atol=1e-5, rtol=0)


@pytest.mark.parametrize("sampler", ["euler", "euler_a", "dpmpp_2m"])
def test_kept_area_at_the_handover_is_as_noisy_as_the_rest(
    model: Model, refiner: Model, sampler: str
) -> None:
    """diffusers, in contrast, gives the refiner a clean picture around a noisy area."""
    asked = request(
        image=picture(), mask_from="box:32,32,96,96", crop="off", num_inference_steps=10,
        sampler=sampler, refiner="tiny",
    )  # fmt: skip
    (own,) = plan(asked, model, Addons(refiner)).plans
    assert own.then is not None
    trajectory = Trajectory(replace(own, then=None))
    while not trajectory.done:
        step([trajectory])
    constraint = own.constraint
    assert isinstance(constraint, MaskConstraint)
    assert trajectory.latent is not None
    noise = (trajectory.latent - constraint.latent) / own.sigmas[-1]
    kept = noise[(constraint.mask == 0).expand_as(noise)]
    assert float(kept.std()) == pytest.approx(1, abs=0.1)
    assert float(kept.mean()) == pytest.approx(0, abs=0.1)


def test_refiner_with_other_latents_is_rejected(model: Model) -> None:
    other = tiny_refiner()
    other.vae.register_to_config(scaling_factor=0.5)
    with pytest.raises(ModelError, match=r"their scaling_factor differs \(0.5 and 0.13025\)"):
        plan(request(refiner="other"), model, Addons(other))


def test_inpainting_model_as_refiner_is_rejected(model: Model) -> None:
    other = tiny_refiner()
    other.family = FAMILIES["sdxl-inpaint"]
    with pytest.raises(ModelError, match="is an inpainting model, not a refiner"):
        plan(request(refiner="other"), model, Addons(other))
