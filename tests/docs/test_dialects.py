"""The table of dialect fields, made from the models that validate what clients send."""

from __future__ import annotations

import pytest
from pydantic import BaseModel

from docs.generate import Dialect, dialects, dialects_page, native_fields
from overpaint.request import Request
from overpaint.request.parts import Control
from overpaint.server.api.a1111.controlnet import Unit
from overpaint.server.api.a1111.protocol import TextInputs
from overpaint.server.api.fal import protocol as fal
from overpaint.server.api.openai import protocol as openai
from overpaint.server.api.replicate.inputs import Input


def mapped(model: type[BaseModel], name: str, native: type[BaseModel] = Request) -> list[str]:
    return native_fields(Dialect("", model, native), name)


def test_dialects_page_lists_every_field_of_every_dialect() -> None:
    page = dialects_page()
    for dialect in dialects():
        assert f"## {dialect.title}\n" in page
        for name in dialect.model.model_fields:
            assert f"| `{name}` |" in page


@pytest.mark.parametrize("model", [openai.Generation, fal.Arguments, Input, TextInputs])
def test_native_fields_of_every_dialect_include_the_main_ones(model: type[BaseModel]) -> None:
    found = {native for name in model.model_fields for native in mapped(model, name)}
    assert {"prompt", "num_images", "num_inference_steps", "sampler"} <= found


def test_native_fields_of_an_accepted_field_without_effect_are_empty() -> None:
    assert mapped(TextInputs, "refiner") == []
    assert mapped(Input, "apply_watermark") == []
    assert mapped(TextInputs, "steps") == ["num_inference_steps"]
    assert mapped(Unit, "weight", Control) == ["controls[].scale"]
