"""Samplers: coroutines that walk from noise to a picture and never call the network.

A sampler yields `Evaluate(x, sigma)` and is sent `denoised`, the network's estimate of the clean
picture behind x. Whoever drives many of them answers all pending questions with one network call.

Everything is in the coordinates of k-diffusion (arXiv 2206.00364): `x = x0 + sigma * eps`. There
the probability-flow ODE of every diffusion model is

    dx / dsigma = (x - denoised) / sigma            the slope, which is the estimate of eps

and an alpha bar of the DDPM literature is 1 / (1 + sigma²), its x being sqrt(alpha bar) times ours.
Sigmas descend, usually to 0, where the picture is clean.

All samplers are made of four things:

- `_move`: the exact solution of the ODE while `denoised` stays the same;
- `_ancestral`: go below the next sigma and come back by adding noise;
- two evaluations a step: a look ahead (`_trapezoid`, `_dpm2_step`, `_dpmpp_2s_step`);
- several steps' memory: a polynomial through what the network said before (`_mean`).

To add a sampler, write a function here and give it a line of its name in `names.SAMPLERS`. x is
never changed in place and only sees + - * /, so any shape and any library's tensor will do;
coefficients are Python floats.
"""

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias

from overpaint.registry import SAMPLERS

if TYPE_CHECKING:
    from torch import Tensor

    from overpaint.diffusion.schedule import Sigmas


@dataclass(frozen=True)
class Evaluate:
    """A question to the network: the clean picture behind x.

    Attributes:
        x: picture plus noise, not scaled.
        sigma: the standard deviation of the noise in it, above 0.
    """

    x: "Tensor"
    sigma: float


Noise: TypeAlias = "Callable[[], Tensor]"
"""Draws fresh unit Gaussian noise of x's shape."""

Steps: TypeAlias = "Generator[Evaluate, Tensor, Tensor]"
"""Yields questions, is sent `denoised`, returns x at the last sigma."""

Sampler: TypeAlias = "Callable[[Tensor, Sigmas, Noise], Steps]"
"""Takes x at the first sigma, the sigmas to visit, and a source of noise."""

Past: TypeAlias = "list[tuple[float, Tensor]]"
"""What was found at the sigmas before, the newest last."""


def get_sampler(name: str) -> Sampler:
    """The sampler of that name in `names.SAMPLERS`."""
    return globals()[SAMPLERS[name].name]


# One evaluation a step.


def euler(x: "Tensor", sigmas: "Sigmas", noise: Noise) -> Steps:
    """Euler's method (arXiv 2206.00364, algorithm 1 without its correction)."""
    for sigma, sigma_next in pairwise(sigmas):
        denoised = yield Evaluate(x, sigma)
        x = x + _slope(x, denoised, sigma) * (sigma_next - sigma)
    return x


def euler_a(x: "Tensor", sigmas: "Sigmas", noise: Noise) -> Steps:
    """Euler's method with ancestral noise (k-diffusion's `sample_euler_ancestral`, eta 1)."""
    for sigma, sigma_next in pairwise(sigmas):
        denoised = yield Evaluate(x, sigma)
        down, up = _ancestral(sigma, sigma_next)
        x = _move(x, denoised, sigma, down) + noise() * up
    return x


def ddim(x: "Tensor", sigmas: "Sigmas", noise: Noise) -> Steps:
    """DDIM with eta 0 (arXiv 2010.02502, equation 12): in these coordinates Euler (equation 13)."""
    return euler(x, sigmas, noise)


def ddpm(x: "Tensor", sigmas: "Sigmas", noise: Noise) -> Steps:
    """DDPM (arXiv 2006.11239, algorithm 2, with the posterior's variance of equation 7).

    That posterior has mean denoised + (sigma_next / sigma)² (x - denoised) and standard deviation
    sigma_next sqrt(1 - (sigma_next / sigma)²): in these coordinates it is Euler a.
    """
    return euler_a(x, sigmas, noise)


def lcm(x: "Tensor", sigmas: "Sigmas", noise: Noise) -> Steps:
    """Latent consistency models (arXiv 2310.04378, algorithm 3): denoise wholly, add noise again.

    The boundary scalings c_skip and c_out are taken as 0 and 1, which they are to 1e-5 at every
    timestep that LCM is distilled on (19, 39, …, 999).
    """
    for sigma, sigma_next in pairwise(sigmas):
        denoised = yield Evaluate(x, sigma)
        x = denoised + noise() * sigma_next
    return x


TCD_GAMMA = 0.3


def tcd(x: "Tensor", sigmas: "Sigmas", noise: Noise) -> Steps:
    """Strategic stochastic sampling of TCD (arXiv 2402.19159), gamma 0.3.

    Jumps along the trajectory to timestep (1 - gamma) t_next, then adds noise up to t_next. The
    last jump is to the clean picture, as in the paper; diffusers stops at timestep 0, which still
    has a little noise.
    """
    for sigma, sigma_next in pairwise(sigmas):
        denoised = yield Evaluate(x, sigma)
        timestep = math.floor((1 - TCD_GAMMA) * sigmas.schedule.timestep(sigma_next))
        # Below the table's first sigma there is no timestep to stop at.
        below = min(sigmas.schedule.sigma(timestep), sigma_next)
        x = _move(x, denoised, sigma, below) + noise() * math.sqrt(sigma_next**2 - below**2)
    return x


# Two evaluations a step: a look ahead, except on the step to 0.


def heun(x: "Tensor", sigmas: "Sigmas", noise: Noise) -> Steps:
    """Heun's method (arXiv 2206.00364, algorithm 1)."""
    for sigma, sigma_next in pairwise(sigmas):
        slope = _slope(x, (yield Evaluate(x, sigma)), sigma)
        if sigma_next > 0:
            slope = yield from _trapezoid(x, slope, sigma, sigma_next)
        x = x + slope * (sigma_next - sigma)
    return x


def dpm2(x: "Tensor", sigmas: "Sigmas", noise: Noise) -> Steps:
    """DPM-Solver-2 (arXiv 2206.00927, algorithm 1), k-diffusion's `sample_dpm_2`."""
    for sigma, sigma_next in pairwise(sigmas):
        x = yield from _dpm2_step(x, sigma, sigma_next)
    return x


def dpm2_a(x: "Tensor", sigmas: "Sigmas", noise: Noise) -> Steps:
    """DPM-Solver-2 with ancestral noise (k-diffusion's `sample_dpm_2_ancestral`, eta 1)."""
    for sigma, sigma_next in pairwise(sigmas):
        down, up = _ancestral(sigma, sigma_next)
        x = (yield from _dpm2_step(x, sigma, down)) + noise() * up
    return x


def dpmpp_2s_a(x: "Tensor", sigmas: "Sigmas", noise: Noise) -> Steps:
    """DPM-Solver++(2S) (arXiv 2211.01095, algorithm 1, r = 1/2) with ancestral noise.

    k-diffusion's `sample_dpmpp_2s_ancestral`, eta 1.
    """
    for sigma, sigma_next in pairwise(sigmas):
        down, up = _ancestral(sigma, sigma_next)
        x = (yield from _dpmpp_2s_step(x, sigma, down)) + noise() * up
    return x


def dpmpp_sde(x: "Tensor", sigmas: "Sigmas", noise: Noise) -> Steps:
    """DPM-Solver++ for the SDE, single step, r = 1/2 (k-diffusion's `sample_dpmpp_sde`, eta 1).

    The noise at the middle of a step is part of the noise at its end, as on one path of the SDE.
    k-diffusion gets there by a Brownian tree; here two draws a step make the path.
    """
    for sigma, sigma_next in pairwise(sigmas):
        denoised = yield Evaluate(x, sigma)
        if sigma_next > 0:
            middle = math.sqrt(sigma * sigma_next)
            down, up = _ancestral(sigma, middle)
            path = noise() * up
            denoised = yield Evaluate(_move(x, denoised, sigma, down) + path, middle)
            down, up = _ancestral(middle, sigma_next)
            path = path * (down / middle) + noise() * up
            down, _ = _ancestral(sigma, sigma_next)
            x = _move(x, denoised, sigma, down) + path
        else:
            x = denoised
    return x


# Several steps' memory. Histories start empty, in the middle of a schedule as at its beginning.


def lms(x: "Tensor", sigmas: "Sigmas", noise: Noise) -> Steps:
    """Linear multistep of order 4 in sigma (k-diffusion's `sample_lms`), integrated exactly."""
    past: Past = []
    for sigma, sigma_next in pairwise(sigmas):
        slope = _slope(x, (yield Evaluate(x, sigma)), sigma)
        past = [*past[-3:], (sigma, slope)]
        nodes = [(before - sigma) / (sigma_next - sigma) for before, _ in past]
        x = x + _weighted(_weights(nodes), [slope for _, slope in past]) * (sigma_next - sigma)
    return x


def pndm(x: "Tensor", sigmas: "Sigmas", noise: Noise) -> Steps:
    """Pseudo linear multistep, PLMS (arXiv 2202.09778, equations 9 and 12), order 4.

    Adams-Bashforth in the number of the step, so made for schedules that space timesteps evenly.
    The first step is an improved Euler step, which costs one evaluation more.
    """
    slopes: list[Tensor] = []
    for sigma, sigma_next in pairwise(sigmas):
        slopes = [*slopes[-3:], _slope(x, (yield Evaluate(x, sigma)), sigma)]
        if len(slopes) == 1 and sigma_next > 0:
            slope = yield from _trapezoid(x, slopes[0], sigma, sigma_next)
        else:
            slope = _weighted(_weights(range(1 - len(slopes), 1)), slopes)
        x = x + slope * (sigma_next - sigma)
    return x


def deis(x: "Tensor", sigmas: "Sigmas", noise: Noise) -> Steps:
    """DEIS of order 2, multistep in log rho (arXiv 2204.13902): eps is linear in log sigma."""
    past: Past = []
    for sigma, sigma_next in pairwise(sigmas):
        past = [*past[-1:], (sigma, _slope(x, (yield Evaluate(x, sigma)), sigma))]
        x = x + _mean(past, sigma, sigma_next, tilt=-1) * (sigma_next - sigma)
    return x


def dpmpp_2m(x: "Tensor", sigmas: "Sigmas", noise: Noise) -> Steps:
    """DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2)."""
    past: Past = []
    for sigma, sigma_next in pairwise(sigmas):
        past = [*past[-1:], (sigma, (yield Evaluate(x, sigma)))]
        x = _move(x, _mean(past, sigma, sigma_next), sigma, sigma_next)
    return x


def dpmpp_2m_sde(x: "Tensor", sigmas: "Sigmas", noise: Noise) -> Steps:
    """SDE-DPM-Solver++(2M) (arXiv 2211.01095), `sample_dpmpp_2m_sde` with midpoint and eta 1."""
    past: Past = []
    for sigma, sigma_next in pairwise(sigmas):
        past = [*past[-1:], (sigma, (yield Evaluate(x, sigma)))]
        down, up = _ancestral(sigma, sigma_next)
        x = _move(x, _mean(past, sigma, sigma_next), sigma, down) + noise() * up
    return x


def dpmpp_3m_sde(x: "Tensor", sigmas: "Sigmas", noise: Noise) -> Steps:
    """SDE-DPM-Solver++ of order 3 (arXiv 2211.01095), k-diffusion's `sample_dpmpp_3m_sde`, eta 1.

    The quadratic term has the weight that the SDE's integral gives it; k-diffusion's code has half.
    """
    past: Past = []
    for sigma, sigma_next in pairwise(sigmas):
        past = [*past[-2:], (sigma, (yield Evaluate(x, sigma)))]
        down, up = _ancestral(sigma, sigma_next)
        x = _move(x, _mean(past, sigma, sigma_next, tilt=2), sigma, down) + noise() * up
    return x


def unipc(x: "Tensor", sigmas: "Sigmas", noise: Noise) -> Steps:
    """UniPC of order 2, B2(h), data prediction (arXiv 2302.04867).

    UniP-2 predicts the next x; once the network has answered there, UniC redoes the step with the
    answer as its end. Of order 1, both use the simplified coefficient 1/2, as the authors do.
    """
    past: Past = []
    x_before, sigma_before = x, sigmas[0]
    for sigma, sigma_next in pairwise(sigmas):
        past = [*past[-2:], (sigma, (yield Evaluate(x, sigma)))]
        if len(past) > 1:
            tilt = 1 if len(past) == 3 else 0
            corrected = _mean(past, sigma_before, sigma, tilt)
            x = _move(x_before, corrected, sigma_before, sigma)
        x_before, sigma_before = x, sigma
        x = _move(x, _mean(past[-2:], sigma, sigma_next), sigma, sigma_next)
    return x


# What they are made of.


def _slope(x: "Tensor", denoised: "Tensor", sigma: float) -> "Tensor":
    """The probability-flow ODE's dx / dsigma (arXiv 2206.00364, equations 1 and 3)."""
    return (x - denoised) / sigma


def _move(x: "Tensor", denoised: "Tensor", sigma: float, sigma_next: float) -> "Tensor":
    """Solve the ODE from sigma to sigma_next for a constant `denoised`."""
    return denoised + (x - denoised) * (sigma_next / sigma)


def _ancestral(sigma: float, sigma_next: float) -> tuple[float, float]:
    """Split a step in two: down by the ODE to the first sigma, then up by noise of the second.

    Together they arrive at sigma_next: down² + up² = sigma_next². A `_move` down with this noise
    is the posterior of DDPM, and the exact solution of the SDE for a constant `denoised`.
    """
    ratio = sigma_next / sigma
    return sigma_next * ratio, sigma_next * math.sqrt(1 - ratio**2)


def _trapezoid(x: "Tensor", slope: "Tensor", sigma: float, sigma_next: float) -> Steps:
    """The mean of the slope here and the slope where it leads."""
    ahead = x + slope * (sigma_next - sigma)
    denoised = yield Evaluate(ahead, sigma_next)
    return (slope + _slope(ahead, denoised, sigma_next)) / 2


def _dpm2_step(x: "Tensor", sigma: float, sigma_next: float) -> Steps:
    """A step with the slope at its middle in log sigma."""
    slope = _slope(x, (yield Evaluate(x, sigma)), sigma)
    if sigma_next > 0:
        middle = math.sqrt(sigma * sigma_next)
        ahead = x + slope * (middle - sigma)
        slope = _slope(ahead, (yield Evaluate(ahead, middle)), middle)
    return x + slope * (sigma_next - sigma)


def _dpmpp_2s_step(x: "Tensor", sigma: float, sigma_next: float) -> Steps:
    """A step with `denoised` at its middle in log sigma."""
    denoised = yield Evaluate(x, sigma)
    if sigma_next > 0:
        middle = math.sqrt(sigma * sigma_next)
        denoised = yield Evaluate(_move(x, denoised, sigma, middle), middle)
    return _move(x, denoised, sigma, sigma_next)


def _mean(past: Past, sigma: float, sigma_next: float, tilt: float = 0) -> "Tensor":
    """The mean over a step of the polynomial in log sigma through what was found before.

    With u running from 0 to 1 in log sigma, and h the step's length, the mean is weighted by
    exp(tilt h u). The integral that a step stands for has such a weight: tilt 1 for `denoised` in
    the ODE, 2 in the SDE, -1 for eps. Tilt 0 is the midpoint rule, of the same order up to 2.

    On the step to 0, which is infinitely long in log sigma, it is the newest value.
    """
    if sigma_next == 0:
        return past[-1][1]
    h = math.log(sigma / sigma_next)
    nodes = [math.log(sigma / before) / h for before, _ in past]
    return _weighted(_weights(nodes, tilt * h), [value for _, value in past])


def _weights(nodes: Sequence[float], tilt: float = 0) -> list[float]:
    """What each node adds to the mean, over 0..1, of the polynomial through them.

    The mean is weighted by exp(tilt u): the weights are the means of Lagrange's basis polynomials.
    """
    moments = _moments(len(nodes), tilt)
    weights: list[float] = []
    for node in nodes:
        basis = [1.0]
        for other in nodes:
            if other != node:
                # Multiply the basis polynomial by (u - other) / (node - other).
                times_u, times_other = [0.0, *basis], [*(other * b for b in basis), 0.0]
                pairs = zip(times_u, times_other, strict=True)
                basis = [(a - b) / (node - other) for a, b in pairs]
        weights.append(sum(b * m for b, m in zip(basis, moments, strict=True)))
    return weights


def _moments(count: int, tilt: float) -> list[float]:
    """The means over 0..1 of 1, u, u², … weighted by exp(tilt u): integration by parts."""
    if tilt == 0:
        return [1 / (power + 1) for power in range(count)]
    moments = [1.0]
    for power in range(1, count):
        moments.append(-1 / math.expm1(-tilt) - power / tilt * moments[-1])
    return moments


def _weighted(weights: Sequence[float], values: "Sequence[Tensor]") -> "Tensor":
    total = values[0] * weights[0]
    for weight, value in zip(weights[1:], values[1:], strict=True):
        total = total + value * weight
    return total
