"""Names of ComfyUI's samplers and schedulers, which Fooocus and SwarmUI use too."""

from typing import Any

from overpaint.provenance.importers.collector import SettingsCollector

_SAMPLERS = {"dpm_2": "dpm2", "dpm_2_ancestral": "dpm2_a", "uni_pc_bh2": "unipc"}
_SCHEDULES = {"normal": "linspace", "ddim_uniform": "normal"}


def put_comfyui_sampler(reading: SettingsCollector, sampler: Any, schedule: Any) -> None:
    """Set the sampler and the schedule; the scheduler "normal" is the default."""
    name = str(sampler).removesuffix("_gpu")
    given = schedule if isinstance(schedule, str) else "normal"
    reading.put_sampler(_SAMPLERS.get(name, name), _SCHEDULES.get(given, given))


def read_layers_to_skip(stop_at_layer: int) -> int:
    """Return `clip_skip`; -2 is the penultimate layer, Overpaint's 0."""
    return max(-stop_at_layer - 2, 0)
