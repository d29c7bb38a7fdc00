"""Samplers against exact solutions, against diffusers' schedulers, and by hand.

A sampler only adds and multiplies, so these tests run it on tensors and on plain floats alike.
"""

import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from inspect import isfunction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.integrate  # type: ignore[import-untyped]
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_deis_multistep import DEISMultistepScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_ancestral_discrete import EulerAncestralDiscreteScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteScheduler
from diffusers.schedulers.scheduling_k_dpm_2_ancestral_discrete import (
    KDPM2AncestralDiscreteScheduler,
)
from diffusers.schedulers.scheduling_k_dpm_2_discrete import KDPM2DiscreteScheduler
from diffusers.schedulers.scheduling_lcm import LCMScheduler
from diffusers.schedulers.scheduling_lms_discrete import LMSDiscreteScheduler
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from diffusers.schedulers.scheduling_tcd import TCDScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

from overpaint.diffusion import samplers
from overpaint.diffusion.samplers import Evaluate, get_sampler
from overpaint.diffusion.schedule import NoiseSchedule, Sigmas, make_sigmas
from overpaint.models.noise_config import NoiseConfig
from overpaint.registry import SAMPLERS, SCHEDULES, Sampler

# diffusers' schedulers use numpy calls that numpy 2 deprecates.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]

SDXL = NoiseSchedule(NoiseConfig())
DETERMINISTIC = [s.name for s in SAMPLERS.values() if not s.stochastic]
# These two need a network distilled for them, and not a denoiser.
DISTILLED = {"lcm", "tcd"}

Answer = Callable[[Evaluate], Any]


def drive(name: str, x: Any, visited: Sigmas, answer: Answer, noise: Callable[[], Any]) -> Any:
    """Run a sampler to its end."""
    steps = get_sampler(name)(x, visited, noise)
    try:
        question = next(steps)
        while True:
            question = steps.send(answer(question))
    except StopIteration as end:
        return end.value


def schedule_for(name: str, steps: int, schedule: str = "karras") -> Sigmas:
    return make_sigmas(schedule, steps, SDXL, drop_penultimate=SAMPLERS[name].drops_penultimate)


# Rules for every sampler.


def test_registry_names_match_the_samplers():
    for name in SAMPLERS:
        assert get_sampler(name).__name__ == name  # type: ignore[attr-defined]
    public = {
        name
        for name, value in vars(samplers).items()
        if isfunction(value) and value.__module__ == samplers.__name__ and name[0] != "_"
    }
    assert public == {*SAMPLERS, "get_sampler"}


@pytest.mark.parametrize("table", [SAMPLERS, SCHEDULES])
def test_documentation_lists_every_registry_entry(table: dict[str, Any]):
    page = (Path(__file__).parents[2] / "docs" / "concepts" / "samplers.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines()]
    listed = {row[0].strip("`"): row for row in rows if len(row) > 3}
    for name, named in table.items():
        also = ", ".join(f"`{alias}`" for alias in named.aliases)
        assert listed[name][1:3] == [named.label, also]
        if isinstance(named, Sampler):
            order = str(ORDERS.get(name, "distilled"))
            noise = "yes" if named.stochastic else ""
            assert listed[name][3:6] == [str(named.evaluations), noise, order]


def test_samplers_import_no_torch():
    code = "import sys, overpaint.diffusion.samplers, overpaint.diffusion.schedule as s; "
    code += "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", SAMPLERS)
def test_sampler_does_not_change_x_in_place(name: str):
    x = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0)) * SDXL.sigma_max
    asked: list[tuple[torch.Tensor, torch.Tensor]] = [(x, x.clone())]
    sent: list[tuple[torch.Tensor, torch.Tensor]] = []

    def answer(question: Evaluate) -> torch.Tensor:
        denoised = question.x * 0.1
        asked.append((question.x, question.x.clone()))
        sent.append((denoised, denoised.clone()))
        return denoised

    drive(name, x, schedule_for(name, 6), answer, lambda: torch.ones_like(x))
    assert all(torch.equal(now, before) for now, before in asked + sent)


@pytest.mark.parametrize("name", SAMPLERS)
def test_sampler_does_not_mix_rows(name: str):
    rows = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = rows * SDXL.sigma_max
    visited = schedule_for(name, 7)

    def run(x: torch.Tensor, row: slice) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1)

        def noise() -> torch.Tensor:
            return torch.randn(rows.shape, generator=generator, dtype=rows.dtype)[row]

        return drive(name, x, visited, lambda q: torch.tanh(q.x), noise)

    together = run(rows, slice(None))
    for i in range(3):
        alone = run(rows[i : i + 1], slice(i, i + 1))
        assert torch.allclose(together[i : i + 1], alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 3, 10])
def test_sampler_evaluations_match_the_registry(name: str, steps: int):
    asked: list[float] = []

    def answer(question: Evaluate) -> float:
        asked.append(question.sigma)
        return 0.5

    visited = schedule_for(name, steps)
    end = drive(name, visited[0], visited, answer, lambda: 1.0)
    assert end == pytest.approx(0.5, abs=1e-12)
    per_step = SAMPLERS[name].evaluations
    extra = 1 if name == "pndm" and steps > 1 else 0
    assert len(asked) == per_step * (steps - 1) + 1 + extra
    assert min(asked) > 0
    assert asked[0] == visited[0]


@pytest.mark.parametrize("name", SAMPLERS)
def test_sampler_without_steps_returns_x(name: str):
    assert drive(name, 3.0, Sigmas((0.0,), SDXL), lambda q: q.x, lambda: 1.0) == 3.0


@pytest.mark.parametrize("name", SAMPLERS)
def test_only_stochastic_samplers_draw_noise(name: str):
    draws = 0

    def noise() -> float:
        nonlocal draws
        draws += 1
        return 0.0

    drive(name, 10.0, schedule_for(name, 5), lambda q: 0.5 * q.x, noise)
    assert (draws > 0) == SAMPLERS[name].stochastic


@pytest.mark.parametrize("name", SAMPLERS)
def test_sampler_with_zero_terminal_snr_starts_from_pure_noise(name: str):
    visited = make_sigmas("trailing", 10, NoiseSchedule(NoiseConfig(zero_terminal_snr=True)))
    x = torch.randn(64, generator=torch.Generator().manual_seed(0)) * visited[0]
    generator = torch.Generator().manual_seed(1)
    s = 0.5
    end = drive(
        name,
        x,
        visited,
        lambda q: q.x * (s**2 / (s**2 + q.sigma**2)),
        lambda: torch.randn(64, generator=generator),
    )
    assert 0.05 < end.std() < 1.5


# Data of a known distribution: its exact denoiser and its exact solution.

MEAN, STD = 0.3, 0.7


def gaussian(question: Evaluate) -> Any:
    """Return E[x0 | x] for data from N(MEAN, STD²)."""
    return (question.x * STD**2 + question.sigma**2 * MEAN) / (STD**2 + question.sigma**2)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_deterministic_samplers_follow_the_ode_of_a_gaussian(name: str):
    visited = schedule_for(name, 80)
    for x in (-20.0, 0.0, 31.0):
        exact = MEAN + (x - MEAN) * STD / math.sqrt(STD**2 + visited[0] ** 2)
        end = drive(name, x, visited, gaussian, lambda: math.nan)
        tolerance = 0.05 if name in {"euler", "ddim"} else 0.005
        assert end == pytest.approx(exact, rel=tolerance, abs=tolerance * STD)


def spread(name: str, steps: int, answer: Answer) -> float:
    """The exact standard deviation of a sampler's pictures, relative to that of the data.

    With a linear denoiser the picture is a weighted sum of independent unit Gaussians: the start
    and each draw of noise. Element k of x holds the weight of the k-th.
    """
    visited = schedule_for(name, steps)
    basis = iter(torch.eye(2 * steps + 2, dtype=torch.float64))
    x = next(basis) * math.sqrt(STD**2 + visited[0] ** 2)
    return float(drive(name, x, visited, answer, lambda: next(basis)).norm()) / STD


def centered(question: Evaluate) -> Any:
    return question.x * (STD**2 / (STD**2 + question.sigma**2))


@pytest.mark.parametrize("name", [n for n in SAMPLERS if n not in DISTILLED])
def test_samplers_reach_the_data_distribution(name: str):
    # The last step denoises fully, which removes the spread of the smallest sigma. LMS is an
    # exception: it extrapolates to the end.
    last = 1 if name == "lms" else STD / math.hypot(STD, schedule_for(name, 160)[-2])
    rough, fine = (abs(spread(name, steps, centered) - last) for steps in (40, 160))
    first_order = name in {"euler", "ddim", "euler_a", "ddpm"}
    assert fine < (0.03 if first_order else 0.003)
    assert fine < 0.4 * rough


def test_lcm_in_any_number_of_steps_reaches_the_data_distribution():
    def consistent(question: Evaluate) -> Any:
        return question.x * (STD / math.sqrt(STD**2 + question.sigma**2))

    for steps in (1, 2, 4, 8):
        assert spread("lcm", steps, consistent) == pytest.approx(1, rel=1e-12)


def mixture(x: float, sigma: float) -> float:
    """Return E[x0 | x] for data from Gaussians at -0.8 and 1.2, which is curved in x."""
    variance = 0.4**2 + sigma**2
    y = x - 0.2
    return 0.2 + (0.4**2 * y + sigma**2 * math.tanh(y / variance)) / variance


def exact(x: float, first: float, last: float, rate: int) -> float:
    """Solve dx / dlog(sigma) = rate (x - denoised): 1 is the ODE, 2 the SDE without its noise."""

    def drift(u: float, x: Any) -> Any:
        return rate * (x - mixture(x[0], math.exp(u)))

    solved: Any = scipy.integrate.solve_ivp(
        drift,
        (math.log(first), math.log(last)),
        [x],
        method="DOP853",
        rtol=1e-12,
        atol=1e-13,
    )
    return solved.y[0, -1]


ORDER_OF: dict[int, tuple[str, ...]] = {
    1: ("euler", "ddim", "euler_a", "ddpm", "dpm2_a", "dpmpp_2s_a"),
    2: ("heun", "dpm2", "dpmpp_2m", "deis", "pndm", "dpmpp_sde", "dpmpp_2m_sde"),
    3: ("unipc", "dpmpp_3m_sde"),
    4: ("lms",),
}
ORDERS = {name: order for order, names in ORDER_OF.items() for name in names}


@pytest.mark.parametrize("name", ORDERS)
def test_sampler_converges_with_its_order(name: str):
    rate = 2 if SAMPLERS[name].stochastic else 1
    errors: list[float] = []
    # The error of UniPC and of 2S a crosses zero, so they need more steps to show their slope.
    for steps in (128, 256) if name in {"unipc", "dpmpp_2s_a"} else (64, 128):
        # Two short steps first, since an empty history has a low order.
        short = [0.5 / steps**2, 1.0 / steps**2, 1.5 / steps**2] if name == "lms" else []
        ramp = [0.0, *short, *(k / steps for k in range(1, steps + 1))]
        visited = Sigmas([10.0 * 0.01**u for u in ramp], SDXL)
        end = drive(name, 3.0, visited, lambda q: mixture(float(q.x), q.sigma), lambda: 0.0)
        errors.append(abs(end - exact(3.0, 10.0, 0.1, rate)))
    assert math.log2(errors[0] / errors[1]) > ORDERS[name] - 0.3


def test_every_sampler_except_the_distilled_has_an_order():
    assert set(ORDERS) == set(SAMPLERS) - DISTILLED


# Explicit steps in the notation of the papers: x_t = alpha_t x0 + sigma_t eps, lambda =
# log(alpha_t / sigma_t). x in the samplers is x_t / alpha_t.


def vp(sigma: float) -> tuple[float, float, float]:
    """Return alpha_t, sigma_t and lambda of a sampler's sigma."""
    alpha = 1 / math.sqrt(1 + sigma**2)
    return alpha, sigma * alpha, -math.log(sigma)


def network(question: Evaluate) -> float:
    """A smooth function in place of a network."""
    return math.sin(float(question.x) / math.hypot(1, question.sigma)) + 0.1 * question.sigma


def draws(*values: float) -> Callable[[], float]:
    source: Iterator[float] = iter(values)
    return lambda: next(source)


def solver_2s(x: float, first: float, last: float) -> float:
    """Take a step of DPM-Solver++(2S), arXiv 2211.01095, algorithm 1, r = 1/2, in sampler's x."""
    (a_s, s_s, l_s), (a_t, s_t, l_t) = vp(first), vp(last)
    h = l_t - l_s
    middle = math.exp(-(l_s + h / 2))
    a_m, s_m, _ = vp(middle)
    d = network(Evaluate(x, first))  # type: ignore[arg-type]
    u = s_m / s_s * (a_s * x) - a_m * (math.exp(-h / 2) - 1) * d
    d = network(Evaluate(u / a_m, middle))  # type: ignore[arg-type]
    return (s_t / s_s * (a_s * x) - a_t * (math.exp(-h) - 1) * d) / a_t


def test_dpmpp_2s_a_step_matches_the_published_formula():
    down = 1.5**2 / 4.0
    up = math.sqrt(1.5**2 - down**2)
    expected = solver_2s(3.0, 4.0, down) + up * 0.7
    assert drive("dpmpp_2s_a", 3.0, Sigmas((4.0, 1.5), SDXL), network, draws(0.7)) == pytest.approx(
        expected, rel=1e-12
    )


def sde_1(x: float, d: float, z: float, first: float, last: float) -> float:
    """Take one step of SDE-DPM-Solver++1, arXiv 2211.01095, for constant d and a sampler's x."""
    (a_s, s_s, l_s), (a_t, s_t, l_t) = vp(first), vp(last)
    h = l_t - l_s
    drift = s_t / s_s * math.exp(-h) * (a_s * x) + a_t * (1 - math.exp(-2 * h)) * d
    return (drift + s_t * math.sqrt(1 - math.exp(-2 * h)) * z) / a_t


def test_dpmpp_sde_step_matches_the_published_formula():
    x, first, last, z1, z2 = 3.0, 4.0, 1.5, 0.7, -1.1
    middle = math.sqrt(first * last)
    d1 = network(Evaluate(x, first))  # type: ignore[arg-type]
    d2 = network(Evaluate(sde_1(x, d1, z1, first, middle), middle))  # type: ignore[arg-type]
    # The whole step with d2 on the same path, as two steps with the noise of each.
    expected = sde_1(sde_1(x, d2, z1, first, middle), d2, z2, middle, last)
    got = drive("dpmpp_sde", x, Sigmas((first, last), SDXL), network, draws(z1, z2))
    assert got == pytest.approx(expected, rel=1e-12)


def test_dpmpp_3m_sde_steps_match_the_published_integral():
    visited = (9.0, 5.0, 3.0, 2.0)
    z = (0.4, -0.2, 1.3)
    x, past = 6.0, [(0.0, 0.0)][:0]
    for k, (first, last) in enumerate(pairwise(visited)):
        (a_s, s_s, l_s), (a_t, s_t, l_t) = vp(first), vp(last)
        h = l_t - l_s
        past.append((l_s, network(Evaluate(x, first))))  # type: ignore[arg-type]
        # The paper's integral, with the polynomial through all points as the Taylor polynomial.
        through = np.polynomial.Polynomial.fit(*zip(*past, strict=True), deg=len(past) - 1)

        def weighted(v: float, f: Any = through, end: float = l_t) -> float:
            return 2 * math.exp(2 * (v - end)) * f(v)

        integral: Any = scipy.integrate.quad(weighted, l_s, l_t)
        drift = s_t / s_s * math.exp(-h) * (a_s * x) + a_t * integral[0]
        x = (drift + s_t * math.sqrt(1 - math.exp(-2 * h)) * z[k]) / a_t
    got = drive("dpmpp_3m_sde", 6.0, Sigmas(visited, SDXL), network, draws(*z))
    assert got == pytest.approx(x, rel=1e-10)


def test_lms_integrates_cubics_exactly():
    visited = Sigmas((9.0, 8.0, 6.5, 4.0, 1.0), SDXL)

    def slope(sigma: float) -> float:
        return 1 - 2 * sigma + 0.5 * sigma**2 + 0.1 * sigma**3

    def area(sigma: float) -> float:
        return sigma - sigma**2 + sigma**3 / 6 + 0.1 * sigma**4 / 4

    def answer(question: Evaluate) -> float:
        return float(question.x) - question.sigma * slope(question.sigma)

    before = drive("lms", 2.0, Sigmas(visited[:-1], SDXL), answer, draws())
    after = drive("lms", 2.0, visited, answer, draws())
    assert after - before == pytest.approx(area(1.0) - area(4.0), rel=1e-12)


def test_tcd_step_matches_the_published_formula():
    first, last = SDXL.sigma(999), SDXL.sigma(500)
    below = SDXL.sigma(350)
    d = network(Evaluate(30.0, first))  # type: ignore[arg-type]
    expected = d + below * (30.0 - d) / first + 0.7 * math.sqrt(last**2 - below**2)
    got = drive("tcd", 30.0, Sigmas((first, last), SDXL), network, draws(0.7))
    assert got == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("name", "same"), [("ddim", "euler"), ("ddpm", "euler_a")])
def test_samplers_documented_as_equal_are_equal(name: str, same: str):
    visited = make_sigmas("trailing", 9, SDXL)
    z = [0.1 * k for k in range(9)]
    ours = drive(name, 9.0, visited, network, draws(*z))
    assert ours == drive(same, 9.0, visited, network, draws(*z))


# Comparison with the trajectories of diffusers' schedulers.

TRAINED: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}
WEIGHTS = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(5)) * 0.35


def epsilon(x: torch.Tensor, timestep: float) -> torch.Tensor:
    """A small random network of the timestep and of x in the UNet's scale."""
    hidden = torch.tanh(x @ WEIGHTS[0] + math.cos(timestep / 150))
    return 0.6 * x + torch.tanh(hidden @ WEIGHTS[1])


def run_sampler(name: str, x: torch.Tensor, visited: Sigmas, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)

    def answer(question: Evaluate) -> torch.Tensor:
        sigma = question.sigma
        seen = question.x / math.sqrt(1 + sigma**2)
        return question.x - sigma * epsilon(seen, SDXL.timestep(sigma))

    return drive(name, x, visited, answer, lambda: torch.randn(x.shape, generator=generator))


def run_diffusers_scheduler(
    scheduler: Any, x: torch.Tensor, visited: Sigmas, skip: int, seed: int
) -> torch.Tensor:
    """Run diffusers' scheduler over the sampler's sigmas, without its first `skip` timesteps."""
    generator = torch.Generator().manual_seed(seed)
    options: dict[str, Any] = {}
    if "generator" in scheduler.step.__code__.co_varnames:
        options["generator"] = generator
    preserving = not isinstance(scheduler, EXPLODING)
    if preserving:
        x = x / math.sqrt(1 + visited[0] ** 2)
    if skip and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(skip)
    timesteps = scheduler.timesteps[skip:]
    # If the last sigma is above 0, the scheduler's last step would begin there.
    for timestep in timesteps[:-1] if visited[-1] > 0 else timesteps:
        seen = scheduler.scale_model_input(x, timestep)
        t = float(timestep)
        if isinstance(scheduler, ROUNDING):
            # These schedulers round the timesteps of karras sigmas; the network needs exact ones.
            index = skip if scheduler.step_index is None else scheduler.step_index
            t = SDXL.timestep(float(scheduler.sigmas[index]))
        stepped: Any = scheduler.step(epsilon(seen, t), timestep, x, **options)
        x = stepped.prev_sample
    return x * math.sqrt(1 + visited[-1] ** 2) if preserving else x


EXPLODING = (
    EulerDiscreteScheduler,
    EulerAncestralDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2DiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    LMSDiscreteScheduler,
)
ROUNDING = (DPMSolverMultistepScheduler, UniPCMultistepScheduler, DEISMultistepScheduler)
LEADING: dict[str, Any] = {"timestep_spacing": "leading", "steps_offset": 1}
SDE: dict[str, Any] = {"algorithm_type": "sde-dpmsolver++"}
NO_CLIP: dict[str, Any] = {"clip_sample": False}

# Overpaint's name, diffusers' class and its options.
PAIRS: dict[str, tuple[Any, dict[str, Any]]] = {
    "euler": (EulerDiscreteScheduler, {}),
    "euler_a": (EulerAncestralDiscreteScheduler, {}),
    "heun": (HeunDiscreteScheduler, {}),
    "dpm2": (KDPM2DiscreteScheduler, {}),
    "dpm2_a": (KDPM2AncestralDiscreteScheduler, {}),
    "lms": (LMSDiscreteScheduler, {}),
    "dpmpp_2m": (DPMSolverMultistepScheduler, {}),
    "dpmpp_2m_sde": (DPMSolverMultistepScheduler, SDE),
    "unipc": (UniPCMultistepScheduler, {}),
    "deis": (DEISMultistepScheduler, {}),
    "ddim": (DDIMScheduler, {**NO_CLIP, "set_alpha_to_one": True}),
    "ddpm": (DDPMScheduler, NO_CLIP),
    "pndm": (PNDMScheduler, {"skip_prk_steps": True, "set_alpha_to_one": True}),
}
SPACINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "trailing": ("trailing", {"timestep_spacing": "trailing"}),
    "normal": ("normal", LEADING),
    "karras": ("karras", {"use_karras_sigmas": True}),
    "exponential": ("exponential", {"use_exponential_sigmas": True}),
}
SIGMAS_SCHEDULERS = {"euler", "heun", "lms", "dpmpp_2m", "dpmpp_2m_sde", "unipc", "deis"}
# The "leading" timesteps of these schedulers are those of steps + 1, without the last.
OWN_LEADING = {"dpmpp_2m", "dpmpp_2m_sde", "unipc", "deis"}
# In the middle of a schedule, these two of diffusers use a history that does not exist.
NOT_FROM_THE_MIDDLE = {"lms", "pndm"}
CASES = [
    (name, spacing, skip)
    for name in PAIRS
    for spacing in SPACINGS
    for skip in (0, 4)
    if not (skip and name in NOT_FROM_THE_MIDDLE)
    and not (spacing in {"karras", "exponential"} and name not in SIGMAS_SCHEDULERS)
    and not (spacing == "normal" and name in OWN_LEADING)
    and not (spacing == "normal" and name in {"dpm2", "dpm2_a"})  # diffusers' are slow
]


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return float((a - b).abs().max() / b.abs().max()) < 1e-4


@pytest.mark.parametrize(("name", "spacing", "skip"), CASES)
def test_sampler_matches_the_diffusers_scheduler(name: str, spacing: str, skip: int):
    kind, options = PAIRS[name]
    schedule, spaced = SPACINGS[spacing]
    scheduler = kind(**TRAINED, **options, **spaced)
    scheduler.set_timesteps(10)
    visited = make_sigmas(schedule, 10, SDXL)
    # diffusers' DEIS ends at the smallest sigma, Overpaint's at 0.
    visited = Sigmas(visited[skip : -1 if name == "deis" else None], SDXL)
    x = torch.randn(2, 16, generator=torch.Generator().manual_seed(0)) * visited[0]
    reference = run_diffusers_scheduler(
        scheduler, x, visited, skip * SAMPLERS[name].evaluations, seed=3
    )
    assert close(run_sampler(name, x, visited, seed=3), reference)


@pytest.mark.parametrize(
    ("name", "kind", "end"), [("lcm", LCMScheduler, [0.0]), ("tcd", TCDScheduler, [])]
)
def test_distilled_sampler_matches_the_diffusers_scheduler(name: str, kind: Any, end: list[float]):
    # diffusers' TCD ends at timestep 0, which still has noise; Overpaint's ends at sigma 0.
    scheduler = kind(**TRAINED)
    scheduler.set_timesteps(5)
    timesteps = np.array(scheduler.timesteps.tolist(), dtype=np.float64)
    visited = Sigmas([*SDXL.sigmas_at(timesteps).tolist(), *end], SDXL)
    x = torch.randn(2, 16, generator=torch.Generator().manual_seed(0)) * visited[0]
    assert close(
        run_sampler(name, x, visited, seed=3),
        run_diffusers_scheduler(scheduler, x, visited, 0, seed=3),
    )
