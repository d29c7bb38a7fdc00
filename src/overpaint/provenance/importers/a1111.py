"""Read A1111's `parameters` text (also Forge's, SD.Next's and Civitai's).

The format is that of A1111's modules/infotext_utils.py.
"""

import json
import re

from overpaint.provenance.importers.collector import (
    ImportedSettings,
    SettingsCollector,
)
from overpaint.registry import resolve_schedule

_PAIR = re.compile(r'(?:^|(?<=,))\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])++"|[^,]*)(?:,|$)')
_NEGATIVE = "Negative prompt:"
_HYPERNETWORK = re.compile(r"<hypernet:([^<>:]*)[^<>]*>", re.IGNORECASE)
_A1111_OWN = {"Sampler", "Schedule type", "Size", "Clip skip", "Model", "Model hash", "Version"}


# The schedule behind "Automatic" (modules/sd_samplers_kdiffusion.py); Uniform for all others.
_AUTOMATIC = {
    "dpm2": "karras",
    "dpm2_a": "karras",
    "dpmpp_2m": "karras",
    "dpmpp_2s_a": "karras",
    "dpmpp_sde": "karras",
    "dpmpp_2m_sde": "exponential",
    "dpmpp_3m_sde": "exponential",
}


def read_a1111(text: str) -> ImportedSettings | None:
    """Read an A1111 `parameters` text: prompt, negative prompt, and a last line of pairs.

    The format cannot escape a line "Negative prompt:" inside a prompt, so such a prompt is split.
    """
    *lines, last = text.strip().split("\n")
    pairs = split_a1111_pairs(last)
    if "Steps" not in pairs or len(pairs) < 3:
        return None
    prompt, negative = _split_prompts("\n".join(lines))
    reading = SettingsCollector()
    reading.note_lost("hypernetworks", [tag[1] for tag in _HYPERNETWORK.finditer(prompt)])
    reading.put("prompt", _HYPERNETWORK.sub("", prompt))
    reading.put("negative_prompt", negative)
    reading.put_number("num_inference_steps", pairs.pop("Steps"), int)
    if "CFG scale" in pairs:
        reading.put_number("guidance_scale", pairs.pop("CFG scale"))
    if "Seed" in pairs:
        reading.put_number("seed", pairs.pop("Seed"), int)
    if "Denoising strength" in pairs and not any(key.startswith("Hires") for key in pairs):
        reading.put_number("strength", pairs.pop("Denoising strength"))
        reading.fields["steps"] = "truncate"  # A1111 runs about steps × strength of them
    if "Sampler" in pairs:
        _a1111_sampler(reading, pairs["Sampler"], pairs.get("Schedule type"))
    if size := re.fullmatch(r"(\d+)x(\d+)", pairs.get("Size", "")):
        reading.put("width", int(size[1]))
        reading.put("height", int(size[2]))
    if "Clip skip" in pairs:  # 1 and 2 are the same for SDXL: the penultimate layer
        reading.put_number("clip_skip", pairs["Clip skip"], lambda skip: max(int(skip) - 2, 0))
    lost = [f"{key} {value}" for key, value in pairs.items() if key not in _A1111_OWN]
    reading.note_lost("settings", lost)
    return reading.finish("A1111", pairs.get("Model"))


def split_a1111_pairs(line: str) -> dict[str, str]:
    """Split the last line of an A1111 `parameters` text into its settings."""
    return {key: _unquote(value) for key, value in _PAIR.findall(line)}


def resolve_a1111_schedule(sampler: str, label: str) -> str:
    """Return Overpaint's name of a schedule that A1111 names, for a sampler by Overpaint's name.

    Raises:
        RequestError: the schedule is unknown; the message suggests similar names.
    """
    match label.lower():
        case "automatic":
            return _AUTOMATIC.get(sampler, "linspace")
        case "normal":
            return "linspace"
        case _:
            return resolve_schedule(label)


def _split_prompts(text: str) -> tuple[str, str]:
    if text.startswith(_NEGATIVE):
        text = "\n" + text
    prompt, _, negative = text.partition("\n" + _NEGATIVE)
    return prompt, negative.removeprefix(" ")


def _a1111_sampler(reading: SettingsCollector, sampler: str, schedule: str | None) -> None:
    if schedule in ("Automatic", "Normal"):
        reading.put_sampler(sampler, None)
        reading.fields["schedule"] = resolve_a1111_schedule(
            reading.fields.get("sampler", ""), schedule
        )
    else:
        reading.put_sampler(sampler, schedule)
        if schedule is None:  # before version 1.9 the sampler's name said it all
            reading.fields.setdefault("schedule", "linspace")


def _unquote(value: str) -> str:
    if value.startswith('"'):
        try:
            return str(json.loads(value))
        except ValueError:
            return value
    return value
