"""Tests of few-step files: they are known, give settings, and the request overrides these."""

from dataclasses import replace
from typing import Any

import pytest

from overpaint.models.adapters import Adapter
from overpaint.models.few_step import (
    KNOWN_FILES,
    apply_few_step_settings,
    find_few_step_settings,
)
from overpaint.models.lora import LoraWeights
from overpaint.models.model import PartFile
from overpaint.request import Request
from tests.tiny import tiny_lcm, tiny_model


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


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("lcm-lora-sdxl.safetensors", "LCM"),
        ("sdxl_lightning_4step_lora.safetensors", "SDXL-Lightning"),
        ("Hyper-SDXL-8steps-CFG-lora.safetensors", "Hyper-SD"),
        ("dmd2_sdxl_4step_lora_fp16.safetensors", "DMD2"),
        ("TCD-SDXL-LoRA", "TCD"),
        ("lightning-bolts.safetensors", None),
        ("pytorch_lora_weights.safetensors", None),
    ],
)
def test_few_step_lora_is_known_by_its_file_name(name: str, kind: str | None) -> None:
    settings = find_few_step_settings({}, ["fast", name])
    assert (settings and settings[0]) == kind


def test_few_step_lora_is_known_by_its_digest() -> None:
    lcm = "a764e6859b6e04047cd761c08ff0cee96413a8e004c9f07707530cd776b19141"
    settings = find_few_step_settings({}, ["pytorch_lora_weights"], lcm)
    assert settings is not None
    assert settings[0] == "LCM"


@pytest.mark.parametrize(
    ("name", "sampler", "steps", "guidance"),
    [
        ("models/sd_xl_turbo_1.0_fp16.safetensors", "euler_a", 4, 1.0),
        ("stabilityai/sdxl-turbo", "euler_a", 4, 1.0),
        ("sdxl_lightning_8step.safetensors", "euler", 8, 1.0),
        ("DreamShaperXL_Turbo_v2_1.safetensors", "dpmpp_sde", 6, 2.0),
        ("juggernautXL_v9Rdphoto2Lightning.safetensors", "dpmpp_sde", 6, 2.0),
        ("realvisxlV40_v40LightningBakedvae", "dpmpp_sde", 6, 2.0),
    ],
)
def test_few_step_checkpoint_sets_unset_request_fields(
    name: str, sampler: str, steps: int, guidance: float
) -> None:
    model = replace(tiny_model(), name=name)
    request, notice = apply_few_step_settings(Request(seed=1), (), model)
    assert (request.sampler, request.num_inference_steps) == (sampler, steps)
    assert request.guidance_scale == guidance
    assert notice is not None
    assert notice.startswith(f"{name} is for few steps")


@pytest.mark.parametrize("name", ["juggernautXL_v9.safetensors", "hyperrealism_xl", "sdxl", "tiny"])
def test_other_checkpoints_keep_the_request(name: str) -> None:
    asked = Request(seed=1)
    assert apply_few_step_settings(asked, (), replace(tiny_model(), name=name)) == (asked, None)


def test_few_step_checkpoint_is_known_by_its_title_its_digest_and_its_unet() -> None:
    titled = replace(tiny_model(), metadata={"modelspec.title": "SDXL Turbo"})
    [turbo] = (sha for sha, known in KNOWN_FILES.items() if known.title == "SDXL Turbo")
    parts = {"unet": PartFile("sdxl_lightning_2step_unet", "ab" * 32)}
    for model, steps in (
        (titled, 4),
        (replace(tiny_model(), sha256=turbo), 4),
        (replace(tiny_model(), parts=parts), 2),
    ):
        request, _ = apply_few_step_settings(Request(seed=1), (), model)
        assert request.num_inference_steps == steps


def test_few_step_lora_overrides_few_step_checkpoint() -> None:
    model = replace(tiny_model(), name="sdxl-turbo")
    request, _ = apply_few_step_settings(Request(seed=1), (adapter("TCD"),), model)
    assert request.sampler == "tcd"


def test_checkpoint_with_embedded_guidance_takes_lcm_settings() -> None:
    request, notice = apply_few_step_settings(Request(seed=1), (), tiny_lcm())
    assert (request.sampler, request.num_inference_steps, request.guidance_scale) == ("lcm", 4, 8.0)
    assert notice is not None
    assert "few steps (LCM)" in notice


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


def test_title_of_a_million_letters_is_searched_at_its_start() -> None:
    """A pattern that looks ahead from each word would take an hour."""
    title = "Lightning 4 step " + "lightning " * 100_000
    found = find_few_step_settings({"modelspec.title": title})
    assert found
    assert found[1]["num_inference_steps"] == 4
