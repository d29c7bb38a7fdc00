"""A few-step model sets what the client left out: a dialect's defaults do not count as set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from overpaint.models.few_step import FEW_STEP_KINDS, find_few_step_settings
from overpaint.request import Request
from overpaint.server.api.a1111 import translation as a1111
from overpaint.server.api.a1111.option_fields import Options
from overpaint.server.api.a1111.protocol import TextInputs
from overpaint.server.api.fal import translation as fal
from overpaint.server.api.fal.protocol import Arguments
from overpaint.server.api.openai import translation as openai
from overpaint.server.api.openai.protocol import Generation
from overpaint.server.api.replicate import inputs as replicate
from overpaint.server.api.replicate.inputs import Input
from tests.server.live import NOWHERE


def read_a1111(body: dict[str, Any]) -> Request:
    [request] = a1111.to_requests(TextInputs.model_validate(body), Options())
    return request


def read_fal(body: dict[str, Any]) -> Request:
    return fal.to_request(Arguments.model_validate(body), NOWHERE)[0]


def read_openai(body: dict[str, Any]) -> Request:
    return openai.to_request(Generation.model_validate(body), NOWHERE)[0]


def read_replicate(body: dict[str, Any]) -> Request:
    return replicate.to_request(Input.model_validate(body), NOWHERE, None)


DIALECTS: dict[str, tuple[Callable[[dict[str, Any]], Request], dict[str, Any]]] = {
    "a1111": (read_a1111, {"steps": 9, "cfg_scale": 3.0, "sampler_name": "DPM++ 2M Karras"}),
    "fal": (
        read_fal,
        {
            "num_inference_steps": 9,
            "guidance_scale": 3.0,
            "scheduler": "DPM++ 2M Karras",
            "schedule": "karras",
        },
    ),
    "openai": (
        read_openai,
        {
            "steps": 9,
            "guidance_scale": 3.0,
            "scheduler": "DPM++ 2M Karras",
            "schedule": "karras",
        },
    ),
    "replicate": (
        read_replicate,
        {"num_inference_steps": 9, "guidance_scale": 3.0, "scheduler": "KarrasDPM"},
    ),
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_few_step_model_sets_the_fields_that_the_client_left_out(dialect: str):
    read, chosen = DIALECTS[dialect]
    found = find_few_step_settings({"modelspec.title": "SDXL-Lightning 4-step"})
    assert found
    fields = found[1]
    filled = read({"prompt": "a fox"}).fill_unset(fields)
    assert {name: getattr(filled, name) for name in fields} == fields
    asked = read({"prompt": "a fox"} | chosen)
    assert asked.fill_unset(fields) == asked
    assert (asked.num_inference_steps, asked.guidance_scale, asked.sampler) == (9, 3.0, "dpmpp_2m")


def test_few_step_kinds_set_only_fields_that_dialects_mark():
    for kind in FEW_STEP_KINDS:
        found = find_few_step_settings({"modelspec.title": f"{kind.name} 4 steps"})
        assert found
        assert set(found[1]) <= set(a1111.SAMPLING_FIELDS) & set(replicate.SAMPLING_INPUTS)
