"""Read the JSON of Fooocus's scheme "fooocus" (modules/meta_parser.py).

Its other scheme is A1111's text, which `a1111` reads.
"""

import re
from typing import Any

from overpaint.provenance.importers.collector import (
    ImportedSettings,
    SettingsCollector,
    join_texts,
    parse_json_object,
)
from overpaint.provenance.importers.comfyui.names import put_comfyui_sampler
from overpaint.provenance.importers.comfyui.prompt import translate_comfyui_prompt

_NUMBERS = {
    "steps": ("num_inference_steps", int),
    "seed": ("seed", int),
    "guidance_scale": ("guidance_scale", float),
}
_IDLE = {
    "base_model",
    "base_model_hash",
    "created_by",
    "image_number",
    "metadata_scheme",
    "performance",
    "version",
}
"""Settings that are read separately, or do not change the picture."""

_LORA = re.compile(r"lora_combined_\d+|lora_\d+")


def read_fooocus(text: str) -> ImportedSettings | None:
    """Read the JSON of Fooocus.

    `full_prompt` has the texts of the styles too, as Fooocus encodes them.
    """
    data = parse_json_object(text)
    if data is None:
        return None
    given = {key.lower().replace(" ", "_"): value for key, value in data.items()}
    if "prompt" not in given or not {"base_model", "metadata_scheme"} & given.keys():
        return None
    reading = SettingsCollector()
    styled = isinstance(given.get("full_prompt"), list)
    for name in ("prompt", "negative_prompt"):
        raw, full = given.pop(name, ""), given.pop(f"full_{name}", None)
        prompt = join_texts(full, ", ") if isinstance(full, list) else ""
        reading.put_prompt(name, prompt or raw, translate_comfyui_prompt)
    if styled:
        given.pop("styles", None)
    reading.put_numbers(given, _NUMBERS)
    if size := re.fullmatch(r"\D*(\d+)\D+(\d+)\D*", str(given.pop("resolution", ""))):
        reading.put_number("width", size[1], int)
        reading.put_number("height", size[2], int)
    if "sampler" in given:
        put_comfyui_sampler(reading, given.pop("sampler"), given.pop("scheduler", None))
    _add_loras(reading, given)
    vae = given.get("vae")
    if isinstance(vae, str) and vae.startswith("Default"):
        del given["vae"]
    reading.note_lost_settings(given, _IDLE)
    return reading.finish("Fooocus", given.get("base_model"))


def _add_loras(reading: SettingsCollector, given: dict[str, Any]) -> None:
    """Add the LoRAs, which `lora_combined_1` has as "name : scale" and `loras` as lists."""
    combined = [given.pop(key) for key in list(given) if _LORA.fullmatch(key)]
    loras = given.pop("loras", None)
    for lora in combined:
        *enabled, name, scale = [None, *str(lora).split(" : ")]
        if enabled[1:] != ["False"] and name != "None":
            reading.add_lora(name, scale)
    for lora in loras if isinstance(loras, list) and not combined else ():
        name, scale, *_ = [*lora, None, None] if isinstance(lora, list) else (lora, None)
        reading.add_lora(name, scale)
