"""Settings of an engine."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from overpaint.engine.profile import Profile


@dataclass(frozen=True)
class EngineConfig:
    """Settings of `open_engine`. A worker receives them from the server's process.

    Attributes:
        models: names of the models that jobs can request. The engine loads the first one at once.
        device: see `overpaint.models.devices.place`.
        dtype: number format of the weights.
        vram_gb: GB of a GPU, see `overpaint.painter.load`; the models share them.
        ram_gb: GB of the worker's process, see `overpaint.painter.load`; the models share them.
        home: folder of added models; None for the default.
        models_dirs: folders of models that are used in place.
        vae: VAE that replaces the one of each model.
        model_parts: names or paths of separate parts, by the name of the model.
        memory_bytes: bytes of weights that may be in memory at once.
        cache_bytes: bytes of encoded prompts, pictures and hints to keep between jobs.
        profile: measured step times; None for assumed ones.
        max_running_jobs: jobs that run at once.
        job_memory_bytes: bytes that running jobs may need together beside the weights, by
            `overpaint.system.memory`.
    """

    models: tuple[str, ...]
    device: str = "auto"
    dtype: str = "auto"
    home: Path | None = None
    memory_bytes: float = float("inf")
    cache_bytes: float = 512 * 2**20
    profile: Profile | None = None
    max_running_jobs: int = 64
    job_memory_bytes: float = float("inf")
    models_dirs: tuple[Path, ...] = ()
    vae: str | None = None
    model_parts: Mapping[str, Mapping[str, str]] = field(
        default_factory=dict[str, Mapping[str, str]]
    )
    vram_gb: float | None = None
    ram_gb: float | None = None

    def list_parts(self, model: str) -> Mapping[str, str]:
        """Return the names or paths of the parts that replace those of a model."""
        common = {} if self.vae is None else {"vae": self.vae}
        return common | dict(self.model_parts.get(model, {}))
