"""Models in memory: loaded at their first request, and removed if others need the space."""

import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from overpaint.diffusion.run import Run
from overpaint.engine.config import EngineConfig
from overpaint.engine.engine import Engine
from overpaint.engine.profile import Profile, kind_of
from overpaint.errors import ModelNotFoundError, did_you_mean
from overpaint.models.cache import Cache
from overpaint.models.library.library import Library
from overpaint.painter import Painter, load_painter

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
        self._changing = threading.Lock()

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
            raise ModelNotFoundError(f"no model {model!r} here.{did_you_mean(model, self._names)}")
        with self._changing:
            if model not in self._there:
                self._make_room(self._bytes.get(model, 0))
                began = time.monotonic()
                self._there[model] = self._load(model)
                self._there[model].model.cache = self.cache
                self._seconds[model] = time.monotonic() - began
                self._bytes[model] = size(self._there[model].model)
            self._there[model] = self._there.pop(model)
            self._make_room(0)
            return self._there[model]

    def load_seconds(self, model: str) -> float:
        """Return the seconds that loading took; 0 if the model is in memory or still unknown."""
        return 0.0 if model in self._there else self._seconds.get(model, 0.0)

    def fits(self, model: str, beside: Iterable[str]) -> bool:
        """Return whether the budget allows a model beside the models in use."""
        others = set(beside) - {model}
        known = self._bytes.get(model, 0)
        return not others or known + sum(self._bytes.get(o, 0) for o in others) <= self._budget

    def _make_room(self, coming: int) -> None:
        """Remove the least recently used models until `coming` bytes fit; keep the last used."""
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


def open_engine(
    config: EngineConfig,
) -> Engine:
    """Return an engine whose first model is loaded.

    Raises:
        ModelNotFoundError, CheckpointError, DeviceError: see `overpaint.painter.load`.
    """
    # Clients choose the names, so a name is never a path here.
    library = Library(config.home, config.models_dirs)

    def loaded(name: str) -> Painter:
        return load_painter(name, library, device=config.device, dtype=config.dtype)

    models = ModelPool(config.models, loaded, config.memory_bytes, Cache(config.cache_bytes))
    first = models.get(config.models[0])
    assumed = Profile(kind_of(first.model.device.type))
    return Engine(
        models,
        config.profile or assumed,
        live=config.max_running_jobs,
        job_memory_bytes=config.job_memory_bytes,
    )
