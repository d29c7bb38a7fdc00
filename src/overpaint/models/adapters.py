"""LoRAs merged into a model, from a pristine copy: however often, the base stays itself."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from overpaint.models.lora import LoraWeights, get_part
from overpaint.nn.lowrank import WeightDelta, combine_factors, merge_deltas
from overpaint.nn.weight_slots import WeightSlot, make_weight_slot

if TYPE_CHECKING:
    from overpaint.models.model import Model


@dataclass(frozen=True)
class Adapter:
    """A LoRA at a scale.

    Attributes:
        lora: what it changes.
        scale: of its changes to the UNet.
        text_scale: of those to the text encoders.
        blocks: of those to parts of the UNet, on top of `scale`: the start of a module's name
            ("up_blocks.0", "mid_block") and a factor; the longest that fits counts.
    """

    lora: LoraWeights
    scale: float = 1.0
    text_scale: float = 1.0
    blocks: tuple[tuple[str, float], ...] = ()

    def changes(self, part: str) -> Mapping[str, WeightDelta]:
        """What it changes in a part of the model, by module."""
        return self.lora.changes.get(part, {})

    def scale_at(self, part: str, module: str) -> float:
        """The scale at a module."""
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
    """What adapters change in a module, each with its scale; those at scale 0 are left out."""
    return [
        (change, scale)
        for adapter in adapters
        if (change := adapter.changes(part).get(module))
        and (scale := adapter.scale_at(part, module))
    ]


@dataclass(eq=False)
class AdapterMerger:
    """A model's weights, with adapters in them.

    Attributes:
        model: whose.
        places: by part and module name, of the layers that were ever changed.
    """

    model: "Model"
    places: dict[tuple[str, str], WeightSlot] = field(
        default_factory=dict[tuple[str, str], WeightSlot]
    )
    _current: dict[str, Adapters | None] = field(default_factory=dict[str, "Adapters | None"])

    def use(self, part: str, adapters: Adapters) -> None:
        """Bring a part of the model to a set of adapters.

        Each weight that the set before or this one changes is written once, from its pristine
        copy; a set that is in place costs nothing.
        """
        before = self._current.get(part, ())
        if before == adapters:
            return
        self._current[part] = None  # if this ends half-way, the next one begins anew
        if before is None:
            left = [module for of, module in self.places if of == part]
        else:
            left = [module for adapter in before for module in adapter.changes(part)]
        coming = [module for adapter in adapters for module in adapter.changes(part)]
        for module in dict.fromkeys((*left, *coming)):
            place = self._place(part, module)
            changes = list_changes(adapters, part, module)
            if not changes:
                place.restore()
            elif product := combine_factors(changes):
                place.add(*product)
            else:
                place.write(merge_deltas(place.pristine, changes))
        self._current[part] = adapters

    def _place(self, part: str, module: str) -> WeightSlot:
        if (part, module) not in self.places:
            self.places[part, module] = make_weight_slot(get_part(self.model, part), module)
        return self.places[part, module]


def get_adapter_merger(model: "Model") -> AdapterMerger:
    """The model's weights; always the same object for one model."""
    return model.make_once("weights", lambda: AdapterMerger(model))
