"""What dialects remember of jobs, as it is stored now and as every earlier program stored it."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest

from overpaint.server.store.origins import (
    DIALECTS,
    A1111Origin,
    CogOrigin,
    FalOrigin,
    NativeOrigin,
    OpenAIOrigin,
    Origin,
    OutputOptions,
    ReplicateOrigin,
    read_origin,
    write_origin,
)

WEBP = OutputOptions(kind="webp", options={"quality": 80}, preview_every=2)
TRACE = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}
ORIGINS: list[Origin] = [
    NativeOrigin(output=WEBP, request_id="5f0c", trace=TRACE),
    ReplicateOrigin(base_url="http://a.example", input={"prompt": "é"}, check_safety=False),
    CogOrigin(base_url="http://a.example", input={"seed": 7}, client_fields={"id": "mine"}),
    OpenAIOrigin(field_names={"num_images": "n"}, response_format="url", quality="high"),
    FalOrigin(app="fal-ai/fast-sdxl", prompt="a cup", sync_mode=True, field_names={"a": "b"}),
    A1111Origin(parameters={"send_images": True, "batch_size": 2}, output=WEBP),
]
OLD_WEBP = {"kind": "webp", "options": {"quality": 80}, "preview_every": 2}
STORED: list[tuple[dict[str, Any], Origin]] = [
    # Schema version 1: the native API did not store its name, Replicate's not its address.
    ({"output": OLD_WEBP}, NativeOrigin(output=WEBP)),
    (
        {"input": {"seed": 7}, "wire": "replicate", "output": {"kind": "png"}},
        ReplicateOrigin(input={"seed": 7}),
    ),
    # Schema version 3.
    ({"wire": "cog", "shown": {"id": "mine"}}, CogOrigin(client_fields={"id": "mine"})),
    # Schema version 4.
    (
        {
            "wire": "fal",
            "output": {"kind": "jpg", "preview_every": 0},
            "base": "http://a.example",
            "app": "fal-ai/fast-sdxl",
            "theirs": {"fill": "mask_url"},
            "prompt": "a cup",
            "sync_mode": False,
            "checked": False,
            "request_id": "5f0c",
            "trace": TRACE,
        },
        FalOrigin(
            output=OutputOptions(kind="jpg"),
            base_url="http://a.example",
            app="fal-ai/fast-sdxl",
            field_names={"fill": "mask_url"},
            prompt="a cup",
            check_safety=False,
            request_id="5f0c",
            trace=TRACE,
        ),
    ),
    (
        {"wire": "a1111", "parameters": {"batch_size": 2}, "output": OLD_WEBP},
        A1111Origin(parameters={"batch_size": 2}, output=WEBP),
    ),
    (
        {
            "wire": "openai",
            "output": OLD_WEBP,
            "base": "http://a.example",
            "theirs": {"num_images": "n"},
            "response_format": "url",
            "output_format": "webp",
            "quality": "high",
        },
        OpenAIOrigin(
            output=WEBP,
            base_url="http://a.example",
            field_names={"num_images": "n"},
            response_format="url",
            output_format="webp",
            quality="high",
        ),
    ),
]


def test_dialects_are_those_of_the_union() -> None:
    assert tuple(kind().dialect for kind in get_args(Origin)) == DIALECTS


@pytest.mark.parametrize("origin", ORIGINS, ids=lambda origin: origin.dialect)
def test_origin_that_is_stored_and_read_is_equal(origin: Origin) -> None:
    stored = json.loads(json.dumps(write_origin(origin)))
    assert stored["dialect"] == origin.dialect
    assert read_origin(stored) == origin


@pytest.mark.parametrize(("stored", "origin"), STORED)
def test_origin_of_an_earlier_program_is_read(stored: dict[str, Any], origin: Origin) -> None:
    assert read_origin(stored) == origin


def test_origin_of_an_unknown_dialect_counts_as_native() -> None:
    stored = {"dialect": "new", "output": OLD_WEBP, "field": 1, "request_id": "5f0c"}
    assert read_origin(stored) == NativeOrigin(output=WEBP, request_id="5f0c")
    assert read_origin({}) == NativeOrigin()
