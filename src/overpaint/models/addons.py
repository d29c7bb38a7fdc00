"""What requests name beside a model, loaded when it is first asked for, to stay."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from os import PathLike, fspath
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakValueDictionary

from overpaint.errors import ModelError
from overpaint.models.adapters import Adapter, Adapters
from overpaint.models.checkpoint import load_model
from overpaint.models.controlnet import ControlNet, load_controlnet
from overpaint.models.embedding import Embedding, Embeddings, load_embedding
from overpaint.models.estimators import Estimator, load_estimator
from overpaint.models.files.safetensors_io import sample_keys
from overpaint.models.library import catalog
from overpaint.models.library.library import Library
from overpaint.models.lora import load_lora
from overpaint.registry import HINTS

if TYPE_CHECKING:
    from overpaint.models.model import Model
    from overpaint.request import Request
    from overpaint.request_parts import Control, Lora

T = TypeVar("T")

ControlNets = Sequence[ControlNet | None]
"""One for each of a request's controls; None where it does not act. Empty for a refiner."""


Estimators = Sequence[Estimator | None]
"""Likewise, of those whose hint shows what a network sees; may be empty."""


@dataclass(frozen=True)
class Addons:
    """What a request names beside the base model.

    Attributes:
        refiner: for its second stage; it takes the embeddings, and nothing else of these.
        nets: one for each of its controls; None where that does not act.
        adapters: its LoRAs.
        embeddings: that its prompts use.
        estimators: one for each of its controls; None where its hint needs none.
    """

    refiner: "Model | None" = None
    nets: ControlNets = ()
    adapters: Adapters = ()
    embeddings: Embeddings = ()
    estimators: Estimators = ()

    @property
    def notices(self) -> Iterator[str]:
        """What is to be said of keys that belong nowhere."""
        for used in (*(adapter.lora for adapter in self.adapters), *self.estimators):
            if used and used.unused:
                keys = sample_keys(used.unused)
                yield f"{len(used.unused)} keys of {used.name} are not used: {keys}."


NO_ADDONS = Addons()


class AddonLoader:
    """Refiners, control nets, estimators, LoRAs and embeddings for a model.

    Attributes:
        model: that they go with.
        store: where their names lead first.
    """

    def __init__(self, model: "Model", store: Library):
        self.model = model
        self.store = store
        self._held: dict[Hashable, object] = {}
        # Each is as large as a model: those in use stay, and the one that was used last.
        self._refiners = WeakValueDictionary[str, "Model"]()
        self._last_refiner: Model | None = None

    def load(self, request: "Request") -> Addons:
        """All that a request names.

        Raises:
            ModelNotFoundError: there is nothing by a name.
            CheckpointError, ModelError: one is for another model, of another kind, or damaged.
            DeviceError: the device ran out of memory.
        """
        return Addons(
            self._refiner(request.refiner) if request.refiner else None,
            tuple(map(self._net, request.controls)),
            tuple(self._adapter(asked, request.lora_lenient) for asked in request.loras),
            tuple(map(self._embedding, request.embeddings)),
            tuple(map(self._estimator, request.controls)),
        )

    def _keep(self, key: Hashable, load: Callable[[], T]) -> T:
        if key not in self._held:
            self._held[key] = load()
        return self._held[key]  # pyright: ignore[reportReturnType] a key's first part is its kind

    def _refiner(self, name: str) -> "Model":
        device, dtype = str(self.model.device), str(self.model.dtype).removeprefix("torch.")

        refiner = self._refiners.get(name)
        if refiner is None:
            refiner = load_library_model(name, self.store, device=device, dtype=dtype)
            check_refiner(self.model, refiner)
            refiner.cache = self.model.cache
            self._refiners[name] = refiner
        self._last_refiner = refiner
        return refiner

    def _net(self, control: "Control") -> ControlNet | None:
        if not control.acts:
            return None
        name = control.net or catalog.choose_controlnet(control.kind, self.model.family.name)
        entry = self.store.find_if(name, "control")

        def load() -> ControlNet:
            return replace(load_controlnet(entry.path if entry else name, self.model), name=name)

        return self._keep(("net", name, entry and entry.sha256), load)

    def _estimator(self, control: "Control") -> Estimator | None:
        name = control.estimator or catalog.DEFAULT_ESTIMATORS.get(control.kind)
        sight = HINTS[control.kind].sight
        if name is None or sight is None or control.hint or not control.acts:
            return None
        return self._keep(
            ("estimator", name, sight),
            lambda: load_estimator(name, sight, self.model.device, self.model.dtype),
        )

    def _adapter(self, asked: "Lora", lenient: bool) -> Adapter:
        entry = self.store.find(asked.name, "lora")
        lora = self._keep(
            ("lora", entry.sha256, asked.name, lenient),
            lambda: replace(load_lora(entry.path, self.model, lenient=lenient), name=asked.name),
        )
        text = asked.scale if asked.text_scale is None else asked.text_scale
        return Adapter(lora, asked.scale, text, tuple(sorted(asked.blocks.items())))

    def _embedding(self, name: str) -> Embedding:
        entry = self.store.find(name, "embedding")
        return self._keep(
            ("embedding", entry.sha256, name),
            lambda: load_embedding(entry.path, name, self.model),
        )


def load_library_model(
    name: str | PathLike[str], store: Library, *, device: str, dtype: str
) -> "Model":
    """A model by its name: of the store's checkpoints, or as `load_model` knows them.

    Raises:
        ModelNotFoundError, CheckpointError, DeviceError: as `load_model`.
    """
    entry = store.find_if(name, "checkpoint") if isinstance(name, str) else None
    model = load_model(entry.path if entry else name, device=device, dtype=dtype)
    model.name = fspath(name)
    return model


def check_refiner(model: "Model", second: "Model") -> None:
    """Raise unless the second model reads the first one's latents."""
    for key in ("latent_channels", "scaling_factor"):
        a, b = model.vae.config[key], second.vae.config[key]
        if a != b:
            raise ModelError(
                f"{second.name} cannot refine what {model.name} paints: their latents differ "
                f"({key} {b} and {a}); give a refiner of the same family."
            )
    if second.family.sees_mask:
        raise ModelError(f"{second.name} is an inpainting model and no refiner.")
