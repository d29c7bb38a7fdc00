"""Tests of few-step LoRAs: titles give settings, and the request overrides them."""

from typing import Any

import pytest

from overpaint.models.adapters import Adapter
from overpaint.models.few_step import apply_few_step_settings, find_few_step_settings
from overpaint.models.lora import LoraWeights
from overpaint.request import Request


@pytest.mark.parametrize(
    ("title", "kind", "sampler", "steps", "guidance"),
    [
        ("lcm-lora-sdxl", "LCM", "lcm", 4, 1.0),
        ("LCM_LoRA_SDXL 8 steps", "LCM", "lcm", 8, 1.0),
        ("SDXL-Lightning 4-step", "SDXL-Lightning", "euler", 4, 1.0),
        ("sdxl_lightning_8step_lora", "SDXL-Lightning", "euler", 8, 1.0),
        ("Lightning, 2 steps", "SDXL-Lightning", "euler", 2, 1.0),
        ("Hyper-SDXL-1step-lora", "Hyper-SD", "ddim", 1, 1.0),
        ("Hyper-SDXL-8steps-CFG-lora", "Hyper-SD", "ddim", 8, None),
        ("SDXL Turbo LoRA", "SDXL Turbo", "euler_a", 4, 1.0),
        ("TCD-SDXL-LoRA", "TCD", "tcd", 4, 1.0),
    ],
)
def test_few_step_title_gives_settings(
    title: str, kind: str, sampler: str, steps: int, guidance: float | None
) -> None:
    settings = find_few_step_settings({"modelspec.title": title})
    assert settings is not None
    wanted: dict[str, Any] = {
        "sampler": sampler,
        "schedule": "trailing",
        "num_inference_steps": steps,
    }
    if guidance is not None:
        wanted["guidance_scale"] = guidance
    assert settings == (kind, wanted)
    assert find_few_step_settings({"ss_output_name": title}) == settings


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"modelspec.title": "Lightning bolts"},
        {"modelspec.title": "Hyper realistic skin"},
        {"modelspec.title": "Turbo cars of the eighties"},
        {"modelspec.title": "Ink", "ss_output_name": "lcm"},  # the title is the name
        {"modelspec.description": "works with LCM"},
        {"ss_tag_frequency": '{"lcm": {"lcm": 3}}'},
        {"modelspec.title": "Falcmanian"},
    ],
)
def test_other_titles_give_no_settings(metadata: dict[str, str]) -> None:
    assert find_few_step_settings(metadata) is None


def adapter(title: str, scale: float = 1.0) -> Adapter:
    return Adapter(LoraWeights("fast", "ab" * 32, "cd" * 32, {}, {"modelspec.title": title}), scale)


def test_request_settings_override_few_step_settings() -> None:
    fast = (adapter("LCM"),)
    request, notice = apply_few_step_settings(Request(seed=1, num_inference_steps=6), fast)
    assert (request.sampler, request.num_inference_steps, request.guidance_scale) == ("lcm", 6, 1.0)
    assert notice is not None
    assert "sampler lcm, schedule trailing, guidance_scale 1.0" in notice
    asked = Request(
        seed=1, num_inference_steps=6, guidance_scale=5.0, sampler="DPM++ 2M Karras"
    )  # whose name also gives the schedule
    assert apply_few_step_settings(asked, fast) == (asked, None)


def test_inactive_lora_changes_no_settings() -> None:
    asked = Request(seed=1)
    for adapters in ((), (adapter("Ink"),), (adapter("LCM", 0.0),), (adapter("LCM", -1.0),)):
        assert apply_few_step_settings(asked, adapters) == (asked, None)


def test_few_step_samplers_and_schedule_exist() -> None:
    for title in ("LCM", "TCD", "SDXL Lightning", "Hyper-SD", "SDXL Turbo"):
        settings = find_few_step_settings({"modelspec.title": title})
        assert settings is not None
        assert Request(**settings[1]).schedule == "trailing"
