"""Which models are in memory: loaded when first asked for, let go when others need the room."""

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
from overpaint.painter import Painter, load

if TYPE_CHECKING:
    from overpaint.models.model import Model
    from overpaint.request import Request


class ModelPool:
    """Models by name, at most so many bytes of them in memory.

    A model that requests are under way with is never let go; whoever begins requests asks `fits`
    before.

    Attributes:
        cache: what the models keep between requests, all in one budget.
    """

    def __init__(
        self,
        names: Iterable[str],
        load: Callable[[str], Painter],
        budget: float,
        cache: Cache | None = None,
    ):
        """Nothing is loaded yet.

        Args:
            names: of the models that may be asked for.
            load: loads one.
            budget: bytes of weights that may be in memory at once. A single model may be larger.
            cache: what the models are to keep between requests.
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
        """What is in memory, the one not used for longest first, and the sides that they draw."""
        there = list(self._there.items())  # at once: another thread may load one
        return {name: painter.model.native_size for name, painter in there}

    def begin(self, model: str, request: "Request") -> Run:
        """Plan a request.

        Raises:
            ModelNotFoundError: there is no model by this name here.
        """
        painter = self.get(model)
        return Run(request, painter.model, painter.addon_loader)

    def get(self, model: str) -> Painter:
        """A model by name, loaded if need be, after others were let go for it."""
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
        """Seconds until a model can begin anything: 0 if it is there."""
        return 0.0 if model in self._there else self._seconds.get(model, 0.0)

    def fits(self, model: str, beside: Iterable[str]) -> bool:
        """Whether there is room for a model beside those that are in use."""
        others = set(beside) - {model}
        known = self._bytes.get(model, 0)
        return not others or known + sum(self._bytes.get(o, 0) for o in others) <= self._budget

    def _make_room(self, coming: int) -> None:
        """Let go of what was not used for longest until as much fits; the last used one stays."""
        while len(self._there) > (0 if coming else 1):
            if sum(self._bytes[name] for name in self._there) + coming <= self._budget:
                return
            del self._there[next(iter(self._there))]


def size(model: "Model") -> int:
    """Bytes of a model's weights."""
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

    def loaded(name: str) -> Painter:
        return load(name, device=config.device, dtype=config.dtype, home=config.home)

    models = ModelPool(config.models, loaded, config.memory_bytes, Cache(config.cache_bytes))
    first = models.get(config.models[0])
    assumed = Profile(kind_of(first.model.device.type))
    return Engine(models, config.profile or assumed, live=config.max_running_jobs)
