"""Merge LoRAs into a model's weights.

Each merge starts from a pristine copy of the weights, so repeated merges do not change the base.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from overpaint.models.lora import LoraWeights, get_part
from overpaint.nn.lowrank import WeightDelta, combine_factors, merge_deltas
from overpaint.nn.weight_slots import WeightSlot, make_weight_slot

if TYPE_CHECKING:
    from overpaint.models.model import Model


@dataclass(frozen=True)
class Adapter:
    """A LoRA with the scales of a request.

    Attributes:
        lora: The LoRA.
        scale: The scale of its changes to the UNet.
        text_scale: The scale of its changes to the text encoders.
        blocks: Factors for parts of the UNet: pairs of a module name's prefix ("up_blocks.0",
            "mid_block") and a factor. The factor of the longest matching prefix multiplies `scale`.
        given_name: The name in the request, which can differ from that of the file. Requests with
            different names of one LoRA share their rows.
    """

    lora: LoraWeights
    scale: float = 1.0
    text_scale: float = 1.0
    blocks: tuple[tuple[str, float], ...] = ()
    given_name: str = field(default="", compare=False)

    @property
    def name(self) -> str:
        """The name in the request."""
        return self.given_name or self.lora.name

    @property
    def sha256(self) -> str:
        """The digest of the LoRA."""
        return self.lora.sha256

    @property
    def tensors_sha256(self) -> str:
        """The digest of the LoRA's file without its header."""
        return self.lora.tensors_sha256

    def changes(self, part: str) -> Mapping[str, WeightDelta]:
        """Return its changes to a part of the model by module name."""
        return self.lora.changes.get(part, {})

    def scale_at(self, part: str, module: str) -> float:
        """Return the scale of its change to a module."""
        if part != "unet":
            return self.text_scale
        fitting = [
            (len(stem), factor)
            for stem, factor in self.blocks
            if module == stem or module.startswith(f"{stem}.")
        ]
        return self.scale * max(fitting, default=(0, 1.0))[1]


Adapters = tuple[Adapter, ...]


def list_changes(adapters: Adapters, part: str, module: str) -> list[tuple[WeightDelta, float]]:
    """List the changes of adapters to a module with their scales, without those at scale 0."""
    return [
        (change, scale)
        for adapter in adapters
        if (change := adapter.changes(part).get(module))
        and (scale := adapter.scale_at(part, module))
    ]


@dataclass(eq=False)
class AdapterMerger:
    """Merges adapters into a model's weights.

    Attributes:
        model: The model.
        slots: The weights of all layers that were ever changed, by part and module name.
    """

    model: "Model"
    slots: dict[tuple[str, str], WeightSlot] = field(
        default_factory=dict[tuple[str, str], WeightSlot]
    )
    _current: dict[str, Adapters | None] = field(default_factory=dict[str, "Adapters | None"])

    def use(self, part: str, adapters: Adapters) -> None:
        """Merge a set of adapters into a part of the model, in place of the current set.

        The method writes each weight that either set changes once, from its pristine copy. If the
        set is merged already, the method does nothing.
        """
        before = self._current.get(part, ())
        if before == adapters:
            return
        self._current[part] = None  # after an interruption, the next call writes all weights
        if before is None:
            left = [module for of, module in self.slots if of == part]
        else:
            left = [module for adapter in before for module in adapter.changes(part)]
        coming = [module for adapter in adapters for module in adapter.changes(part)]
        for module in dict.fromkeys((*left, *coming)):
            slot = self._get_slot(part, module)
            changes = list_changes(adapters, part, module)
            if not changes:
                slot.restore()
            elif product := combine_factors(changes):
                slot.add(*product)
            else:
                slot.change(partial(merge_deltas, changes=changes))
        self._current[part] = adapters

    def _get_slot(self, part: str, module: str) -> WeightSlot:
        if (part, module) not in self.slots:
            network, memory = get_part(self.model, part), self.model.device_memory
            self.slots[part, module] = make_weight_slot(network, module, memory)
        return self.slots[part, module]


def get_adapter_merger(model: "Model") -> AdapterMerger:
    """Return the model's only AdapterMerger."""
    return model.make_once("weights", lambda: AdapterMerger(model))
