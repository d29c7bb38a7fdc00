"""The denoising loop: different trajectories share a step, each with the result of a solo run."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from overpaint.diffusion.conditioning import Row
from overpaint.diffusion.denoise import Trajectory, step
from overpaint.diffusion.noise import NoiseSource
from overpaint.diffusion.plan import Plan
from overpaint.diffusion.planner import plan
from overpaint.diffusion.samplers import Noise, lms
from overpaint.models.model import Model
from overpaint.picture import Picture
from overpaint.registry import SAMPLERS, SCHEDULES
from overpaint.request import Request
from tests.tiny import tiny_model

SAME = 1e-5
"""The largest relative difference of a batched latent from its solo run: fp32 rounding."""
SAME_WITH_LMS = 2e-5
"""The same for LMS, whose weights multiply rounding by up to 6.7 in a step."""
EXACT = 1e-11
"""The largest relative difference in float64, for any request."""


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model()


@pytest.fixture(scope="module")
def precise() -> Model:
    """The tiny model in float64."""
    model = replace(tiny_model(), dtype=torch.float64)
    for module in (model.unet, model.vae, *(e.model for e in model.text_encoders)):
        module.double()
    return model


@dataclass(frozen=True, eq=False)
class PrecisePlan(Plan):
    """A plan whose latents are float64."""

    def noise(self, source: NoiseSource | None = None) -> Noise:
        noise = super().noise(source)
        return lambda: noise().double()


def picture(color: str) -> Picture:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((128, 128)).convert("RGB").rotate(30, fillcolor=color).save(
        buffer, "PNG"
    )
    return Picture(data=buffer.getvalue())


PICTURES = {color: picture(color) for color in ("red", "blue")}


def run(plans: Sequence[Plan], arrivals: Sequence[int] | None = None) -> list[torch.Tensor]:
    """Run all plans together; plan i joins after `arrivals[i]` steps of the others."""
    waiting = sorted(zip(arrivals or [0] * len(plans), range(len(plans)), strict=True))
    trajectories: dict[int, Trajectory] = {}
    tick = 0
    while waiting or any(not t.done for t in trajectories.values()):
        while waiting and (waiting[0][0] <= tick or all(t.done for t in trajectories.values())):
            index = waiting.pop(0)[1]
            trajectories[index] = Trajectory(plans[index])
        if live := [t for t in trajectories.values() if not t.done]:
            step(live)
        tick += 1
    latents = [trajectories[i].latent for i in range(len(plans))]
    return [latent for latent in latents if latent is not None]


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max().clamp(min=1))


@st.composite
def requests(draw: st.DrawFn, least_steps: int = 1) -> Request:
    """Draw requests that can share a step: one latent shape, all other fields random."""
    fields: dict[str, Any] = {
        "prompt": draw(
            st.sampled_from(
                [
                    "a red house",
                    "(a blue cat:1.3) on a green background",
                    "neon art BREAK a tree",
                    "a photo of a dog, " * 20,
                ]
            )
        ),
        "negative_prompt": draw(st.sampled_from(["", "black", "a drawing, " * 30])),
        "sampler": draw(st.sampled_from(sorted(SAMPLERS))),
        "schedule": draw(st.sampled_from(sorted(SCHEDULES))),
        "num_inference_steps": draw(st.integers(least_steps, 6)),
        "guidance_scale": draw(st.sampled_from([0.0, 1.0, 3.0, 7.5])),
        "guidance_rescale": draw(st.sampled_from([0.0, 0.7])),
        "guidance_interval": draw(st.sampled_from([(0.0, 1.0), (0.2, 0.7)])),
        "clip_skip": draw(st.integers(0, 1)),
        "seed": draw(st.integers(0, 2**32)),
        "crops_coords_top_left": draw(st.sampled_from([(0, 0), (16, 40)])),
        "negative_original_size": draw(st.sampled_from([None, (64, 64)])),
    }
    if draw(st.booleans()):
        fields["image"] = PICTURES[draw(st.sampled_from(sorted(PICTURES)))]
        fields["strength"] = draw(st.sampled_from([0.25, 0.5, 0.8, 1.0]))
        if draw(st.booleans()):
            fields["mask_from"] = draw(st.sampled_from(["box:0,0,48,64", "ellipse:20,20,90,70"]))
            fields["mask_blur"] = draw(st.sampled_from([0, 12]))
            fields["fill"] = draw(st.sampled_from(["original", "surroundings", "noise"]))
            fields |= {"size": "native", "crop": "off"}
    return Request(**fields)


FEW = settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
MANY = settings(FEW, max_examples=100)
ARRIVALS = st.lists(st.integers(0, 4), min_size=4, max_size=4)
MIX = given(mix=st.lists(requests(), min_size=2, max_size=4), arrivals=ARRIVALS)
# With fewer than 4 steps, a step of Heun from 14.6 to 0 squares the noise level. The network's
# rounding errors then grow 200-fold, in a batch and in a solo run.
LONG_MIX = given(mix=st.lists(requests(least_steps=4), min_size=2, max_size=4), arrivals=ARRIVALS)


def check_mix_matches_solo_runs(
    plans: Sequence[Plan], arrivals: list[int], limit: float, limit_with_lms: float
) -> None:
    for own, joint in zip(plans, run(plans, arrivals[: len(plans)]), strict=True):
        solo = run([own])[0]
        assert joint.dtype == solo.dtype
        own_limit = limit_with_lms if own.sampler is lms else limit
        assert difference(joint, solo) <= own_limit


def plan_mix(mix: list[Request], model: Model) -> list[Plan]:
    return [plan(request, model).plans[0] for request in mix]


def plan_precise_mix(mix: list[Request], model: Model) -> list[Plan]:
    return [PrecisePlan(**vars(plan)) for plan in plan_mix(mix, model)]


@FEW
@LONG_MIX
def test_batched_trajectories_match_solo_runs_in_fp32(
    model: Model, mix: list[Request], arrivals: list[int]
) -> None:
    check_mix_matches_solo_runs(plan_mix(mix, model), arrivals, SAME, SAME_WITH_LMS)


@FEW
@MIX
def test_batched_trajectories_match_solo_runs_in_float64(
    precise: Model, mix: list[Request], arrivals: list[int]
) -> None:
    check_mix_matches_solo_runs(plan_precise_mix(mix, precise), arrivals, EXACT, EXACT)


@pytest.mark.slow
@MANY
@LONG_MIX
def test_many_batched_trajectories_match_solo_runs_in_fp32(
    model: Model, mix: list[Request], arrivals: list[int]
) -> None:
    check_mix_matches_solo_runs(plan_mix(mix, model), arrivals, SAME, SAME_WITH_LMS)


@pytest.mark.slow
@MANY
@MIX
def test_many_batched_trajectories_match_solo_runs_in_float64(
    precise: Model, mix: list[Request], arrivals: list[int]
) -> None:
    check_mix_matches_solo_runs(plan_precise_mix(mix, precise), arrivals, EXACT, EXACT)


def test_step_calls_the_network_once_with_the_needed_rows(model: Model) -> None:
    calls: list[int] = []

    class Counting:
        def __init__(self, plan: Plan):
            self.network = plan.network
            self.schedule = plan.network.schedule
            self.device = plan.network.device

        def predict(self, rows: Sequence[Row]) -> torch.Tensor:
            calls.append(len(rows))
            return self.network.predict(rows)

        def denoised(self, x: torch.Tensor, sigma: float, prediction: torch.Tensor) -> torch.Tensor:
            return self.network.denoised(x, sigma, prediction)

    plans = [
        plan(Request(prompt="a cat", num_inference_steps=3, sampler=s, guidance_scale=g), model)
        for s, g in (("euler", 5.0), ("heun", 1.0), ("dpmpp_2m", 5.0))
    ]
    network = Counting(plans[0].plans[0])
    run([replace(p.plans[0], network=network) for p in plans])
    assert calls == [5, 5, 5, 1, 1]


def test_plan_run_twice_gives_the_same_latent(model: Model) -> None:
    (own,) = plan(Request(prompt="a cat", sampler="euler_a", num_inference_steps=4), model).plans
    assert torch.equal(run([own])[0], run([own])[0])


def test_image_k_of_n_matches_the_same_seed_alone(model: Model) -> None:
    fields: dict[str, Any] = {"prompt": "a dog", "num_inference_steps": 3, "sampler": "dpmpp_sde"}
    fields["image"] = PICTURES["red"]
    many = run(plan(Request(seed=7, num_images=3, **fields), model).plans)
    for k, latent in enumerate(many):
        (alone,) = run(plan(Request(seed=7 + k, **fields), model).plans)
        assert difference(latent, alone) <= SAME


def test_same_seed_after_other_requests_gives_the_same_latent(model: Model) -> None:
    request = Request(prompt="a dog", seed=3, num_inference_steps=3, image=PICTURES["red"])
    before = run(plan(request, model).plans)[0]
    run(plan(Request(prompt="a cat", seed=4, num_inference_steps=2), model).plans)
    assert torch.equal(run(plan(request, model).plans)[0], before)
    assert torch.equal(run(plan(request, tiny_model()).plans)[0], before)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_denoised_inverts_the_training_target(prediction: Any) -> None:
    network = plan(Request(), tiny_model(prediction=prediction)).plans[0].network
    x0, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).unbind()
    sigma = 1.7
    alpha = (sigma**2 + 1) ** -0.5
    target = {
        "epsilon": noise,
        "v_prediction": alpha * noise - alpha * sigma * x0,
        "sample": x0,
    }[prediction]
    torch.testing.assert_close(network.denoised(x0 + sigma * noise, sigma, target), x0)


def test_step_with_different_networks_or_shapes_raises(model: Model) -> None:
    square, wide, other = (
        Trajectory(plan(Request.model_validate(fields), own).plans[0])
        for fields, own in (({}, model), ({"width": 144, "height": 128}, model), ({}, tiny_model()))
    )
    for unlike in (wide, other):
        with pytest.raises(ValueError, match="one network and one latent shape"):
            step([square, unlike])


def test_trajectory_counts_its_steps(model: Model) -> None:
    (own,) = plan(Request(sampler="heun", num_inference_steps=4), model).plans
    trajectory = Trajectory(own)
    seen: list[int] = [trajectory.steps_done]
    while not trajectory.done:
        step([trajectory])
        seen.append(trajectory.steps_done)
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (0, 4)
