import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import scipy.stats  # type: ignore[import-untyped]
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from overpaint.diffusion.schedule import (
    MIN_STRENGTH,
    NoiseSchedule,
    Sigmas,
    make_sigmas,
    make_sigmas_for_strength,
)
from overpaint.errors import RequestError
from overpaint.models.noise_config import NoiseConfig
from overpaint.registry import SCHEDULES

# diffusers' schedulers use numpy calls that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SDXL = NoiseSchedule(NoiseConfig())
ZERO_SNR = NoiseSchedule(NoiseConfig(zero_terminal_snr=True))
TRAINED: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}


def reference(steps: int, spacing: Any = "linspace", **config: Any) -> list[float]:
    scheduler = EulerDiscreteScheduler(timestep_spacing=spacing, **TRAINED, **config)
    scheduler.set_timesteps(steps)
    return scheduler.sigmas.tolist()


def test_noise_schedule_matches_sdxl():
    assert pytest.approx((0.029167, 14.614647), rel=1e-4) == (SDXL.sigma_min, SDXL.sigma_max)
    full = list(reversed(reference(1000)[:-1]))
    assert SDXL.sigmas.tolist() == pytest.approx(full, rel=1e-4)


def test_linear_betas_match_diffusers():
    schedule = NoiseSchedule(NoiseConfig(beta_schedule="linear", beta_start=1e-4, beta_end=0.02))
    betas = np.linspace(1e-4, 0.02, 1000)
    assert schedule.alphas_cumprod[3] == pytest.approx(math.prod(1 - betas[:4]), rel=1e-12)


def test_zero_terminal_snr_ends_in_pure_noise_and_keeps_the_start():
    assert ZERO_SNR.sigma_max == pytest.approx(math.sqrt(2**24 - 1), rel=1e-12)
    assert ZERO_SNR.sigma_min == pytest.approx(SDXL.sigma_min, rel=1e-12)
    # Near the end, diffusers' float32 has only three significant digits.
    sigmas = make_sigmas("trailing", 20, ZERO_SNR)
    expected = reference(20, "trailing", rescale_betas_zero_snr=True)
    assert list(sigmas) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("schedule", [SDXL, ZERO_SNR])
def test_timestep_and_sigma_are_inverse(schedule: NoiseSchedule):
    for timestep in (0.0, 0.25, 1.0, 499.5, 998.9, 999.0):
        assert schedule.timestep(schedule.sigma(timestep)) == pytest.approx(timestep, abs=1e-8)
    assert schedule.timestep(0.0) == 0.0
    assert schedule.timestep(1e9) == 999.0
    assert (schedule.progress(1e9), schedule.progress(0.0)) == (0.0, 1.0)


@pytest.mark.parametrize("steps", [*range(2, 101), 125, 200, 250, 500])
def test_normal_schedule_matches_leading_of_diffusers(steps: int):
    assert list(make_sigmas("normal", steps, SDXL)) == pytest.approx(
        reference(steps, "leading"), 1e-4
    )


# Not included: 48 and 96, where a timestep of diffusers ends in .5 and a float error rounds it in
# the other direction, and 61, where the same error gives 62 steps.
@pytest.mark.parametrize("steps", sorted({*range(2, 101), 125, 200, 250, 500} - {48, 61, 96}))
def test_trailing_schedule_matches_diffusers(steps: int):
    theirs = reference(steps, "trailing")
    assert list(make_sigmas("trailing", steps, SDXL)) == pytest.approx(theirs, 1e-4)


@pytest.mark.parametrize("steps", [2, 3, 10, 20, 30, 50])
def test_other_schedules_match_diffusers(steps: int):
    # At fractional timesteps, diffusers interpolates sigma, and Overpaint log sigma.
    assert list(make_sigmas("linspace", steps, SDXL)) == pytest.approx(reference(steps), rel=2e-4)
    karras = reference(steps, use_karras_sigmas=True)
    assert list(make_sigmas("karras", steps, SDXL)) == pytest.approx(karras, rel=1e-4)
    exponential = reference(steps, use_exponential_sigmas=True)
    assert list(make_sigmas("exponential", steps, SDXL)) == pytest.approx(exponential, rel=1e-4)
    assert list(make_sigmas("polyexponential", steps, SDXL)) == pytest.approx(exponential, rel=1e-4)


def test_simple_schedule_takes_sigmas_at_even_distances():
    expected = [float(SDXL.sigmas[999 - int(i * 1000 / 7)]) for i in range(7)]
    assert list(make_sigmas("simple", 7, SDXL)) == pytest.approx([*expected, 0.0], rel=1e-12)


@pytest.mark.parametrize("steps", [2, 3, 10, 31, 200])
def test_beta_schedule_matches_quantiles_of_scipy(steps: int):
    quantiles = scipy.stats.beta.ppf(1 - np.arange(steps) / steps, 0.6, 0.6)
    timesteps = [SDXL.timestep(sigma) for sigma in make_sigmas("beta", steps, SDXL)[:-1]]
    assert timesteps == pytest.approx((999 * quantiles).tolist(), rel=1e-4, abs=1e-4)


def test_align_your_steps_in_ten_steps_is_the_published_table():
    table = [14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.0]
    assert list(make_sigmas("align_your_steps", 10, SDXL)) == pytest.approx(table, rel=1e-12)
    twenty = make_sigmas("align_your_steps", 20, SDXL)
    assert list(twenty[::2]) == pytest.approx(table, rel=1e-12)
    assert twenty[1] == pytest.approx(math.sqrt(14.615 * 6.315), rel=1e-12)


def test_normal_schedule_of_a_model_with_few_timesteps_has_all_steps():
    short = NoiseSchedule(NoiseConfig(steps=100))
    assert len(make_sigmas("normal", 30, short)) == 31
    assert short.last_timestep == 99


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_of_one_step_starts_at_pure_noise(name: str):
    for drop in (False, True):
        assert make_sigmas(name, 1, SDXL, drop_penultimate=drop) == (SDXL.sigma_max, 0.0)


@pytest.mark.parametrize("name", SCHEDULES)
def test_dropped_penultimate_sigma_keeps_the_number_of_steps(name: str):
    whole = make_sigmas(name, 11, SDXL)
    dropped = make_sigmas(name, 10, SDXL, drop_penultimate=True)
    assert list(dropped) == [*whole[:-2], 0.0]


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("schedule", [SDXL, ZERO_SNR])
def test_sigmas_of_any_number_of_steps_descend_strictly(name: str, schedule: NoiseSchedule):
    for steps in [*range(1, 130), 200, 333, 500, 501, 667, 998, 999, 1000, 1001, 2000]:
        check(make_sigmas(name, steps, schedule), steps)


@settings(max_examples=200, deadline=None)
@given(
    name=st.sampled_from(sorted(SCHEDULES)),
    steps=st.integers(1, 1000),
    strength=st.floats(MIN_STRENGTH, 1),
    drop=st.booleans(),
)
def test_sigmas_of_any_strength_descend_strictly(
    name: str, steps: int, strength: float, drop: bool
):
    check(make_sigmas_for_strength(name, steps, strength, SDXL, drop_penultimate=drop), steps)


def check(visited: Sigmas, steps: int):
    assert len(visited) == steps + 1
    assert visited[-1] == 0.0
    assert all(a > b for a, b in pairwise(visited))
    assert all(type(sigma) is float for sigma in visited)


@pytest.mark.parametrize("name", SCHEDULES)
def test_strength_1_is_the_whole_schedule(name: str):
    for mode in ("exact", "truncate"):
        assert make_sigmas_for_strength(name, 20, 1.0, SDXL, mode=mode) == make_sigmas(
            name, 20, SDXL
        )


@pytest.mark.parametrize("name", SCHEDULES)
def test_exact_mode_keeps_the_tail_of_a_longer_schedule(name: str):
    assert make_sigmas_for_strength(name, 12, 0.6, SDXL) == make_sigmas(name, 20, SDXL)[-13:]
    # round(7 / 0.99) is 7: the schedule has at least as many steps as run.
    assert make_sigmas_for_strength(name, 7, 0.99, SDXL) == make_sigmas(name, 7, SDXL)


@pytest.mark.parametrize(
    ("steps", "strength", "run"), [(100, 0.29, 28), (50, 0.58, 28), (20, 0.3, 6), (4, 0.25, 1)]
)
def test_truncate_mode_runs_as_many_steps_as_diffusers(steps: int, strength: float, run: int):
    for name in SCHEDULES:
        kept = make_sigmas_for_strength(name, steps, strength, SDXL, mode="truncate")
        assert kept == make_sigmas(name, steps, SDXL)[-run - 1 :]
        assert len(kept) == run + 1


def test_truncate_to_0_steps_is_rejected_with_a_remedy():
    with pytest.raises(
        RequestError, match=r"strength: 0\.2 of 4 steps .* 0 steps; .* 0\.25, "
    ) as e:
        make_sigmas_for_strength("normal", 4, 0.2, SDXL, mode="truncate")
    assert e.value.field == "strength"
    for steps in range(1, 1001):
        with pytest.raises(RequestError) as refusal:
            make_sigmas_for_strength("normal", steps, 1e-9, SDXL, mode="truncate")
        advice = float(str(refusal.value).split("at least ")[1].split(",")[0])
        assert len(make_sigmas_for_strength("normal", steps, advice, SDXL, mode="truncate")) >= 2


def test_strength_0_has_no_steps():
    assert make_sigmas_for_strength("karras", 20, 0.0, SDXL) == (0.0,)
    assert make_sigmas_for_strength("karras", 20, 0.0, SDXL, mode="truncate") == (0.0,)


def test_strength_below_the_minimum_is_rejected_and_a_tiny_one_is_cheap():
    with pytest.raises(RequestError, match=r"1e-09 is too small .* at least 0\.000001"):
        make_sigmas_for_strength("karras", 1000, 1e-9, SDXL)
    # A schedule of 10⁹ steps does not fit in memory, but its tail does.
    assert len(make_sigmas_for_strength("karras", 1000, MIN_STRENGTH, SDXL)) == 1001


def test_sigmas_keep_their_noise_schedule():
    assert make_sigmas("karras", 3, SDXL).schedule is SDXL
