"""SDXL's UNet as a `Network`: one call for rows with different prompts, LoRAs and controls."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from overpaint.diffusion.conditioning import Conditioning, Row
from overpaint.diffusion.controlnet import ControlNetRunner
from overpaint.diffusion.schedule import NoiseSchedule
from overpaint.models.adapters import AdapterMerger, Adapters, get_adapter_merger, list_changes
from overpaint.models.model import Model
from overpaint.models.noise_config import Prediction
from overpaint.nn.attention import Context
from overpaint.nn.host import copy_to_device
from overpaint.nn.lowrank import WeightDelta
from overpaint.nn.row_adapters import RowAdapters

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

StackedInputs = tuple[Context, Tensor | None, Tensor | None, dict[str, Tensor]]
"""The context, the concatenated channels, the guidance embeddings and the added conditions of a
batch."""


class UNet:
    """A `Network` that runs a UNet whose blocks `nn.blocks.install` has replaced."""

    def __init__(
        self,
        unet: "UNet2DConditionModel",
        schedule: NoiseSchedule,
        prediction: Prediction = "epsilon",
        weights: AdapterMerger | None = None,
        device: torch.device | None = None,
    ):
        """Wrap a UNet.

        Args:
            unet: the module.
            schedule: the noise levels that it was trained on.
            prediction: the quantity that it predicts.
            weights: merges LoRAs into the module. None for a UNet without LoRAs.
            device: the device on which the module runs; by default that of its weights.
        """
        self.schedule = schedule
        self.prediction: Prediction = prediction
        self.device = device or unet.device
        self.dtype = unet.dtype  # diffusers walks all modules to answer this and `device`
        self._unet = unet
        self._weights = weights
        self._controlnets = ControlNetRunner(schedule)
        self._row_adapters = RowAdapters(unet, _changed_layers, _changes_at_layer)
        self._last: tuple[tuple[Conditioning, ...], StackedInputs] | None = None

    def predict(self, rows: Sequence[Row]) -> Tensor:
        """Run the UNet once for rows of one shape, each at its own noise level.

        If all rows share one set of adapters, the adapters are merged into the weights. If the
        sets differ, each row's adapters run beside the pristine weights.
        """
        sets = [row.conditioning.adapters for row in rows]
        if self._weights is None or len(set(sets)) == 1:
            if self._weights is not None:
                self._weights.use("unet", sets[0])
            return self._predict(rows)
        self._weights.use("unet", ())
        order = sorted(range(len(rows)), key=lambda i: (not sets[i], sets.index(sets[i])))
        back = copy_to_device(torch.tensor(order).argsort(), self.device)
        # Rows with adapters are adjacent, so that layers can slice them instead of gathering them.
        with self._row_adapters.applied(tuple(sets[i] for i in order)):
            return self._predict([rows[i] for i in order])[back]

    def _predict(self, rows: Sequence[Row]) -> Tensor:
        x = torch.cat([row.x * (row.sigma**2 + 1) ** -0.5 for row in rows]).to(self.dtype)
        timesteps = torch.tensor([self.schedule.timestep(row.sigma) for row in rows])
        t = copy_to_device(timesteps, self.device)
        context, channels, guidance, added = self._stack(tuple(row.conditioning for row in rows))
        residuals = self._controlnets.residuals(rows, x, t, added)
        if channels is not None:
            x = torch.cat([x, channels], dim=1)
        inputs: dict[str, Any] = {"added_cond_kwargs": added, "return_dict": False, **residuals}
        if guidance is not None:
            inputs["timestep_cond"] = guidance
        predicted = self._unet(x, t, context, **inputs)[0]
        return predicted.to(rows[0].x.dtype)

    def denoised(self, x: Tensor, sigma: float, prediction: Tensor) -> Tensor:
        """Return x₀ from a prediction of ε, v or x₀, in the space x = x₀ + σ·ε.

        The formula for v is that of arXiv 2202.00512, appendix D.
        """
        match self.prediction:
            case "epsilon":
                return x - sigma * prediction
            case "v_prediction":
                return x / (sigma**2 + 1) - prediction * (sigma / (sigma**2 + 1) ** 0.5)
            case "sample":
                return prediction

    def _stack(self, members: tuple[Conditioning, ...]) -> StackedInputs:
        """Return the batch's conditioning; the last result is cached, since rows mostly repeat."""
        last = self._last
        if last is None or last[0] != members:
            context = Context.stack([m.context for m in members])
            concatenated = [m.channels for m in members if m.channels is not None]
            channels = torch.cat(concatenated).to(self.dtype) if concatenated else None
            embedded = [m.guidance for m in members if m.guidance is not None]
            guidance = (
                copy_to_device(torch.cat(embedded), self.device, self.dtype) if embedded else None
            )
            added = {
                "text_embeds": torch.cat([m.pooled for m in members]),
                "time_ids": torch.cat([m.size_ids for m in members]),
            }
            self._last = last = (members, (context, channels, guidance, added))
        return last[1]


def get_network(model: Model) -> UNet:
    """Return the model's network.

    Each model has one network object, so that plans of one model can share a network call.
    """

    def make() -> UNet:
        schedule = NoiseSchedule(model.noise)
        merger = get_adapter_merger(model)
        return UNet(model.unet, schedule, model.noise.prediction, merger, model.device)

    return model.make_once("network", make)


def _changed_layers(adapters: Adapters) -> Iterator[str]:
    """Yield the names of the UNet's layers that these adapters change."""
    return (layer for adapter in adapters for layer in adapter.changes("unet"))


def _changes_at_layer(adapters: Adapters, layer: str) -> list[tuple[WeightDelta, float]]:
    """Return the changes that these adapters make to a layer of the UNet, with their scales."""
    return list_changes(adapters, "unet", layer)
