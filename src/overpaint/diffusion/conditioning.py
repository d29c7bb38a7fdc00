"""The values that a network receives, and the protocol of a network.

`Row` is one line of a network's batch: a noisy latent, its noise level and its `Conditioning`.
`Network` is the seam between the denoising loop and a UNet.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from overpaint.diffusion.schedule import NoiseSchedule
from overpaint.models.adapters import Adapters
from overpaint.models.controlnet import ControlNet
from overpaint.nn.attention import Context
from overpaint.registry import Weighting


@dataclass(frozen=True, eq=False)
class ControlInput:
    """A control image that steers a row through a ControlNet or a T2I-Adapter.

    Attributes:
        net: the network that reads the control image.
        hint: the control image, [1, 3, H, W] in 0..1, as large as the canvas.
        features: the features that `net` computes from `hint`; they are constant over all steps.
        scale: the factor of the net's output.
        interval: the part of the denoising range in which the input acts, from 0 (pure noise) to
            1 (clean). The end is exclusive, except for 1.
        weighting: the distribution of `scale` over the UNet's levels.
        mask: [1, 1, h, w] in 0..1: where the input acts. None means everywhere.
        type: the control type, for a union ControlNet.
        context: the tokens that the net reads in place of the prompt. None means the prompt.
    """

    net: ControlNet
    hint: Tensor
    features: tuple[Tensor, ...]
    scale: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    weighting: Weighting = "balanced"
    mask: Tensor | None = None
    type: int | None = None
    context: Context | None = None

    def acts(self, progress: float) -> bool:
        """Return whether the input acts at this point, from 0 (pure noise) to 1 (clean)."""
        start, end = self.interval
        return start <= progress and (progress < end or end == 1)


@dataclass(frozen=True, eq=False)
class Conditioning:
    """The inputs of the network for one row, besides the noisy latent.

    Attributes:
        context: the encoded prompt. It caches the keys and values of each attention layer.
        pooled: the pooled text embedding, [1, P].
        size_ids: [1, 6], fp32: original height and width, crop top and left, target height and
            width (arXiv 2307.01952, section 2.2). bf16 would turn 1365 into 1368. The refiner
            takes [1, 5]: an aesthetic score replaces the target size.
        channels: [1, K, h, w], concatenated to the noisy latent: the mask and the masked picture
            of an inpainting network. None for other networks.
        controls: the control images that steer the row.
        adapters: the LoRAs that apply to the row.
        guidance: the embedded guidance scale, [1, G], for a network that takes one.
    """

    context: Context
    pooled: Tensor
    size_ids: Tensor
    channels: Tensor | None = None
    controls: tuple[ControlInput, ...] = ()
    adapters: Adapters = ()
    guidance: Tensor | None = None


@dataclass(frozen=True)
class Row:
    """One line of the network's batch: predict the noise in `x` [1, C, h, w] at `sigma`."""

    x: Tensor
    sigma: float
    conditioning: Conditioning


class Network(Protocol):
    """A denoising network: it takes rows and returns one prediction per row."""

    @property
    def schedule(self) -> NoiseSchedule:
        """The noise levels that the network was trained on."""
        ...

    @property
    def device(self) -> torch.device:
        """The device of the latents."""
        ...

    def predict(self, rows: Sequence[Row]) -> Tensor:
        """Return the raw network output for the rows, [rows, C, h, w], in the dtype of `x`."""
        ...

    def denoised(self, x: Tensor, sigma: float, prediction: Tensor) -> Tensor:
        """Return the clean latent that a prediction implies."""
        ...
