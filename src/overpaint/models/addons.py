"""Load the add-ons of requests: refiners, ControlNets, estimators, LoRAs, embeddings, decoders.

An add-on is loaded for the first request that names it, and stays in memory.
"""

import threading
from collections.abc import Callable, Generator, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakValueDictionary

from overpaint.errors import CheckpointError, ModelError
from overpaint.models.adapters import Adapter, Adapters
from overpaint.models.cache import RecentValues
from overpaint.models.checkpoint import load_separate_vae
from overpaint.models.controlnet import ControlNet, load_controlnet
from overpaint.models.embedding import Embedding, Embeddings, load_embedding
from overpaint.models.estimators import Estimator, load_estimator
from overpaint.models.files.safetensors_io import sample_keys
from overpaint.models.files.stamps import stamp_files
from overpaint.models.library import catalog
from overpaint.models.library.entry import LibraryEntry
from overpaint.models.library.library import Library
from overpaint.models.lora import LoraWeights, load_lora
from overpaint.models.named_models import load_library_model, resolve_decoder, resolve_part
from overpaint.models.separate_parts import PartPath
from overpaint.models.tiny_decoder import load_tiny_decoder
from overpaint.registry import HINTS
from overpaint.request.fields import MAX_CONTROLS, MAX_EMBEDDINGS, MAX_LORAS

if TYPE_CHECKING:
    from overpaint.models.model import Model, SeparateVae, TinyDecoder
    from overpaint.request import Request
    from overpaint.request.parts import Control, Lora

T = TypeVar("T")

MODEL_SUFFIXES = (".safetensors", ".json")
"""Suffixes of the files in a model's folder whose change makes it another model."""

ControlNets = Sequence[ControlNet | None]
"""One item for each control of a request; None for an inactive control. Empty for a refiner."""

Estimators = Sequence[Estimator | None]
"""One item for each control of a request; None for a control without an estimator."""


@dataclass(frozen=True)
class Addons:
    """The add-ons of a request.

    Attributes:
        refiner: The model for the second stage. Of the other add-ons, it uses embeddings only.
        nets: One item for each control; None for an inactive control.
        adapters: The LoRAs with their scales.
        embeddings: The embeddings in the prompts.
        estimators: One item for each control; None for a control without an estimator.
    """

    refiner: "Model | None" = None
    nets: ControlNets = ()
    adapters: Adapters = ()
    embeddings: Embeddings = ()
    estimators: Estimators = ()

    @property
    def notices(self) -> Iterator[str]:
        """Yield a notice for each add-on whose file has unused keys."""
        unused = [(adapter.name, adapter.lora.unused) for adapter in self.adapters]
        unused += [(own.name, own.unused) for own in self.estimators if own]
        for name, keys in unused:
            if keys:
                yield f"{len(keys)} keys of {name} are not used: {sample_keys(keys)}."
        for embedding in self.embeddings:
            for part in embedding.ignored_by:
                yield (
                    f"The embedding {embedding.name} has no vectors for {part}, which reads the "
                    "prompt without it."
                )


NO_ADDONS = Addons()


KEPT_ADDONS: Mapping[str, int] = {
    "lora": MAX_LORAS,
    "embedding": MAX_EMBEDDINGS,
    "net": MAX_CONTROLS,
    "estimator": MAX_CONTROLS,
    "vae": 2,
    "decoder": 2,
}
"""The number of add-ons of each kind that stay in memory: as many as a request can name, and one
VAE and decoder more."""

TINY = "tiny"
"""The name of a model's usual tiny decoder in requests."""


class AddonLoader:
    """Loads and keeps the add-ons of requests to one model.

    A file stays in memory once, for all names that requests give it.

    Attributes:
        model: The base model.
        library: The library in which names are looked up first.
    """

    def __init__(
        self, model: "Model", library: Library, kept_addons: Mapping[str, int] = KEPT_ADDONS
    ):
        """Load add-ons for a model.

        Args:
            model: The base model.
            library: The library in which names are looked up first.
            kept_addons: The number of add-ons of each kind that stay in memory; those that were
                used last.
        """
        self.model = model
        self.library = library
        self._loras = RecentValues[LoraWeights](kept_addons["lora"])
        self._embeddings = RecentValues[Embedding](kept_addons["embedding"])
        self._nets = RecentValues[ControlNet](kept_addons["net"])
        self._estimators = RecentValues[Estimator](kept_addons["estimator"])
        self._vaes = RecentValues["SeparateVae"](kept_addons.get("vae", 1))
        self._decoders = RecentValues["TinyDecoder"](kept_addons.get("decoder", 1))
        self._missed_decoder = False
        self._loading = threading.RLock()
        # A refiner is as large as a model: keep those in use, and the one that was used last.
        self._refiners = WeakValueDictionary[Hashable, "Model"]()
        self._last_refiner: Model | None = None

    def load(self, request: "Request") -> Addons:
        """Load all add-ons of a request.

        Raises:
            ModelNotFoundError: A name is unknown.
            CheckpointError, ModelError: An add-on is for another model, of another kind or damaged.
            DeviceError: The device ran out of memory.
        """
        return Addons(
            self._refiner(request.refiner) if request.refiner else None,
            tuple(map(self._net, request.controls)),
            tuple(self._adapter(asked, request.lora_lenient) for asked in request.loras),
            tuple(self._embedding(name, request) for name in request.embeddings),
            tuple(map(self._estimator, request.controls)),
        )

    def load_vae(self, name: str) -> "SeparateVae":
        """Load a VAE in place of the model's own.

        Raises:
            ModelNotFoundError: The name is unknown.
            CheckpointError: The VAE is for other models, or damaged.
        """
        found = resolve_part("vae", name, self.library)

        def load() -> "SeparateVae":
            with _naming(found):
                return load_separate_vae(found, self.model)

        return self._keep(self._vaes, (found.name, _identify(str(found.path))), load)

    def load_decoder(self, name: str) -> "TinyDecoder":
        """Load a tiny decoder; download the model's usual one if necessary.

        Args:
            name: `TINY`, or the name of a decoder.

        Raises:
            ModelNotFoundError: The name is unknown, or the hub is not reachable.
            CheckpointError: The decoder is for other models, or damaged.
        """
        if name == TINY:
            return self._load_usual_decoder(download=True)
        found = resolve_decoder(name, self.library, download=True)
        key = (found.name, _identify(str(found.path)))
        return self._keep(self._decoders, key, lambda: self._load_decoder(found))

    def find_preview_decoder(self) -> "TinyDecoder | None":
        """Return the model's usual tiny decoder, or None if it was not on this machine."""
        if self._missed_decoder:
            return self.model.tiny_decoder
        try:
            return self._load_usual_decoder(download=False)
        except ModelError:  # Previews are optional.
            self._missed_decoder = True
            return None

    def _load_usual_decoder(self, *, download: bool) -> "TinyDecoder":
        with self._loading:
            if self.model.tiny_decoder is None:
                usual = self.model.family.tiny_decoder
                found = resolve_decoder(usual, self.library, download=download)
                self.model.tiny_decoder = self._load_decoder(found)
            return self.model.tiny_decoder

    def _load_decoder(self, found: PartPath) -> "TinyDecoder":
        with _naming(found):
            return load_tiny_decoder(found, self.model)

    def _keep(self, kept: RecentValues[T], key: Hashable, load: Callable[[], T]) -> T:
        found = kept.get(key)
        if found is None:
            with self._loading:  # another thread may load it now
                found = kept.get(key)
                if found is None:
                    found = load()
                    kept.put(key, found)
        return found

    def _refiner(self, name: str) -> "Model":
        device, dtype = self.model.device, str(self.model.dtype).removeprefix("torch.")
        entry = self.library.find_if(name, "checkpoint")
        key = _identify(str(entry.path) if entry else name)

        with self._loading:
            refiner = self._refiners.get(key)
            if refiner is None:
                memory = self.model.device_memory
                refiner = load_library_model(
                    name, self.library, device=device, dtype=dtype, memory=memory
                )
                check_refiner(self.model, refiner)
                refiner.cache = self.model.cache
                self._refiners[key] = refiner
            self._last_refiner = refiner
            return refiner

    def _net(self, control: "Control") -> ControlNet | None:
        if not control.acts:
            return None
        name = control.net or catalog.choose_controlnet(control.kind, self.model.family.name)
        entry = self.library.find_if(name, "control")

        def load() -> ControlNet:
            with _naming(entry):
                net = load_controlnet(entry.path if entry else name, self.model)
            return replace(net, name=entry.name if entry else name)

        return self._keep(self._nets, entry.sha256 if entry else _identify(name), load)

    def _estimator(self, control: "Control") -> Estimator | None:
        name = control.estimator or catalog.DEFAULT_ESTIMATORS.get(control.kind)
        sight = HINTS[control.kind].sight
        if name is None or sight is None or control.hint or not control.acts:
            return None
        return self._keep(
            self._estimators,
            (_identify(name), sight),
            lambda: load_estimator(name, sight, self.model.device, self.model.dtype),
        )

    def _adapter(self, asked: "Lora", lenient: bool) -> Adapter:
        entry = self.library.find(asked.name, "lora")

        def read() -> LoraWeights:
            with _naming(entry):
                read_lora = load_lora(entry.path, self.model, lenient=lenient)
            return replace(read_lora, name=entry.name, file=entry.file)

        # The names are in the key, since few-step LoRAs can be known by them.
        key = (entry.sha256, entry.name, entry.file, lenient)
        lora = self._keep(self._loras, key, read)
        text = asked.scale if asked.text_scale is None else asked.text_scale
        return Adapter(lora, asked.scale, text, tuple(sorted(asked.blocks.items())), asked.name)

    def _embedding(self, name: str, request: "Request") -> Embedding:
        loras = [lora.name for lora in request.loras]
        entry = self.library.find(name, "embedding", loras)
        bundled = entry.kind == "lora"

        def read() -> Embedding:
            with _naming(entry):
                return load_embedding(entry.path, name, self.model, bundled=bundled)

        # A LoRA holds several embeddings, each with one spelling of its name.
        kept = self._keep(self._embeddings, (entry.sha256, name if bundled else ""), read)
        return replace(kept, name=name)


def _identify(name: str) -> Hashable:
    """Return what all names of one model have in common, and what changes with its files.

    Args:
        name: A name that the catalog resolves: an alias, a hub id, a folder or a file.
    """
    spelling = catalog.unify_spelling(name)
    path = Path(spelling)
    if not path.is_absolute() or not path.exists():  # The loader names the missing file.
        return spelling
    files = (path,)
    if path.is_dir():
        files = [own for own in sorted(path.rglob("*")) if own.suffix in MODEL_SUFFIXES]
    return spelling, stamp_files(files)


@contextmanager
def _naming(entry: "LibraryEntry | PartPath | None") -> Generator[None]:
    """Replace the path of an added file in errors by its name: clients of a server see them."""
    try:
        yield
    except CheckpointError as error:
        if entry is None:
            raise
        raise CheckpointError(str(error).replace(str(entry.path), entry.name)) from error


def check_refiner(model: "Model", second: "Model") -> None:
    """Raise ModelError unless the second model can refine latents of the first one."""
    for key in ("latent_channels", "scaling_factor"):
        a, b = model.vae.config[key], second.vae.config[key]
        if a != b:
            raise ModelError(
                f"{second.name} cannot refine latents of {model.name}: their {key} differs ({b} "
                f"and {a}). Choose a refiner of the same family."
            )
    if second.family.sees_mask:
        raise ModelError(f"{second.name} is an inpainting model, not a refiner.")
