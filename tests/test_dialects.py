"""`docs/dialects.md`: what every dialect's fields are of ours, by the models that check them."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from overpaint.request import Request
from overpaint.request_parts import Control
from overpaint.server.api.a1111.controlnet import Unit
from overpaint.server.api.a1111.protocol import ImageInputs, Inputs, Options, TextInputs
from overpaint.server.api.fal import protocol as fal
from overpaint.server.api.openai import protocol as openai
from overpaint.server.api.replicate.inputs import Input

PAGE = Path(__file__).parents[1] / "docs" / "dialects.md"

DIALECTS: tuple[tuple[str, type[BaseModel], type[BaseModel]], ...] = (
    ("Replicate, Synexa and cog", Input, Request),
    ("OpenAI", openai.Asked, Request),
    ("OpenAI: generations", openai.Generation, Request),
    ("OpenAI: edits", openai.Edit, Request),
    ("OpenAI: variations", openai.Variation, Request),
    ("fal", fal.Arguments, Request),
    ("fal: `loras`", fal.LoraWeight, Request),
    ("AUTOMATIC1111", Inputs, Request),
    ("AUTOMATIC1111: txt2img", TextInputs, Request),
    ("AUTOMATIC1111: img2img", ImageInputs, Request),
    ("AUTOMATIC1111: options", Options, Request),
    ("AUTOMATIC1111: ControlNet's units", Unit, Control),
)
"""The models of the dialects, and what of ours their fields are fields of."""


def ours_of(kind: type[BaseModel], name: str, ours: type[BaseModel]) -> list[str]:
    """The fields of ours that a field is: those that its description names, or the one that is
    called so. What takes anything has no counterpart."""
    field = kind.model_fields[name]
    if field.annotation is Any:
        return []
    quoted = re.findall(r"`([^`]+)`", field.description or "")
    named = [each for each in quoted if each.partition("[")[0] in ours.model_fields]
    found = named or [name] * (name in ours.model_fields)
    prefix = "controls[]." if ours is Control else ""
    return [prefix + each for each in found]


def values_of(schema: Mapping[str, Any]) -> str:
    """What a field may be."""
    if "enum" in schema:
        return ", ".join(json.dumps(value) for value in schema["enum"])
    if "const" in schema:
        return json.dumps(schema["const"])
    if "anyOf" in schema:
        return "; ".join(filter(None, map(values_of, schema["anyOf"])))
    kind = schema.get("type", "object" if "$ref" in schema else "")
    if kind in ("integer", "number"):
        low, high = schema.get("minimum"), schema.get("maximum")
        noun = "whole number" if kind == "integer" else "number"
        if high is None or high > 10**9:
            return noun if low is None else f"{noun} from {low:g}"
        return f"{noun}, {low:g} to {high:g}"
    words = {"string": "text", "boolean": "true, false", "array": "list", "object": "object"}
    return words.get(kind, "")


def row(kind: type[BaseModel], name: str, schema: Mapping[str, Any], ours: type[BaseModel]) -> str:
    field, values = kind.model_fields[name], values_of(schema) or "anything"
    if field.is_required():
        values = f"{values}; needed"
    elif field.default not in (None, "", [], {}) and not field.default_factory:
        default = json.dumps(field.default)
        values += "" if values == default else f"; default {default}"
    mapped, said = ours_of(kind, name, ours), schema.get("description", "")
    if len(mapped) == 1:
        said = re.sub("^`[^`]+`[.:;,] *", "", said)
    cells = (f"`{name}`", values, ", ".join(f"`{each}`" for each in mapped), said)
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def own_of(kind: type[BaseModel]) -> Collection[str]:
    """The fields that a model says itself; all of them if its base is none of a dialect's."""
    bases = {other for _, other, _ in DIALECTS}
    return kind.__annotations__ if kind.__base__ in bases else kind.model_fields


def table(kind: type[BaseModel], ours: type[BaseModel]) -> str:
    properties: dict[str, Any] = kind.model_json_schema()["properties"]
    names = [name for name in kind.model_fields if name in own_of(kind)]
    head = "| theirs | values | ours | |\n|---|---|---|---|\n"
    return head + "\n".join(row(kind, name, properties[name], ours) for name in names) + "\n"


def listed(names: Collection[str]) -> str:
    return ", ".join(f"`{name}`" for name in Request.model_fields if name in names)


def page() -> str:
    parts = [
        "# Dialects\n\nWritten by `python -m tests.test_dialects`; a test keeps it true.\n\n"
        "Fields of every dialect that [the server](server.md) speaks, what they may be, and which "
        "of ours they are.\nWhere nothing stands under *ours* it is no field of a request.\n"
    ]
    for title, kind, ours in DIALECTS:
        bases = [t for t, other, _ in DIALECTS if other is kind.__base__]
        also = f'Beside those of "{bases[0]}":\n\n' if bases else ""
        parts.append(f"## {title}\n\n{also}{table(kind, ours)}")
    parts.append(
        "## Ours, by their own names\n\nOpenAI's clients (by `extra_body`) and fal's send these "
        f"beside their own:\n\n{listed(openai.OWN & fal.OWN)}.\n\nOf the two OpenAI's alone: "
        f"{listed(openai.OWN - fal.OWN)}.\n\nOf the two fal's alone: "
        f"{listed(fal.OWN - openai.OWN)}.\n"
    )
    return "\n".join(parts)


def test_the_page_says_what_the_models_say() -> None:
    assert PAGE.read_text("utf-8") == page()


@pytest.mark.parametrize("kind", [openai.Generation, fal.Arguments, Input, TextInputs])
def test_what_steers_a_picture_is_mapped(kind: type[BaseModel]) -> None:
    """Of every dialect: these have a name there, and the table knows it."""
    found = {ours for name in kind.model_fields for ours in ours_of(kind, name, Request)}
    assert {"prompt", "num_images", "num_inference_steps", "sampler"} <= found


def test_what_is_taken_without_effect_is_mapped_to_nothing() -> None:
    assert ours_of(TextInputs, "refiner", Request) == []
    assert ours_of(Input, "apply_watermark", Request) == []
    assert ours_of(TextInputs, "steps", Request) == ["num_inference_steps"]
    assert ours_of(Unit, "weight", Control) == ["controls[].scale"]


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
