"""The values that the denoising loop runs: `Plan`, `Stage` and a request's `Planned` pictures."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from overpaint.diffusion.conditioning import Conditioning, Network
from overpaint.diffusion.constraint import Constraint, Unconstrained
from overpaint.diffusion.guidance import Guidance
from overpaint.diffusion.latents import Moments
from overpaint.diffusion.noise import NoiseSource, Variation
from overpaint.diffusion.samplers import Noise, Sampler
from overpaint.diffusion.schedule import Sigmas
from overpaint.imaging.canvas import Canvas
from overpaint.nn.host import copy_to_device


@dataclass(frozen=True, eq=False)
class Plan:
    """Everything that the loop needs to paint one picture, or one stage of it, with one model.

    A plan is a value: each run of a plan gives the same result.

    Attributes:
        network: evaluates the rows.
        shape: (channels, height, width) of the latent.
        sampler: the coroutine to run.
        sigmas: descending noise levels. The run starts at the first. It ends at the last, which is
            0 unless another stage follows.
        seed: of this picture's noise.
        init: the VAE posterior of the picture to start from. None for text to image.
        positive: the conditioning of the prompt.
        negative: the conditioning of the negative prompt. None without guidance.
        guidance: the classifier-free guidance.
        constraint: the mask, or no constraint.
        carried: the noisy latent of the stage before, from which this stage starts. None for a
            stage that starts from noise.
        canvas: turns the decoded latent into the result.
        then: the next stage.
        variation: a second seed, whose noise is mixed into that of `seed`.
    """

    network: Network
    shape: tuple[int, int, int]
    sampler: Sampler
    sigmas: Sigmas
    seed: int
    init: Moments | None
    positive: Conditioning
    negative: Conditioning | None
    guidance: Guidance
    constraint: Constraint = field(default_factory=Unconstrained)
    carried: Tensor | None = None
    canvas: Canvas | None = None
    then: "Stage | None" = None
    variation: Variation | None = None

    @property
    def steps(self) -> int:
        """Sampler steps of this stage and of the stages after it."""
        steps, plan = len(self.sigmas) - 1, self
        while plan.then:
            plan = plan.then.plan
            steps += len(plan.sigmas) - 1
        return steps

    def noise(self, source: NoiseSource | None = None) -> Noise:
        """Return a function that draws unit noise [1, C, h, w]; by default from the plan's seed.

        torch's CPU generator draws the noise in fp32 in the latent's shape, as diffusers does with
        a CPU generator. The noise depends only on the seeds and on the shapes.
        """
        drawing = source or NoiseSource(self.seed, self.variation)
        device = self.network.device
        return lambda: copy_to_device(drawing.draw((1, *self.shape)), device)

    def start(self, noise: Noise) -> Tensor:
        """Return the first latent: the encoded picture plus noise, or pure noise.

        Pure noise has the variance σ² + 1, that of a noised latent of unit variance. At strength 1
        no trace of the picture remains.
        """
        if self.carried is not None:
            return self.carried
        sigma = self.sigmas[0]
        picture = None if self.init is None else self.init.mean + self.init.std * noise()
        drawn = noise()
        x = drawn * math.sqrt(sigma**2 + 1) if picture is None else picture + sigma * drawn
        return self.constraint.start(x, drawn, sigma)


@dataclass(frozen=True, eq=False)
class Stage:
    """The stage that follows a plan.

    Attributes:
        plan: of the stage, complete except for its start.
        begin: sets the start, given `plan` and the last latent of the stage before.
    """

    plan: Plan
    begin: Callable[[Plan, Tensor], Plan]

    def start_from(self, latent: Tensor) -> Plan:
        """Return the stage's plan, which starts from the last latent of the stage before."""
        return self.begin(self.plan, latent)


@dataclass(frozen=True)
class Planned:
    """The plans of a request.

    Attributes:
        plans: one per picture; empty if there is nothing to paint.
        canvas: the area that the plans paint.
        notices: messages for the user.
    """

    plans: tuple[Plan, ...]
    canvas: Canvas
    notices: tuple[str, ...]
