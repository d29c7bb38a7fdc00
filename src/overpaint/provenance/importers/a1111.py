"""Read A1111's `parameters` text, which many programs write.

The format is that of A1111's modules/infotext_utils.py: the prompt, a line "Negative prompt:", and
a line of pairs. Programs that add to it are rows of `_PROGRAMS`.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from overpaint.provenance.a1111_text import mark_embeddings
from overpaint.provenance.importers.civitai import list_civitai_resources, read_civitai_model
from overpaint.provenance.importers.collector import (
    ImportedSettings,
    SettingsCollector,
    parse_json_object,
    read_whole_number,
)
from overpaint.provenance.importers.comfyui.prompt import translate_comfyui_prompt
from overpaint.provenance.importers.compel import translate_compel
from overpaint.registry import resolve_schedule
from overpaint.request.fields import EMBEDDING_PATTERN

_KEY = re.compile(r"\s*(\w[\w \-/]++):\s*")
_QUOTED = re.compile(r'"(?:\\.|[^\\"])++"(?=\s*(?:,|$))')
_PLAIN = re.compile(r"[^,]*+")
_SETTINGS_INSIDE_LINE = re.compile(r"(?<!\S)Steps:\s*\d+\s*(?:,|$)")
_HYPERNETWORK = re.compile(r"<hypernet:([^<>:]*+)[^<>]*+>", re.IGNORECASE)
_TAGGED = re.compile(r":([^<>:]++)")
"""The name in a tag such as `<lora:NAME:0.8>`."""

_NEGATIVE = "Negative prompt:"

MAX_EMBEDDINGS = 100
"""Embeddings of a picture that are looked for in its prompts."""

_NUMBERS: dict[str, tuple[str, Callable[[Any], int | float]]] = {
    "Steps": ("num_inference_steps", read_whole_number),
    "CFG scale": ("guidance_scale", float),
    "CFG rescale": ("guidance_rescale", float),
    "Seed": ("seed", read_whole_number),
    "Variation seed": ("subseed", read_whole_number),
    "Variation seed strength": ("subseed_strength", float),
    "width": ("width", read_whole_number),
    "height": ("height", read_whole_number),
}
_IDLE = {
    *("Sampler", "Schedule type", "Scheduler", "Sampler sigma", "Clip skip"),
    *("Model", "Model hash", "Version", "App", "Backend", "Parser", "Pipeline", "Operations"),
    *("Index", "Batch", "User", "Raw prompt", "Raw negative prompt", "Performance"),
    *("TI hashes", "Embeddings", "Lora weights"),
    *("Civitai resources", "Civitai metadata", "Created Date", "workflow", "baseModel"),
    *("quantity", "draft", "nsfw", "process", "engine", "disablePoi", "aspectRatio"),
}
"""Settings that are read separately, or do not change the picture."""

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


def _keep_prompt(text: str) -> tuple[str, list[str]]:
    return text, []


def _from_comfyui(text: str) -> tuple[str, list[str]]:
    return translate_comfyui_prompt(text), []


@dataclass(frozen=True)
class _Program:
    """A program that writes A1111's text."""

    name: str
    key: str
    """A setting that identifies the program."""

    pattern: str = ""
    """The start of its value, as a regular expression."""

    runs_all_steps: bool = False
    """True if all steps run at every strength; in A1111 about steps × strength of them."""

    translate: Callable[[str], tuple[str, list[str]]] = _keep_prompt
    """Returns a prompt in Overpaint's syntax, and what remains in it untranslated."""


_PROGRAMS = (
    _Program("SD.Next", "Parser", "(?i)compel", runs_all_steps=True, translate=translate_compel),
    _Program("SD.Next", "App", r"SD\.?Next", runs_all_steps=True),
    _Program("Fooocus", "Version", "Fooocus", runs_all_steps=True, translate=_from_comfyui),
    _Program("ComfyUI", "Version", "ComfyUI", runs_all_steps=True, translate=_from_comfyui),
    _Program("Civitai", "Civitai resources"),
)
_A1111 = _Program("A1111", "Steps")


@dataclass(frozen=True)
class ParametersText:
    """The parts of a `parameters` text.

    Attributes:
        prompt: the prompt.
        negative: the negative prompt.
        pairs: the settings by their names.
        lines_after: the lines after the settings.
        unread: the parts of the line of settings that have no name.
    """

    prompt: str
    negative: str
    pairs: dict[str, str]
    lines_after: list[str]
    unread: list[str] = field(default_factory=list)


def read_a1111(text: str) -> ImportedSettings | None:
    """Read an A1111 `parameters` text.

    The format cannot escape a line "Negative prompt:" inside a prompt, so such a prompt is split.
    """
    if (parts := split_parameters(text)) is None:
        return None
    pairs: dict[str, Any] = dict(parts.pairs)
    program = next(
        (p for p in _PROGRAMS if p.key in pairs and re.match(p.pattern, pairs[p.key])), _A1111
    )
    reading = SettingsCollector()
    embeddings = _list_embeddings(pairs)
    reading.note_lost("hypernetworks", _HYPERNETWORK.findall(parts.prompt))
    positive = _HYPERNETWORK.sub("", parts.prompt)
    for name, own in (("prompt", positive), ("negative_prompt", parts.negative)):
        prompt, lost = program.translate(reading.cut_prompt(name, own))
        reading.put_prompt(name, mark_embeddings(prompt, embeddings))
        reading.note_lost(f"functions of {name}", lost)
    reading.put_numbers(pairs, _NUMBERS)
    second_pass = any(key.startswith(("Hires", "First pass size")) for key in pairs)
    if "Denoising strength" in pairs and not second_pass:
        reading.put_number("strength", pairs.pop("Denoising strength"))
        if not program.runs_all_steps:
            reading.fields["steps"] = "truncate"
    if "Sampler" in pairs:
        schedule = pairs.get("Schedule type") or pairs.get("Sampler sigma")
        _put_sampler(reading, pairs["Sampler"], schedule)
    if size := re.fullmatch(r"(\d+)\s*[xX×]\s*(\d+)", pairs.get("Size", "").strip()):
        del pairs["Size"]
        reading.put_number("width", size[1], read_whole_number)
        reading.put_number("height", size[2], read_whole_number)
    if "Clip skip" in pairs:  # 1 and 2 are the same for SDXL: the penultimate layer
        reading.put_number(
            "clip_skip", pairs["Clip skip"], lambda skip: max(read_whole_number(skip) - 2, 0)
        )
    _read_loras(reading, pairs, parts.prompt)
    if pairs.get("VAE Decoder") == "TAESD":
        del pairs["VAE Decoder"]
        reading.fields["decoder"] = "tiny"
    if pairs.get("VAE") in ("Automatic", "Default (model)"):
        del pairs["VAE"]
    reading.note_lost_settings(pairs, _IDLE)
    resources = pairs.get("Civitai resources", "")
    reading.note_lost("resources", list_civitai_resources(resources))
    reading.note_lost("parts without a name", parts.unread)
    reading.note_lost("lines", parts.lines_after)
    return reading.finish(program.name, pairs.get("Model") or read_civitai_model(resources))


def split_a1111_pairs(line: str) -> tuple[dict[str, str], list[str]]:
    """Split the settings line of an A1111 text; a value can be quoted, or a JSON list or object.

    Returns:
        The values by their names, and the parts without a name: "5" of "CFG scale: 7,5".
    """
    pairs: dict[str, str] = {}
    unread: list[str] = []
    position = 0
    while position < len(line):
        if key := _KEY.match(line, position):
            value, position = _read_value(line, key.end())
            pairs[key[1]] = value
        else:
            start, position = position, _skip_plain(line, position)
            unread += filter(None, (line[start:position].strip(),))
        position += 1  # the comma
    return pairs, unread


def _read_value(line: str, start: int) -> tuple[str, int]:
    """Return the value that starts there, and the position of the comma after it."""
    if quoted := _QUOTED.match(line, start):
        return _unquote(quoted[0]), _skip_plain(line, quoted.end())
    if line[start : start + 1] in ("[", "{"):
        try:
            _, end = json.JSONDecoder().raw_decode(line, start)
        except (ValueError, RecursionError):
            pass
        else:
            return line[start:end], _skip_plain(line, end)
    end = _skip_plain(line, start)
    return line[start:end], end


def _skip_plain(line: str, start: int) -> int:
    """Return the position of the next comma, or of the end."""
    plain = _PLAIN.match(line, start)
    return plain.end() if plain else len(line)


def _unquote(value: str) -> str:
    try:
        return str(json.loads(value))
    except ValueError:
        return value


def split_parameters(text: str) -> ParametersText | None:
    """Split a text at its last line of settings, or return None if it is in another format.

    Dynamic Prompts adds lines after the settings.
    """
    lines = text.replace("\r\n", "\n").strip().split("\n")
    for number in range(len(lines) - 1, -1, -1):
        line = lines[number]
        pairs, unread = split_a1111_pairs(line) if _KEY.match(line) else ({}, [])
        if "Steps" in pairs and (len(pairs) >= 3 or _SETTINGS_INSIDE_LINE.match(line)):
            prompt, negative = _split_prompts("\n".join(lines[:number]))
            return ParametersText(prompt, negative, pairs, lines[number + 1 :], unread)
        if settings := _SETTINGS_INSIDE_LINE.search(line):  # the line ends got lost
            before = "\n".join([*lines[:number], line[: settings.start()].rstrip()])
            prompt, _, negative = before.partition(_NEGATIVE)
            pairs, unread = split_a1111_pairs(line[settings.start() :])
            prompt, negative = prompt.rstrip(), negative.strip()
            return ParametersText(prompt, negative, pairs, lines[number + 1 :], unread)
    if f"\n{_NEGATIVE}" in f"\n{text}":
        return ParametersText(*_split_prompts(text), {}, [])
    return None


def _split_prompts(text: str) -> tuple[str, str]:
    if text.startswith(_NEGATIVE):
        text = "\n" + text
    prompt, _, negative = text.partition("\n" + _NEGATIVE)
    return prompt, negative.removeprefix(" ")


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


def _put_sampler(reading: SettingsCollector, sampler: str, schedule: str | None) -> None:
    if schedule in ("Automatic", "Normal"):
        reading.put_sampler(sampler, None)
        reading.fields["schedule"] = resolve_a1111_schedule(
            reading.fields.get("sampler", ""), schedule
        )
    else:
        reading.put_sampler(sampler, schedule)
        if schedule is None:  # before version 1.9 the sampler's name said it all
            reading.fields.setdefault("schedule", "linspace")


def _list_embeddings(pairs: dict[str, Any]) -> list[str]:
    """Return the embeddings whose bare names are in the prompts."""
    names = [
        *_read_hashes(pairs.get("TI hashes", "")),
        *(name.strip() for name in pairs.get("Embeddings", "").split(",")),
        *_read_files(pairs, "embed:"),
    ]
    return [name for name in names if EMBEDDING_PATTERN.fullmatch(f"<embedding:{name}>")][
        :MAX_EMBEDDINGS
    ]


def _read_loras(reading: SettingsCollector, pairs: dict[str, Any], prompt: str) -> None:
    """Add the LoRAs that are not in the prompt; those without a scale are left to the notes."""
    weights = _read_hashes(pairs.get("Lora weights", ""))
    tagged = set(_TAGGED.findall(prompt))
    for name, scale in weights.items():
        reading.add_lora(name, scale)
    for key, names in (
        ("Lora hashes", list(_read_hashes(pairs.get("Lora hashes", "")))),
        ("Hashes", _read_files(pairs, "lora:")),
    ):
        if all(name in weights or name in tagged for name in names):
            pairs.pop(key, None)


def _read_files(pairs: dict[str, Any], kind: str) -> list[str]:
    """Return the names of the files of a kind, such as "lora:", in the JSON of their hashes."""
    files = parse_json_object(pairs.get("Hashes", "")) or {}
    return [key.removeprefix(kind) for key in files if key.startswith(kind)]


def _read_hashes(text: str) -> dict[str, str]:
    """Read "name: value, name: value"."""
    pairs = (item.rpartition(":") for item in text.split(","))
    return {name.strip(): value.strip() for name, _, value in pairs if name.strip()}
