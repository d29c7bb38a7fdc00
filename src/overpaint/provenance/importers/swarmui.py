r"""Read SwarmUI's `sui_image_params` JSON (docs/Image Metadata Format.md of SwarmUI).

| SwarmUI | Overpaint |
|---|---|
| text between tags | the same as in ComfyUI, which is its usual backend |
| `<embed:folder/name.pt>`, `<embedding:name>` | `<embedding:name>` |
| `<lora:folder/name:0.5>` | `<lora:name:0.5>` |
| `<break>` | `BREAK` |
"""

import re
from itertools import zip_longest
from typing import Any

from overpaint.provenance.importers.collector import (
    ImportedSettings,
    SettingsCollector,
    parse_json_object,
    strip_file_name,
)
from overpaint.provenance.importers.comfyui.names import (
    put_comfyui_sampler,
    read_layers_to_skip,
)
from overpaint.provenance.importers.comfyui.prompt import translate_comfyui_prompt

_PROMPTS = {"prompt": "prompt", "negativeprompt": "negative_prompt"}
_NUMBERS = {
    "seed": ("seed", int),
    "steps": ("num_inference_steps", int),
    "cfgscale": ("guidance_scale", float),
    "width": ("width", int),
    "height": ("height", int),
    "initimagecreativity": ("strength", float),
    "rescalecfgmultiplier": ("guidance_rescale", float),
}
_SAMPLERS = ("sampler", "comfyuisampler")
_SCHEDULERS = ("scheduler", "comfyuischeduler")
_IDLE = {
    "aspectratio",
    "automaticvae",
    "batchsize",
    "images",
    "model",
    "swarm_version",
    *_SAMPLERS,
    *_SCHEDULERS,
}
"""Settings that are read separately, or do not change the picture."""

_TAG = re.compile(r"(<[^<>]*+>)")
_EMBEDDING = re.compile(r"<(?:embed|embedding):([^<>:]++)>")
_LORA_FOLDER = re.compile(r"(?<=<lora:)[^<>:]*[/\\]")


def read_swarmui(text: str) -> ImportedSettings | None:
    """Read SwarmUI's JSON. SwarmUI runs all steps at every strength, as Overpaint does."""
    data = parse_json_object(text)
    given: Any = data and data.get("sui_image_params")
    if not isinstance(given, dict):
        return None
    given = dict(given)
    reading = SettingsCollector()
    for key, name in _PROMPTS.items():
        if key in given:
            reading.put_prompt(name, given.pop(key), _translate_prompt)
    reading.put_numbers(given, _NUMBERS)
    sampler = next((given[key] for key in _SAMPLERS if key in given), None)
    schedule = next((given[key] for key in _SCHEDULERS if key in given), None)
    if sampler is not None:
        put_comfyui_sampler(reading, sampler, schedule)
    lists = [_read_list(given.pop(k, ())) for k in ("loras", "loraweights", "loratencweights")]
    for name, scale, text_scale in list(zip_longest(*lists))[: len(lists[0])]:
        reading.add_lora(name, 1 if scale is None else scale, text_scale)
    try:
        layer = int(given["clipstopatlayer"])
    except (KeyError, TypeError, ValueError, OverflowError):
        pass  # the note below names it, if it is there
    else:
        reading.put("clip_skip", read_layers_to_skip(layer))
        del given["clipstopatlayer"]
    reading.note_lost_settings(given, _IDLE)
    return reading.finish("SwarmUI", given.get("model"))


def _translate_prompt(text: str) -> str:
    *pairs, last = _TAG.split(text)  # it alternates between texts and tags
    pieces: list[str] = []
    for words, tag in zip(pairs[::2], pairs[1::2], strict=True):
        pieces += [translate_comfyui_prompt(words), _translate_tag(tag)]
    return "".join([*pieces, translate_comfyui_prompt(last)])


def _translate_tag(tag: str) -> str:
    if embedding := _EMBEDDING.fullmatch(tag):
        return f"<embedding:{strip_file_name(embedding[1])}>"
    return "BREAK" if tag == "<break>" else _LORA_FOLDER.sub("", tag)


def _read_list(value: Any) -> list[Any]:
    """Return the items of a list, which can also be a text with commas."""
    if isinstance(value, str):
        return [item.strip() for item in value.split(",") if item.strip()]
    return list(value) if isinstance(value, list | tuple) else []
