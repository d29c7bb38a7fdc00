"""Errors that name the right option for words of other programs."""

from typing import Any

import pytest

from overpaint.cli.main import main
from overpaint.cli.settings import FLAG_OF_FIELD
from overpaint.errors import ModelNotFoundError, RequestError, did_you_mean
from overpaint.models.library import catalog
from overpaint.models.library.library import Library
from overpaint.models.named_models import load_library_model
from overpaint.request import Request
from overpaint.request.synonyms import SYNONYMS


def fail(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("option", "meant"),
    [
        ("--cfg", "--guidance"),
        ("--cfg-scale", "--guidance"),
        ("--denoise", "--strength"),
        ("--denoising_strength", "--strength"),
        ("--generator", "--seed"),
        ("--batch-size", "--num-images"),
        ("--num-inference-steps", "--steps"),
        ("--mask-image", "--mask"),
        ("--init-image", "PICTURE"),
        ("--ckpt", "--model"),
        ("--gpu", "--device"),
    ],
)
def test_unknown_option_of_another_program_suggests_ours(
    capsys: pytest.CaptureFixture[str], option: str, meant: str
) -> None:
    shown = fail(capsys, "edit", "fox.png", "a wolf", option, "3")
    assert f"No such option: {option} (Possible options: {meant})" in shown


def test_unknown_option_suggests_only_options_of_its_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert "--strength" not in fail(capsys, "create", "a wolf", "--denoise", "3")
    assert "(Possible options: --model)" in fail(capsys, "serve", "--checkpoint", "sdxl")


def test_synonyms_name_fields_and_are_no_fields() -> None:
    assert set(SYNONYMS.values()) <= set(Request.model_fields)
    assert not SYNONYMS.keys() & set(Request.model_fields)
    assert set(SYNONYMS.values()) - {"prompt", "image"} <= FLAG_OF_FIELD.keys()


@pytest.mark.parametrize(
    ("fields", "hint"),
    [
        ({"cfg": 7}, "cfg: There is no such field. Use guidance_scale."),
        ({"denoise": 0.5}, "Use strength."),
        ({"generator": object()}, "Use seed, an integer, in place of a generator."),
        ({"seed": -1}, "Leave it out for a random seed."),
        ({"steps": 20}, "The number of steps is num_inference_steps."),
        ({"seeed": 1}, "Did you mean seed"),
    ],
)
def test_field_of_another_program_suggests_ours(fields: dict[str, Any], hint: str) -> None:
    with pytest.raises(RequestError) as refused:
        Request(prompt="x", **fields)
    assert hint in str(refused.value)


def test_seed_of_minus_one_says_how_to_get_a_random_one(capsys: pytest.CaptureFixture[str]) -> None:
    shown = fail(capsys, "create", "a wolf", "--seed", "-1")
    assert shown.startswith("overpaint: --seed: -1 is out of range.")
    assert shown.endswith("Leave it out for a random seed.")


def test_suggestions_ignore_case() -> None:
    assert did_you_mean("juggernautxl", ["JuggernautXL_v9"]) == " Did you mean JuggernautXL_v9?"


def test_unknown_model_suggests_only_models(tmp_path: Any) -> None:
    with pytest.raises(ModelNotFoundError) as refused:
        load_library_model("juggernautXL", Library(tmp_path), device="cpu", dtype="auto")
    suggested = str(refused.value)
    assert "sdxl" in suggested
    assert not any(name in suggested for name in catalog.ESTIMATORS)


def test_unknown_estimator_and_controlnet_suggest_only_their_kind() -> None:
    with pytest.raises(ModelNotFoundError) as refused:
        catalog.resolve_estimator("sdxI")
    assert "upernet" in str(refused.value)
    assert "sdxl" not in str(refused.value)
    with pytest.raises(ModelNotFoundError, match="miniature-canny"):
        catalog.resolve_controlnet("minature-cany")


@pytest.mark.parametrize("arguments", [("upscale", "fox.png", "--factor", "4"), ("upscale",)])
def test_upscale_command_names_the_option(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    shown = fail(capsys, *arguments)
    assert "There is no `overpaint upscale` yet." in shown
    assert "--upscale 2" in shown
