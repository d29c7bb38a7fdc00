r"""Read NovelAI's `Comment` JSON and `Description`.

| NovelAI | Overpaint |
|---|---|
| `{words}`, `[words]` | `(words:1.05)`, `(words:0.9524)` |
| `1.5::words::` | `(words:1.5)` |
| `(words)`, `\`, `[` without `]` | `\(words\)`, `\\`, `\[` |
"""

import re
from typing import Any

from overpaint.provenance.importers.collector import (
    ImportedSettings,
    SettingsCollector,
    parse_json_object,
)
from overpaint.provenance.importers.prompt_weights import format_weight
from overpaint.provenance.picture_texts import PictureTexts

BRACKET_FACTOR = 1.05
"""A pair of curly brackets multiplies a weight by this; a pair of square brackets divides by it."""

_NUMBERS = {
    "steps": ("num_inference_steps", int),
    "seed": ("seed", int),
    "scale": ("guidance_scale", float),
    "cfg_rescale": ("guidance_rescale", float),
    "width": ("width", int),
    "height": ("height", int),
}
_SAMPLERS = {
    "k_dpmpp_2s_ancestral": "dpmpp_2s_a",
    "k_dpmpp_2m": "dpmpp_2m",
    "k_dpmpp_2m_sde": "dpmpp_2m_sde",
    "k_dpmpp_sde": "dpmpp_sde",
    "k_dpm_2": "dpm2",
    "k_dpm_2_ancestral": "dpm2_a",
    "k_lms": "lms",
    "ddim_v3": "ddim",
}
_SCHEDULES = {"native": "linspace"}
_IDLE = {
    "add_original_image",
    "hide_debug_overlay",
    "legacy",
    "n_samples",
    "noise",
    "params_version",
    "request_type",
    "sampler",
    "noise_schedule",
    "signed_hash",
    "strength",
    "controlnet_strength",
    "uncond_scale",
    "extra_noise_seed",
    "v4_prompt",
    "v4_negative_prompt",
    "version",
}
"""Settings that are read separately, or do not change the picture."""

_FACTORS = {"}": ("{", BRACKET_FACTOR), "]": ("[", 1 / BRACKET_FACTOR)}
"""The opening bracket and the factor of each closing bracket."""

_LITERALS = {letter: f"\\{letter}" for letter in "()[]\\"}
"""The literal spelling of the letters that have a meaning in Overpaint and none in NovelAI."""

_EMPHASIS = re.compile(r"(?:(?<![\w.])(-?(?:\d++(?:\.\d*+)?|\.\d++)))?::")


def read_novelai(texts: PictureTexts) -> ImportedSettings | None:
    """Read NovelAI's texts. NovelAI's pictures have the size of the settings."""
    by_key = texts.by_key
    data = parse_json_object(by_key.get("Comment", ""))
    given = dict(data or {})
    if by_key.get("Software") != "NovelAI" and not {"uc", "scale", "steps"} <= given.keys():
        return None
    reading = SettingsCollector()
    prompt = given.pop("prompt", by_key.get("Description", ""))
    reading.put_prompt("prompt", prompt, translate_novelai_prompt)
    reading.put_prompt("negative_prompt", given.pop("uc", ""), translate_novelai_prompt)
    for name, side in zip(("width", "height"), texts.size, strict=True):
        if side % 8 == 0:
            given.setdefault(name, side)
    reading.put_numbers(given, _NUMBERS)
    if given.get("request_type") == "Img2ImgRequest" and "strength" in given:
        reading.put_number("strength", given.pop("strength"))
        reading.fields["steps"] = "truncate"
    reading.note_lost("character prompts", _list_characters(given))
    if isinstance(sampler := given.get("sampler"), str):
        schedule = str(given.get("noise_schedule", "native"))
        reading.put_sampler(_SAMPLERS.get(sampler, sampler), _SCHEDULES.get(schedule, schedule))
    if data is None:
        reading.notes.append("the settings are damaged; only the prompt is read.")
    reading.note_lost_settings(given, _IDLE)
    return reading.finish("NovelAI", by_key.get("Source"))


def _list_characters(given: dict[str, Any]) -> list[str]:
    """Return the prompts of single characters, which version 4 has."""
    texts: list[str] = []
    for key in ("v4_prompt", "v4_negative_prompt"):
        match given.get(key):
            case {"caption": {"char_captions": [*captions]}}:
                found = [c.get("char_caption") for c in captions if isinstance(c, dict)]
                texts += [text for text in found if isinstance(text, str) and text]
            case _:
                pass
    return texts


def translate_novelai_prompt(text: str) -> str:
    """Return a prompt in Overpaint's syntax, in which brackets without a partner are literal."""
    return _translate_emphasis(_translate_brackets(text))


def _translate_brackets(text: str) -> str:
    pieces: list[str] = []
    opened: dict[str, list[int]] = {"{": [], "[": []}
    for piece in re.split(r"([{}\[\]()\\])", text):
        closed = _LITERALS.get(piece, piece)
        if piece in opened:
            opened[piece].append(len(pieces))
        elif piece in _FACTORS and (waiting := opened[_FACTORS[piece][0]]):
            pieces[waiting.pop()] = "("
            closed = f":{format_weight(_FACTORS[piece][1])})"
        pieces.append(closed)
    return "".join(pieces)


def _translate_emphasis(text: str) -> str:
    pieces: list[str] = []
    end = ""
    position = 0
    for mark in _EMPHASIS.finditer(text):
        pieces += [text[position : mark.start()], end]
        if mark[1]:
            pieces.append("(")
        elif not end:
            pieces.append(mark[0])
        end = f":{format_weight(float(mark[1]))})" if mark[1] else ""
        position = mark.end()
    return "".join([*pieces, text[position:], end])
