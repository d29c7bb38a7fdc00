"""Noise schedules: the sigmas that a sampler visits.

Sigma is the standard deviation of the noise in `x = x0 + sigma * eps`. The cumulative product of
training (arXiv 2006.11239, "alpha bar") gives it: `sigma² = (1 - alpha_bar) / alpha_bar`.

A schedule is a function of the position: it returns the sigmas at steps `i` of `n`. A small
strength needs only the tail of a long schedule, and that tail costs as little as a short schedule.
"""

import math
from collections.abc import Callable, Iterable
from typing import Literal, Self

import numpy as np
import numpy.typing as npt

from overpaint.errors import RequestError
from overpaint.models.noise_config import NoiseConfig
from overpaint.registry import SCHEDULES
from overpaint.request.model import count_steps

FloatArray = npt.NDArray[np.float64]

MIN_STRENGTH = 1e-6
"""The smallest strength above 0; smaller changes are below the arithmetic's precision."""


class NoiseSchedule:
    """The noise level of each training timestep.

    Timesteps run from 0 (least noise) to `last_timestep`. Between them, log sigma is interpolated
    linearly, as in k-diffusion, so that each sigma has a (fractional) timestep.

    Attributes:
        alphas_cumprod: [timesteps], float64, falling.
        sigmas: [timesteps], float64, rising.
        offset: the first timestep of the schedule "normal".
    """

    def __init__(self, config: NoiseConfig):
        self.alphas_cumprod = _compute_alphas_cumprod(config)
        self.sigmas = np.sqrt((1 - self.alphas_cumprod) / self.alphas_cumprod)
        self.offset = config.steps_offset
        self._log_sigmas = np.log(self.sigmas)
        self._timesteps = np.arange(config.steps, dtype=np.float64)

    @property
    def sigma_min(self) -> float:
        """The sigma of timestep 0."""
        return float(self.sigmas[0])

    @property
    def sigma_max(self) -> float:
        """The sigma of the last timestep: pure noise."""
        return float(self.sigmas[-1])

    @property
    def last_timestep(self) -> int:
        """The timestep with the most noise: the number of timesteps minus 1."""
        return len(self.sigmas) - 1

    def timestep(self, sigma: float) -> float:
        """Return the timestep of a sigma, clamped to 0 … `last_timestep`."""
        if sigma <= self.sigma_min:
            return 0.0
        return float(np.interp(math.log(sigma), self._log_sigmas, self._timesteps))

    def progress(self, sigma: float) -> float:
        """Return the progress of denoising by timestep: 0 at pure noise, 1 at a clean picture."""
        return 1 - self.timestep(sigma) / self.last_timestep

    def sigma(self, timestep: float) -> float:
        """Return the sigma of a timestep in 0 … `last_timestep`; the inverse of `timestep`."""
        return float(self.sigmas_at(np.array([timestep], dtype=np.float64))[0])

    def sigmas_at(self, timesteps: FloatArray) -> FloatArray:
        """Return the sigmas of timesteps."""
        return np.exp(np.interp(timesteps, self._timesteps, self._log_sigmas))


def _compute_alphas_cumprod(config: NoiseConfig) -> FloatArray:
    if config.beta_schedule == "linear":
        betas = np.linspace(config.beta_start, config.beta_end, config.steps)
    else:
        betas = np.linspace(config.beta_start**0.5, config.beta_end**0.5, config.steps) ** 2
    alphas_cumprod: FloatArray = np.cumprod(1 - betas, dtype=np.float64)
    return (
        _rescale_to_zero_terminal_snr(alphas_cumprod)
        if config.zero_terminal_snr
        else alphas_cumprod
    )


def _rescale_to_zero_terminal_snr(alphas_cumprod: FloatArray) -> FloatArray:
    """Rescale so that the last timestep is pure noise (arXiv 2305.08891, algorithm 1).

    The last value becomes 2⁻²⁴ and not 0, as in diffusers, so that its sigma is finite (4096).
    """
    signal = np.sqrt(alphas_cumprod)
    signal = (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
    signal[-1] = 2.0**-12
    return signal**2


class Sigmas(tuple[float, ...]):
    """The sigmas that a sampler visits: strictly descending, usually to 0; one step per pair.

    Attributes:
        schedule: relates these sigmas to training timesteps.
    """

    schedule: NoiseSchedule

    def __new__(cls, values: Iterable[float], schedule: NoiseSchedule) -> Self:
        """Make sigmas for the model of a noise schedule."""
        self = super().__new__(cls, values)
        self.schedule = schedule
        return self


def make_sigmas(
    name: str, steps: int, noise: NoiseSchedule, *, drop_penultimate: bool = False
) -> Sigmas:
    """Return the sigmas of a whole schedule.

    Args:
        name: a key of `registry.SCHEDULES`.
        steps: steps of the sampler, at least 1. A single step starts at `sigma_max` in every
            schedule; leading and linspace spacing would start it at the clean end.
        noise: the model's noise schedule.
        drop_penultimate: omit the last sigma before 0. The number of steps stays the same.

    Returns:
        steps + 1 sigmas, the last one 0.
    """
    return _make_tail(name, steps, steps, noise, drop_penultimate)


def make_sigmas_for_strength(
    name: str,
    steps: int,
    strength: float,
    noise: NoiseSchedule,
    *,
    mode: Literal["exact", "truncate"] = "exact",
    drop_penultimate: bool = False,
) -> Sigmas:
    """Return the tail of a schedule that repaints a picture with a strength.

    "exact" lays out round(steps / strength) steps and keeps the last `steps`, so that the requested
    number of steps runs. "truncate" lays out `steps` and keeps the last int(steps × strength),
    computed in floating point as in diffusers: 100 × 0.29 gives 28.

    Args:
        name: a key of `registry.SCHEDULES`.
        steps: at least 1.
        strength: 0 to 1. At 0 there are no steps, and the only sigma is 0. At 1 all steps run.
        noise: the model's noise schedule.
        mode: the meaning of `steps`.
        drop_penultimate: omit the last sigma before 0. The number of steps stays the same.

    Returns:
        The sigmas, the last one 0. The caller adds noise of the first sigma to the picture.

    Raises:
        RequestError: the strength is above 0 but too small for one step.
    """
    if strength == 0:
        return Sigmas((0.0,), noise)
    kept = count_steps(steps, strength, mode)
    if mode == "exact":
        if strength < MIN_STRENGTH:
            raise RequestError(
                "strength",
                f"{strength} is too small to change anything; "
                f"give 0 to keep the picture, or at least {MIN_STRENGTH:f}.",
            )
        laid_out = max(steps, round(steps / strength))
    else:
        laid_out = steps
        if kept == 0:
            raise RequestError(
                "strength",
                f"{strength} of {steps} steps is int({steps * strength:.4g}) = 0 steps; give a "
                f"strength of at least {math.ceil(1000 / steps) / 1000:g}, more steps, or "
                "steps='exact', which runs them all.",
            )
    return _make_tail(name, laid_out, kept, noise, drop_penultimate)


def _make_tail(
    name: str, laid_out: int, kept: int, noise: NoiseSchedule, drop_penultimate: bool
) -> Sigmas:
    """Return the sigmas of the last `kept` steps of a schedule of `laid_out` steps."""
    if laid_out == 1:
        return Sigmas((noise.sigma_max, 0.0), noise)
    # To drop the last sigma before 0, lay out one step more and do not read it.
    n = laid_out + drop_penultimate
    i = np.arange(laid_out - kept, laid_out, dtype=np.float64)
    return Sigmas((*_get_schedule(name)(i, n, noise).tolist(), 0.0), noise)


def _get_schedule(name: str) -> Callable[[FloatArray, int, NoiseSchedule], FloatArray]:
    """Return the function of this module for a key of `registry.SCHEDULES`."""
    return globals()[SCHEDULES[name].name]


def normal(i: FloatArray, n: int, noise: NoiseSchedule) -> FloatArray:
    """Timesteps evenly spaced from the clean end ("leading", arXiv 2305.08891, table 2).

    The default of SDXL. Timesteps are integers and the spacing is rounded down, as in diffusers.
    Beyond 100 steps, that would skip much of the noisy end, so the spacing is fractional.
    """
    count = len(noise.sigmas)
    spacing = (
        count // n
        if 10 * n <= count
        else min(count / n, (noise.last_timestep - noise.offset) / (n - 1))
    )
    return noise.sigmas_at(noise.offset + (n - 1 - i) * spacing)


def linspace(i: FloatArray, n: int, noise: NoiseSchedule) -> FloatArray:
    """Timesteps evenly spaced, both ends included (arXiv 2305.08891, table 2)."""
    return noise.sigmas_at(noise.last_timestep * (n - 1 - i) / (n - 1))


def trailing(i: FloatArray, n: int, noise: NoiseSchedule) -> FloatArray:
    """Timesteps evenly spaced from the noisy end (arXiv 2305.08891, table 2).

    For zero-terminal-SNR checkpoints and for few-step checkpoints (LCM, TCD, Lightning).
    """
    count = len(noise.sigmas)
    if n > count:
        return _space_densely(i, n, noise)
    return noise.sigmas_at(np.round(count - i * (count / n)) - 1)


def simple(i: FloatArray, n: int, noise: NoiseSchedule) -> FloatArray:
    """Sigmas of the table at even distances from the noisy end (ComfyUI's "simple")."""
    count = len(noise.sigmas)
    if n > count:
        return _space_densely(i, n, noise)
    return noise.sigmas_at(noise.last_timestep - np.floor(i * (count / n)))


def _space_densely(i: FloatArray, n: int, noise: NoiseSchedule) -> FloatArray:
    """Fractional timesteps, evenly spaced from the noisy end, for more steps than timesteps."""
    return noise.sigmas_at(noise.last_timestep * (n - i) / n)


def karras(i: FloatArray, n: int, noise: NoiseSchedule, rho: float = 7.0) -> FloatArray:
    """Evenly spaced in sigma^(1/rho) (arXiv 2206.00364, equation 5)."""
    low, high = noise.sigma_min ** (1 / rho), noise.sigma_max ** (1 / rho)
    return (high + i / (n - 1) * (low - high)) ** rho


def exponential(i: FloatArray, n: int, noise: NoiseSchedule) -> FloatArray:
    """Evenly spaced in log sigma ("uniform logSNR" in arXiv 2206.00927)."""
    return polyexponential(i, n, noise, rho=1.0)


def polyexponential(i: FloatArray, n: int, noise: NoiseSchedule, rho: float = 1.0) -> FloatArray:
    """Evenly spaced in (log sigma)^(1/rho), from k-diffusion.

    rho is 1 here, as in k-diffusion and A1111, which gives "exponential".
    """
    low, high = math.log(noise.sigma_min), math.log(noise.sigma_max)
    return np.exp(low + ((n - 1 - i) / (n - 1)) ** rho * (high - low))


def beta(i: FloatArray, n: int, noise: NoiseSchedule, alpha: float = 0.6) -> FloatArray:
    """Timesteps at the quantiles of Beta(0.6, 0.6): denser at both ends (arXiv 2407.12173).

    ComfyUI and A1111 do the same, but round to whole timesteps. diffusers' `use_beta_sigmas`
    applies the quantiles to the sigmas instead of the timesteps.
    """
    return noise.sigmas_at(noise.last_timestep * _compute_beta_quantile((n - i) / n, alpha))


def _compute_beta_quantile(p: FloatArray, a: float) -> FloatArray:
    """Return quantiles of Beta(a, a), to about 1e-7.

    The function integrates the density up to 1/2 in w = x^a, where the density has no pole. The
    other half follows by symmetry.
    """
    w = np.linspace(0, 0.5**a, 4097)
    density = (1 - w ** (1 / a)) ** (a - 1)
    cdf = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    lower = np.interp(np.minimum(p, 1 - p), cdf * (0.5 / cdf[-1]), w) ** (1 / a)
    return np.where(p <= 0.5, lower, 1 - lower)


# For SDXL in 10 steps (arXiv 2404.14507 and the authors' page).
_ALIGN_YOUR_STEPS = (
    *(14.615, 6.315, 3.771, 2.181, 1.342, 0.862),
    *(0.555, 0.380, 0.234, 0.113, 0.029),
)


def align_your_steps(i: FloatArray, n: int, noise: NoiseSchedule) -> FloatArray:
    """SDXL's optimized schedule (arXiv 2404.14507), log-linearly interpolated to n steps.

    0 replaces its last sigma, 0.029. The table does not fit zero-terminal-SNR checkpoints, which
    start at a much larger sigma.
    """
    table = np.log(_ALIGN_YOUR_STEPS)
    positions = np.arange(len(table), dtype=np.float64)
    return np.exp(np.interp(i / n * positions[-1], positions, table))
