"""Read InvokeAI's `invokeai_metadata` JSON (invokeai/app/invocations/metadata.py)."""

from typing import Any

from overpaint.provenance.importers.collector import (
    ImportedSettings,
    SettingsCollector,
    parse_json_object,
)

_INVOKEAI = {
    "positive_prompt": "prompt",
    "positive_style_prompt": "prompt_2",
    "negative_prompt": "negative_prompt",
    "negative_style_prompt": "negative_prompt_2",
    "width": "width",
    "height": "height",
    "seed": "seed",
    "steps": "num_inference_steps",
    "cfg_scale": "guidance_scale",
    "cfg_rescale_multiplier": "guidance_rescale",
    "strength": "strength",
}
_INVOKEAI_SAMPLERS = {"kdpm_2": "dpm2", "kdpm_2_a": "dpm2_a"}


# Read separately, or of no effect on the picture.
_INVOKEAI_IDLE = {"app_version", "generation_mode", "rand_device", "model", "scheduler"}


def read_invokeai(text: str) -> ImportedSettings | None:
    """Read InvokeAI's `invokeai_metadata` JSON."""
    data = parse_json_object(text)
    if data is None or "positive_prompt" not in data:
        return None
    reading = SettingsCollector()
    # An empty style prompt there means that the prompt serves both encoders.
    given = {key: value for key, value in data.items() if value not in (None, "", [], {}, False)}
    for key, name in _INVOKEAI.items():
        if key in given:
            reading.put(name, given.pop(key))
    if "strength" in reading.fields:
        reading.fields["steps"] = "truncate"
    if isinstance(scheduler := given.get("scheduler"), str):
        sampler = scheduler.removesuffix("_k")
        schedule = "karras" if sampler != scheduler else "normal"
        reading.put_sampler(_INVOKEAI_SAMPLERS.get(sampler, sampler), schedule)
    reading.note_lost("settings", [key for key in given if key not in _INVOKEAI_IDLE])
    model: Any = given.get("model")
    if isinstance(model, dict):
        model = model.get("name") or model.get("model_name")
    return reading.finish("InvokeAI", model if isinstance(model, str) else None)
