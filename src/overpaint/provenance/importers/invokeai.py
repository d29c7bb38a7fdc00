"""Read InvokeAI's `invokeai_metadata` JSON (invokeai/app/invocations/metadata.py)."""

from typing import Any

from overpaint.provenance.importers.collector import (
    ImportedSettings,
    SettingsCollector,
    is_empty,
    parse_json_object,
)
from overpaint.provenance.importers.compel import translate_compel

_PROMPTS = {
    "positive_prompt": "prompt",
    "positive_style_prompt": "prompt_2",
    "negative_prompt": "negative_prompt",
    "negative_style_prompt": "negative_prompt_2",
}
_NUMBERS = {
    "width": ("width", int),
    "height": ("height", int),
    "seed": ("seed", int),
    "steps": ("num_inference_steps", int),
    "cfg_scale": ("guidance_scale", float),
    "cfg_rescale_multiplier": ("guidance_rescale", float),
    "strength": ("strength", float),
}
_SAMPLERS = {"kdpm_2": "dpm2", "kdpm_2_a": "dpm2_a"}
_IDLE = {"app_version", "generation_mode", "rand_device", "model", "scheduler"}
"""Settings that are read separately, or do not change the picture."""


def read_invokeai(text: str) -> ImportedSettings | None:
    """Read InvokeAI's `invokeai_metadata` JSON."""
    data = parse_json_object(text)
    if data is None or "positive_prompt" not in data:
        return None
    reading = SettingsCollector()
    # An empty style prompt there means that the prompt serves both encoders.
    given = {key: value for key, value in data.items() if not is_empty(value)}
    for key, name in _PROMPTS.items():
        if key in given:
            _put_prompt(reading, name, given.pop(key))
    reading.put_numbers(given, _NUMBERS)
    if "strength" in reading.fields:
        reading.fields["steps"] = "truncate"
    if isinstance(scheduler := given.get("scheduler"), str):
        sampler = scheduler.removesuffix("_k")
        schedule = "karras" if sampler != scheduler else "normal"
        reading.put_sampler(_SAMPLERS.get(sampler, sampler), schedule)
    _add_loras(reading, given.pop("loras", None))
    reading.note_lost_settings(given, _IDLE)
    return reading.finish("InvokeAI", _read_name(given.get("model")))


def _put_prompt(reading: SettingsCollector, name: str, text: Any) -> None:
    if not isinstance(text, str):
        reading.put_prompt(name, text)
        return
    prompt, functions = translate_compel(reading.cut_prompt(name, text))
    reading.put_prompt(name, prompt)
    reading.note_lost(f"functions of {name}", functions)


def _add_loras(reading: SettingsCollector, loras: Any) -> None:
    for lora in loras if isinstance(loras, list) else ():
        if isinstance(lora, dict):  # "lora" in version 3
            reading.add_lora(_read_name(lora.get("model", lora.get("lora"))), lora.get("weight"))
        else:
            reading.add_lora(lora, None)


def _read_name(model: Any) -> Any:
    """Return the name of a model; "model_name" is its key in version 3."""
    return model.get("name") or model.get("model_name") if isinstance(model, dict) else None
