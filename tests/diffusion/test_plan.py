"""From request to plan: sizes, noise levels, conditioning, notices."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image

from overpaint.diffusion.plan import Stage
from overpaint.diffusion.planner import get_canvas, plan
from overpaint.diffusion.stages import carry_latent
from overpaint.errors import ModelError, RequestError
from overpaint.imaging import codec
from overpaint.models.family import FAMILIES
from overpaint.models.model import Model
from overpaint.request import Request
from overpaint.request.foreign_syntax import describe_foreign_syntax
from overpaint.request.parts import Control
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model()


def picture(width: int = 128, height: int = 128) -> Any:
    return codec.read_picture(Image.linear_gradient("L").resize((width, height)).convert("RGB"))


def test_text_to_image_starts_from_pure_noise(model: Model) -> None:
    (own,) = plan(Request(seed=5), model).plans
    expected = torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(5))
    start = own.start(own.noise())
    torch.testing.assert_close(start, expected * (own.sigmas[0] ** 2 + 1) ** 0.5)
    assert own.init is None


def test_image_to_image_starts_from_the_noised_posterior(model: Model) -> None:
    (own,) = plan(Request(image=picture(), strength=0.5, seed=5), model).plans
    assert own.init is not None
    generator = torch.Generator().manual_seed(5)
    sample, noise = (torch.randn((1, 4, 16, 16), generator=generator) for _ in range(2))
    expected = own.init.mean + own.init.std * sample + own.sigmas[0] * noise
    torch.testing.assert_close(own.start(own.noise()), expected)


def test_strength_1_ignores_the_picture(model: Model) -> None:
    (own,) = plan(Request(image=picture(), strength=1.0, seed=5), model).plans
    (free,) = plan(Request(seed=5), model).plans
    assert torch.equal(own.start(own.noise()), free.start(free.noise()))
    assert own.sigmas == free.sigmas


def test_strength_0_plans_nothing(model: Model) -> None:
    planned = plan(Request(image=picture(), strength=0.0), model)
    assert planned.plans == ()
    assert planned.canvas.source_picture is not None


@pytest.mark.parametrize(
    ("mode", "strength", "steps", "expected"),
    [("exact", 0.3, 20, 20), ("truncate", 0.3, 20, 6), ("truncate", 0.29, 100, 28)],
)
def test_plan_runs_the_requested_number_of_steps(
    model: Model, mode: Any, strength: float, steps: int, expected: int
) -> None:
    request = Request(image=picture(), strength=strength, num_inference_steps=steps, steps=mode)
    assert plan(request, model).plans[0].steps == expected


def test_more_strength_starts_from_more_noise(model: Model) -> None:
    starts = [
        plan(Request(image=picture(), strength=s / 10), model).plans[0].sigmas[0]
        for s in range(1, 11)
    ]
    assert starts == sorted(set(starts))


def test_pictures_of_a_request_differ_only_in_seed(model: Model) -> None:
    plans = plan(Request(seed=9, num_images=3), model).plans
    assert [own.seed for own in plans] == [9, 10, 11]
    assert len({id(own.positive) for own in plans}) == 1


def test_plan_without_guidance_has_one_row(model: Model) -> None:
    assert plan(Request(guidance_scale=1.0), model).plans[0].negative is None
    assert plan(Request(guidance_interval=(0.5, 0.5)), model).plans[0].negative is None
    assert plan(Request(guidance_scale=2.0), model).plans[0].negative is not None


def test_size_ids_are_height_first_and_exact_in_fp32(model: Model) -> None:
    request = Request(
        width=144,
        height=128,
        original_size=(1365, 301),
        crops_coords_top_left=(3, 5),
        negative_crops_coords_top_left=(7, 9),
    )
    (own,) = plan(request, model).plans
    assert own.negative is not None
    assert own.positive.size_ids.dtype == torch.float32
    assert own.positive.size_ids.tolist() == [[1365, 301, 3, 5, 128, 144]]
    assert own.negative.size_ids.tolist() == [[1365, 301, 7, 9, 128, 144]]
    assert own.shape == (4, 16, 18)


def test_size_outside_the_trained_range_gives_a_notice(model: Model) -> None:
    assert not plan(Request(), model).notices
    (notice,) = plan(Request(width=64, height=64), model).notices
    assert "64x64" in notice
    with pytest.raises(RequestError, match="width: 24"):
        plan(Request(width=24, height=128), model)


def test_negative_prompt_without_guidance_gives_a_notice(model: Model) -> None:
    (notice,) = plan(Request(negative_prompt="a cat", guidance_scale=1.0), model).notices
    assert "negative_prompt" in notice


@pytest.mark.parametrize("family", ["sdxl-refiner", "miniature-refiner"])
def test_family_that_cannot_paint_by_itself_is_rejected(family: str) -> None:
    model = tiny_model()
    model.family = FAMILIES[family]
    with pytest.raises(ModelError, match="cannot paint by itself"):
        plan(Request(), model)


def test_prompt_syntax_of_other_programs_has_one_notice(model: Model) -> None:
    request = Request(prompt="a [cat:dog:0.5]", negative_prompt="a __thing__, [cat:dog:0.5]")
    (notice,) = plan(request, model).notices
    assert notice == describe_foreign_syntax(request.prompts.values())
    assert notice.count("[cat:dog:0.5]") == 1


def test_notices_of_loading_are_repeated_in_the_plan() -> None:
    model = tiny_model()
    model.notices = ("the file also holds a license key",)
    assert plan(Request(), model).notices == model.notices


def test_picture_used_twice_is_encoded_once(model: Model) -> None:
    request = Request(image=picture(), strength=0.5, seed=1)
    first = plan(request, model).plans[0].init
    assert plan(request.model_copy(update={"seed": 2}), model).plans[0].init is first


def test_size_follows_from_the_control_image_of_each_request(model: Model) -> None:
    sizes = [(192, 112), (112, 192)]
    assert get_canvas(Request(), model).size == (128, 128)
    found = [
        get_canvas(Request(controls=(Control(kind="canny", hint=picture(*size)),)), model).size
        for size in sizes
    ]
    assert [width > height for width, height in found] == [True, False]


def test_steps_of_many_stages_are_counted(model: Model) -> None:
    (own,) = plan(Request(num_inference_steps=3), model).plans
    chain = own
    for _ in range(2000):
        chain = replace(own, then=Stage(chain, carry_latent))
    assert chain.steps == 2001 * 3
