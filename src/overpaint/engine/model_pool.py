"""Models in memory: loaded at their first request, and removed if others need the space."""

import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch

from overpaint.diffusion.memory import choose_memory
from overpaint.diffusion.run import Run
from overpaint.engine.config import EngineConfig
from overpaint.engine.engine import Engine
from overpaint.engine.profile import Profile, kind_of
from overpaint.errors import ModelNotFoundError, did_you_mean
from overpaint.models.cache import Cache
from overpaint.models.devices import DeviceOptions
from overpaint.models.library.library import Library
from overpaint.models.memory_fallback import use_less_memory
from overpaint.models.named_models import load_library_model, resolve_part
from overpaint.models.separate_parts import PartPath
from overpaint.painter import Painter
from overpaint.system.memory import BUDGET_SHARE

if TYPE_CHECKING:
    from overpaint.models.model import Model
    from overpaint.request import Request


class ModelPool:
    """Models by name, within a memory budget.

    The engine calls `fits` before it plans a request. So the pool never removes a model that a
    running request uses.

    Attributes:
        cache: results that all models keep between requests.
    """

    def __init__(
        self,
        names: Iterable[str],
        load: Callable[[str], Painter],
        budget: float,
        cache: Cache | None = None,
    ):
        """Make an empty pool.

        Args:
            names: models that requests can name.
            load: loads a model.
            budget: bytes of weights that may be in memory at once. A single model may be larger.
            cache: cache for all models.
        """
        self.cache = Cache() if cache is None else cache
        self._names = tuple(names)
        self._load = load
        self._budget = budget
        self._there: dict[str, Painter] = {}  # the one used for longest first
        self._bytes: dict[str, int] = {}
        self._seconds: dict[str, float] = {}
        self._loading: dict[str, int] = {}  # bytes, 0 if still unknown
        self._changing = threading.Lock()
        self._loads = {name: threading.Lock() for name in self._names}

    @property
    def resident(self) -> dict[str, int]:
        """Models in memory with the side that each draws, the least recently used first."""
        there = list(self._there.items())  # a copy, since another thread may load a model
        return {name: painter.model.native_size for name, painter in there}

    def begin(self, model: str, request: "Request") -> Run:
        """Plan a request.

        Raises:
            ModelNotFoundError: the pool has no model of this name.
        """
        painter = self.get(model)
        return Run(request, painter.model, painter.addon_loader)

    def get(self, model: str) -> Painter:
        """Return a model; if it is not in memory, make room and load it."""
        if model not in self._names:
            raise ModelNotFoundError(
                f"There is no model {model!r} here.{did_you_mean(model, self._names)}"
            )
        with self._loads[model]:  # Other models can be returned while this one loads.
            return self._find(model) or self._add(model)

    def _find(self, model: str) -> Painter | None:
        with self._changing:
            if painter := self._there.pop(model, None):
                self._there[model] = painter  # the one used last
            return painter

    def _add(self, model: str) -> Painter:
        with self._changing:
            self._loading[model] = self._bytes.get(model, 0)
            self._make_room()
        try:
            began = time.monotonic()
            painter = self._load(model)
        finally:
            with self._changing:
                del self._loading[model]
        painter.model.cache = self.cache
        with self._changing:
            self._seconds[model] = time.monotonic() - began
            self._bytes[model] = size(painter.model)
            self._there[model] = painter
            self._make_room()
        return painter

    def use_less_memory(self, model: str) -> str | None:
        """Keep fewer weights of a model on its device, after the device ran out of memory.

        Returns:
            A message for the user; None if the device cannot hold fewer, or the model is not there.
        """
        painter = self._there.get(model)
        return use_less_memory(painter.model) if painter else None

    def load_seconds(self, model: str) -> float:
        """Return the seconds that loading took; 0 if the model is in memory or still unknown."""
        return 0.0 if model in self._there else self._seconds.get(model, 0.0)

    def fits(self, model: str, beside: Iterable[str]) -> bool:
        """Return whether the budget allows a model beside the models in use."""
        others = set(beside) - {model}
        known = self._bytes.get(model, 0)
        return not others or known + sum(self._bytes.get(o, 0) for o in others) <= self._budget

    def _make_room(self) -> None:
        """Remove the least recently used models until those that load fit; else keep the last."""
        coming = sum(self._loading.values())
        while len(self._there) > (0 if coming else 1):
            if sum(self._bytes[name] for name in self._there) + coming <= self._budget:
                return
            del self._there[next(iter(self._there))]


def size(model: "Model") -> int:
    """Return the bytes of a model's weights."""
    modules: tuple[Any, ...] = (
        model.unet,
        model.vae,
        *(encoder.model for encoder in model.text_encoders),
    )
    tensors = (t for module in modules for t in (*module.parameters(), *module.buffers()))
    return sum(t.numel() * t.element_size() for t in tensors)


def read_device_budget(device: torch.device) -> float:
    """Return the bytes of a GPU that jobs may need: a share of those that the weights leave free.

    Other devices use the machine's memory, so that they have no separate limit.
    """
    if device.type != "cuda":
        return float("inf")
    free_bytes, _ = torch.cuda.mem_get_info(device)
    return BUDGET_SHARE * free_bytes


def open_engine(config: EngineConfig) -> Engine:
    """Return an engine whose first model is loaded.

    Raises:
        ModelNotFoundError, CheckpointError, DeviceError: see `overpaint.painter.load`.
    """
    # Clients choose the names, so a name is never a path here.
    library = Library(config.home, config.models_dirs)
    # The operator names the parts of models, so these can be paths.
    operators_library = Library(config.home, config.models_dirs, paths=True)

    def list_parts(name: str) -> dict[str, PartPath]:
        parts = config.list_parts(name)
        return {p: resolve_part(p, own, operators_library) for p, own in parts.items()}

    placement = {"device": config.device, "dtype": config.dtype}
    first_name = config.models[0]
    options = DeviceOptions(config.device, config.dtype, config.vram_gb, config.ram_gb)
    memory = choose_memory(first_name, library, options, parts=list_parts(first_name))

    def loaded(name: str) -> Painter:
        parts = list_parts(name)
        model = load_library_model(name, library, parts=parts, memory=memory, **placement)
        return Painter(model, library)

    models = ModelPool(config.models, loaded, config.memory_bytes, Cache(config.cache_bytes))
    first = models.get(first_name)
    assumed = Profile(kind_of(first.model.device.type))
    return Engine(
        models,
        config.profile or assumed,
        live=config.max_running_jobs,
        job_memory_bytes=min(config.job_memory_bytes, read_device_budget(first.model.device)),
    )
