"""Samplers: coroutines that go from noise to a picture without calling the network.

A sampler yields `Evaluate(x, sigma)` and receives `denoised`, the network's estimate of the clean
picture in x. The denoising loop collects the pending evaluations of many samplers and answers all
of them with one network call.

All formulas use the coordinates of k-diffusion (arXiv 2206.00364): `x = x0 + sigma * eps`. In these
coordinates, the probability-flow ODE of every diffusion model is

    dx / dsigma = (x - denoised) / sigma            the slope, which is the estimate of eps

The alpha bar of the DDPM literature is 1 / (1 + sigma²), and its x is sqrt(alpha bar) times this x.
Sigmas descend, usually to 0, where the picture is clean.

All samplers combine four parts:

- `_move`: the exact solution of the ODE for a constant `denoised`;
- `_ancestral`: a step below the next sigma, then noise up to it;
- a second evaluation in a step (`_trapezoid`, `_dpm2_step`, `_dpmpp_2s_step`);
- a polynomial through the network's estimates of earlier steps (`_mean`).

To add a sampler, write a function here and add its name to `registry.SAMPLERS`. Samplers do not
change x in place and use only + - * / on it. They therefore work with any shape and any tensor
library. Coefficients are Python floats.
"""

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias

from overpaint.diffusion.schedule import Sigmas
from overpaint.registry import SAMPLERS

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Evaluate:
    """A request to the network for its estimate of the clean picture in `x`.

    Attributes:
        x: picture plus noise, not scaled.
        sigma: the standard deviation of the noise in `x`, above 0.
        guided: whether classifier-free guidance may act.
    """

    x: "Tensor"
    sigma: float
    guided: bool = True


Noise: TypeAlias = "Callable[[], Tensor]"
"""Draws new unit Gaussian noise in the shape of x."""

Steps: TypeAlias = "Generator[Evaluate, Tensor, Tensor]"
"""Yields evaluations, receives `denoised`, returns x at the last sigma."""

Sampler: TypeAlias = "Callable[[Tensor, Sigmas, Noise], Steps]"
"""Takes x at the first sigma, the sigmas to visit, and a source of noise."""

Past: TypeAlias = "list[tuple[float, Tensor]]"
"""The estimates at earlier sigmas, the latest last."""


def get_sampler(name: str) -> Sampler:
    """Return the sampler for a key of `registry.SAMPLERS`."""
    return globals()[SAMPLERS[name].name]


# One evaluation per step.


def euler(x: "Tensor", sigmas: Sigmas, noise: Noise) -> Steps:
    """Euler's method (arXiv 2206.00364, algorithm 1 without its correction)."""
    for sigma, sigma_next in pairwise(sigmas):
        denoised = yield Evaluate(x, sigma)
        x = x + _slope(x, denoised, sigma) * (sigma_next - sigma)
    return x


def euler_a(x: "Tensor", sigmas: Sigmas, noise: Noise) -> Steps:
    """Euler's method with ancestral noise (k-diffusion's `sample_euler_ancestral`, eta 1)."""
    for sigma, sigma_next in pairwise(sigmas):
        denoised = yield Evaluate(x, sigma)
        down, up = _ancestral(sigma, sigma_next)
        x = _move(x, denoised, sigma, down) + noise() * up
    return x


def ddim(x: "Tensor", sigmas: Sigmas, noise: Noise) -> Steps:
    """DDIM with eta 0 (arXiv 2010.02502, equation 12); Euler in these coordinates (equation 13)."""
    return euler(x, sigmas, noise)


def ddpm(x: "Tensor", sigmas: Sigmas, noise: Noise) -> Steps:
    """DDPM (arXiv 2006.11239, algorithm 2, with the posterior's variance of equation 7).

    The posterior has the mean denoised + (sigma_next / sigma)² (x - denoised) and the standard
    deviation sigma_next sqrt(1 - (sigma_next / sigma)²). In these coordinates, that is Euler a.
    """
    return euler_a(x, sigmas, noise)


def lcm(x: "Tensor", sigmas: Sigmas, noise: Noise) -> Steps:
    """Latent consistency models (arXiv 2310.04378, algorithm 3): denoise fully, add noise again.

    The boundary scalings c_skip and c_out are set to 0 and 1. That is right to 1e-5 at every
    timestep on which LCM is distilled (19, 39, …, 999).
    """
    for sigma, sigma_next in pairwise(sigmas):
        denoised = yield Evaluate(x, sigma)
        x = denoised + noise() * sigma_next
    return x


TCD_GAMMA = 0.3


def tcd(x: "Tensor", sigmas: Sigmas, noise: Noise) -> Steps:
    """Strategic stochastic sampling of TCD (arXiv 2402.19159), gamma 0.3.

    A step follows the ODE to timestep (1 - gamma) t_next, then adds noise up to t_next. The last
    step ends at the clean picture, as in the paper. diffusers stops at timestep 0, which has a
    little noise left.
    """
    for sigma, sigma_next in pairwise(sigmas):
        denoised = yield Evaluate(x, sigma)
        timestep = math.floor((1 - TCD_GAMMA) * sigmas.schedule.timestep(sigma_next))
        # There is no timestep below the table's first sigma.
        below = min(sigmas.schedule.sigma(timestep), sigma_next)
        x = _move(x, denoised, sigma, below) + noise() * math.sqrt(sigma_next**2 - below**2)
    return x


# Two evaluations per step, except on the step to 0.


def heun(x: "Tensor", sigmas: Sigmas, noise: Noise) -> Steps:
    """Heun's method (arXiv 2206.00364, algorithm 1)."""
    for sigma, sigma_next in pairwise(sigmas):
        slope = _slope(x, (yield Evaluate(x, sigma)), sigma)
        if sigma_next > 0:
            slope = yield from _trapezoid(x, slope, sigma, sigma_next)
        x = x + slope * (sigma_next - sigma)
    return x


def dpm2(x: "Tensor", sigmas: Sigmas, noise: Noise) -> Steps:
    """DPM-Solver-2 (arXiv 2206.00927, algorithm 1), k-diffusion's `sample_dpm_2`."""
    for sigma, sigma_next in pairwise(sigmas):
        x = yield from _dpm2_step(x, sigma, sigma_next)
    return x


def dpm2_a(x: "Tensor", sigmas: Sigmas, noise: Noise) -> Steps:
    """DPM-Solver-2 with ancestral noise (k-diffusion's `sample_dpm_2_ancestral`, eta 1)."""
    for sigma, sigma_next in pairwise(sigmas):
        down, up = _ancestral(sigma, sigma_next)
        x = (yield from _dpm2_step(x, sigma, down)) + noise() * up
    return x


def dpmpp_2s_a(x: "Tensor", sigmas: Sigmas, noise: Noise) -> Steps:
    """DPM-Solver++(2S) (arXiv 2211.01095, algorithm 1, r = 1/2) with ancestral noise.

    k-diffusion's `sample_dpmpp_2s_ancestral`, eta 1.
    """
    for sigma, sigma_next in pairwise(sigmas):
        down, up = _ancestral(sigma, sigma_next)
        x = (yield from _dpmpp_2s_step(x, sigma, down)) + noise() * up
    return x


def dpmpp_sde(x: "Tensor", sigmas: Sigmas, noise: Noise) -> Steps:
    """DPM-Solver++ for the SDE, single step, r = 1/2 (k-diffusion's `sample_dpmpp_sde`, eta 1).

    The noise at the middle of a step is part of the noise at its end, as on one path of the SDE.
    k-diffusion uses a Brownian tree for that; here, two draws per step give the path.
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


# Multistep samplers. The history starts empty, wherever in a schedule the run begins.


def lms(x: "Tensor", sigmas: Sigmas, noise: Noise) -> Steps:
    """Linear multistep of order 4 in sigma (k-diffusion's `sample_lms`), integrated exactly."""
    past: Past = []
    for sigma, sigma_next in pairwise(sigmas):
        slope = _slope(x, (yield Evaluate(x, sigma)), sigma)
        past = [*past[-3:], (sigma, slope)]
        nodes = [(before - sigma) / (sigma_next - sigma) for before, _ in past]
        x = x + _weighted(_weights(nodes), [slope for _, slope in past]) * (sigma_next - sigma)
    return x


def pndm(x: "Tensor", sigmas: Sigmas, noise: Noise) -> Steps:
    """Pseudo linear multistep, PLMS (arXiv 2202.09778, equations 9 and 12), order 4.

    Adams-Bashforth over the step number, which assumes evenly spaced timesteps. The first step is
    an improved Euler step with one more evaluation.
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


def deis(x: "Tensor", sigmas: Sigmas, noise: Noise) -> Steps:
    """DEIS of order 2, multistep in log rho (arXiv 2204.13902): eps is linear in log sigma."""
    past: Past = []
    for sigma, sigma_next in pairwise(sigmas):
        past = [*past[-1:], (sigma, _slope(x, (yield Evaluate(x, sigma)), sigma))]
        x = x + _mean(past, sigma, sigma_next, tilt=-1) * (sigma_next - sigma)
    return x


def dpmpp_2m(x: "Tensor", sigmas: Sigmas, noise: Noise) -> Steps:
    """DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2)."""
    past: Past = []
    for sigma, sigma_next in pairwise(sigmas):
        past = [*past[-1:], (sigma, (yield Evaluate(x, sigma)))]
        x = _move(x, _mean(past, sigma, sigma_next), sigma, sigma_next)
    return x


def dpmpp_2m_sde(x: "Tensor", sigmas: Sigmas, noise: Noise) -> Steps:
    """SDE-DPM-Solver++(2M) (arXiv 2211.01095), `sample_dpmpp_2m_sde` with midpoint and eta 1."""
    past: Past = []
    for sigma, sigma_next in pairwise(sigmas):
        past = [*past[-1:], (sigma, (yield Evaluate(x, sigma)))]
        down, up = _ancestral(sigma, sigma_next)
        x = _move(x, _mean(past, sigma, sigma_next), sigma, down) + noise() * up
    return x


def dpmpp_3m_sde(x: "Tensor", sigmas: Sigmas, noise: Noise) -> Steps:
    """SDE-DPM-Solver++ of order 3 (arXiv 2211.01095), k-diffusion's `sample_dpmpp_3m_sde`, eta 1.

    The quadratic term has the weight of the SDE's integral; k-diffusion's code uses half of it.
    """
    past: Past = []
    for sigma, sigma_next in pairwise(sigmas):
        past = [*past[-2:], (sigma, (yield Evaluate(x, sigma)))]
        down, up = _ancestral(sigma, sigma_next)
        x = _move(x, _mean(past, sigma, sigma_next, tilt=2), sigma, down) + noise() * up
    return x


def unipc(x: "Tensor", sigmas: Sigmas, noise: Noise) -> Steps:
    """UniPC of order 2, B2(h), data prediction (arXiv 2302.04867).

    UniP-2 predicts the next x. The network evaluates it, and UniC repeats the step with that
    estimate at its end. At order 1, both use the simplified coefficient 1/2, as the authors do.
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


# Parts of samplers.


def _slope(x: "Tensor", denoised: "Tensor", sigma: float) -> "Tensor":
    """Return dx / dsigma of the probability-flow ODE (arXiv 2206.00364, equations 1 and 3)."""
    return (x - denoised) / sigma


def _move(x: "Tensor", denoised: "Tensor", sigma: float, sigma_next: float) -> "Tensor":
    """Solve the ODE from sigma to sigma_next for a constant `denoised`."""
    return denoised + (x - denoised) * (sigma_next / sigma)


def _ancestral(sigma: float, sigma_next: float) -> tuple[float, float]:
    """Return two sigmas that split a step: `down` for the ODE, `up` for the noise after it.

    Together they reach sigma_next: down² + up² = sigma_next². A `_move` to `down` plus the noise is
    the posterior of DDPM, and the exact solution of the SDE for a constant `denoised`.
    """
    ratio = sigma_next / sigma
    return sigma_next * ratio, sigma_next * math.sqrt(1 - ratio**2)


def _trapezoid(x: "Tensor", slope: "Tensor", sigma: float, sigma_next: float) -> Steps:
    """Return the mean of the slopes at the start and at the end of an Euler step."""
    ahead = x + slope * (sigma_next - sigma)
    denoised = yield Evaluate(ahead, sigma_next)
    return (slope + _slope(ahead, denoised, sigma_next)) / 2


def _dpm2_step(x: "Tensor", sigma: float, sigma_next: float) -> Steps:
    """Take a step with the slope at its middle in log sigma."""
    slope = _slope(x, (yield Evaluate(x, sigma)), sigma)
    if sigma_next > 0:
        middle = math.sqrt(sigma * sigma_next)
        ahead = x + slope * (middle - sigma)
        slope = _slope(ahead, (yield Evaluate(ahead, middle)), middle)
    return x + slope * (sigma_next - sigma)


def _dpmpp_2s_step(x: "Tensor", sigma: float, sigma_next: float) -> Steps:
    """Take a step with `denoised` at its middle in log sigma."""
    denoised = yield Evaluate(x, sigma)
    if sigma_next > 0:
        middle = math.sqrt(sigma * sigma_next)
        denoised = yield Evaluate(_move(x, denoised, sigma, middle), middle)
    return _move(x, denoised, sigma, sigma_next)


def _mean(past: Past, sigma: float, sigma_next: float, tilt: float = 0) -> "Tensor":
    """Return the mean, over a step, of the polynomial in log sigma through earlier estimates.

    Let u run from 0 to 1 in log sigma and h be the step's length. The mean has the weight
    exp(tilt h u), which the integral of a step prescribes: tilt is 1 for `denoised` in the ODE, 2
    for it in the SDE, and -1 for eps. Tilt 0 is the midpoint rule, of the same order up to order 2.

    The step to 0 is infinitely long in log sigma; its mean is the latest estimate.
    """
    if sigma_next == 0:
        return past[-1][1]
    h = math.log(sigma / sigma_next)
    nodes = [math.log(sigma / before) / h for before, _ in past]
    return _weighted(_weights(nodes, tilt * h), [value for _, value in past])


def _weights(nodes: Sequence[float], tilt: float = 0) -> list[float]:
    """Return the weight of each node in the mean, over 0..1, of the polynomial through the nodes.

    The mean has the weight exp(tilt u). A node's weight is the mean of its Lagrange polynomial.
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
    """Return the means over 0..1 of 1, u, u², … with weight exp(tilt u), by parts."""
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
