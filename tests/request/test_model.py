import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from overpaint.errors import RequestError, quote_value
from overpaint.picture import Picture
from overpaint.picture_sources import PictureSource
from overpaint.registry import SAMPLERS, SCHEDULES
from overpaint.request import Request
from overpaint.request.fields import DEFAULT_STRENGTH, MAX_EMBEDDINGS, MAX_PROMPT_CHUNKS, MAX_SEED
from overpaint.request.options import RequestOptions
from overpaint.request.parts import Control, Lora

PARAMETERS = {"prompt", "image"}
"""Fields that `Painter.edit` takes as parameters, not as options."""

IMAGE = Picture(data=b"\x89PNG, or so it says\xff\x00")


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("strength", 1.1, "1.1 is out of range. It must be 0 to 1"),
        ("strength", -0.1, "It must be 0 to 1"),
        ("strength", float("nan"), "nan is not finite. It must be 0 to 1"),
        ("strength", float("inf"), "inf is not finite. It must be 0 to 1"),
        ("strength", "0.5", "'0.5'"),
        ("strength", True, "True"),
        ("num_inference_steps", 0, "0 is out of range. It must be 1 to 1000"),
        ("num_inference_steps", 10**9, "1000000000 is out of range. It must be 1 to 1000"),
        ("num_inference_steps", 1.5, "1.5"),
        ("prompt", "a\0cat", "contains a NUL character. Remove it."),
        ("guidance_scale", 1e308, "It must be 0 to 50"),
        ("guidance_scale", 0.5, "guide away from the prompt"),
        ("guidance_scale", float("nan"), "not finite"),
        ("guidance_rescale", 2.0, "It must be 0 to 1"),
        ("guidance_interval", (0.9, 0.1), "ends before it starts"),
        ("width", 1023, "1023 is not a multiple of 8. The nearest are 1016 and 1024"),
        ("height", 100_000, "It must be 8 to 8192"),
        ("width", 0, "It must be 8 to 8192"),
        ("size", "big", "'native' or 'keep'"),
        ("fit", "crop", "'cover', 'contain' or 'stretch'"),
        ("sampler", "dpmp_2m", "Did you mean dpmpp_2m"),
        ("sampler", "__class__", "There is no sampler"),
        ("sampler", 3, "3"),
        ("schedule", "karas", "Did you mean karras"),
        ("seed", -1, f"It must be 0 to {MAX_SEED}"),
        ("seed", 2**64, f"It must be 0 to {MAX_SEED}"),
        ("num_images", 10**6, "It must be 1 to 64"),
        ("clip_skip", 12, "It must be 0 to 11"),
        ("steps", "some", "'exact' or 'truncate'"),
        ("prompt", "x" * 100_001, "100000 characters"),
        ("prompt", "\ud800", "valid string"),
        ("prompt", None, "None"),
        ("image", "photo.png", "'photo.png'"),
        ("mask", "mask.png", "'mask.png'"),
        ("mask_grow", 600, "600 is out of range. It must be -512 to 512"),
        ("mask_blur", -1, "-1 is out of range. It must be 0 to 512"),
        ("task", "erase", "'retouch', 'replace', 'remove' or 'extend'"),
        ("fill", "white", "'original', 'surroundings', 'flat' or 'noise'"),
        ("crop", -1, "-1"),
        ("high_noise_frac", 1.2, "1.2 is out of range. It must be 0 to 1"),
        ("refine", "twice", "'ensemble' or 'sequential'"),
        ("refine_steps", 0, "0 is out of range. It must be 1 to 1000"),
        ("upscale", 9.0, "9.0 is out of range. It must be 1 to 4"),
        ("upscale_in", "dots", "'pixels' or 'latents'"),
        ("aesthetic_score", 11.0, "11.0 is out of range. It must be 1 to 10"),
        ("stength", 0.5, "no such field. Did you mean strength"),
    ],
)
def test_request_with_an_invalid_value_names_field_value_and_limit(
    field: str, value: Any, words: str
):
    fields: dict[str, Any] = {"image": IMAGE, field: value}
    with pytest.raises(RequestError) as refused:
        Request.model_validate(fields)
    assert refused.value.field == field
    assert words in str(refused.value)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize("field", ["guidance_interval", "crops_coords_top_left"])
def test_request_with_an_invalid_tuple_item_names_its_index(field: str):
    with pytest.raises(RequestError, match=rf"^{field}\.1: -1 is out of range. It must be 0 to"):
        Request.model_validate({field: (0, -1)})


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"strength": 0.5}, "strength"),
        ({"fit": "cover"}, "fit"),
        ({"size": "keep"}, "size"),
        ({"image": IMAGE, "size": "keep", "width": 512}, "size"),
        ({"seed": MAX_SEED, "num_images": 2}, "seed"),
        ({"sampler": "DPM++ 2M Karras", "schedule": "beta"}, "schedule"),
        ({"mask": IMAGE}, "mask"),
        ({"mask_from": "box:0,0,8,8"}, "mask_from"),
        ({"extend": (8, 0, 0, 0)}, "extend"),
        ({"image": IMAGE, "mask": IMAGE, "mask_from": "box:0,0,8,8"}, "mask_from"),
        ({"image": IMAGE, "mask_invert": True}, "mask_invert"),
        ({"image": IMAGE, "mask_blur": 4}, "mask_blur"),
        ({"image": IMAGE, "crop": 8}, "crop"),
        ({"image": IMAGE, "fill": "flat"}, "fill"),
        ({"refine": "ensemble"}, "refine"),
        ({"refiner": "a", "refine": "ensemble", "upscale": 2.0}, "upscale"),
        ({"refiner": "a", "refine_strength": 0.5}, "refine_strength"),
        ({"refiner": "a", "refine": "sequential", "high_noise_frac": 0.5}, "high_noise_frac"),
        ({"high_noise_frac": 0.5}, "high_noise_frac"),
        ({"refine_steps": 5}, "refine_steps"),
        ({"upscale_in": "latents"}, "upscale_in"),
        ({"upscale": 2.0, "aesthetic_score": 7.0}, "aesthetic_score"),
    ],
)
def test_request_with_contradicting_fields_names_the_field(fields: dict[str, Any], field: str):
    with pytest.raises(RequestError) as refused:
        Request.model_validate(fields)
    assert refused.value.field == field


def test_lora_factor_of_no_part_of_a_unet_is_refused():
    assert Lora(name="ink", blocks={"up_blocks.0.attentions": 2.0}).blocks
    for name in ("texts", "x", "up_block.0", "attentions"):
        with pytest.raises(RequestError, match=f"'{name}' is not a part of a UNet"):
            Lora(name="ink", blocks={name: 2.0})


def test_schedule_equal_to_the_one_in_the_sampler_name_is_accepted():
    assert Request(sampler="DPM++ 2M Karras", schedule="Karras").schedule == "karras"


def test_request_with_two_problems_describes_both():
    with pytest.raises(RequestError, match=r"num_inference_steps.*guidance_scale"):
        Request(num_inference_steps=0, guidance_scale=99.0)


def test_request_with_1000_problems_describes_ten_and_counts_the_others():
    with pytest.raises(RequestError, match=r"There are 990 more problems\.$") as refused:
        Request.model_validate({f"field_{number}": 1 for number in range(1000)})
    assert refused.value.message.count("no such field") == 10


@pytest.mark.parametrize(
    "value",
    ["a" * 10**7, {"a": "b" * 10**7}, [[[["a" * 1000] * 1000] * 1000] * 100] * 100, b"a" * 10**7],
)
def test_quote_value_of_a_large_value_returns_at_most_60_characters(value: Any):
    assert len(quote_value(value)) <= 60


def test_quote_value_of_a_deeply_nested_list_returns_at_most_60_characters():
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert len(quote_value(deep)) <= 60


@pytest.mark.parametrize("value", ["it's", 1.5, None, [1, 2, 3], {"a": (1, "b")}, b"x", True])
def test_quote_value_of_a_short_value_returns_its_repr(value: Any):
    assert quote_value(value) == repr(value)


def test_request_without_fields_is_valid():
    assert Request().prompt == ""


def test_request_with_an_image_gets_default_strength_and_fit():
    request = Request(image=IMAGE)
    assert (request.strength, request.fit) == (DEFAULT_STRENGTH, "cover")
    assert Request().strength is None


@pytest.mark.parametrize("part", [{"mask": IMAGE}, {"mask_from": "box:0,0,8,8"}])
def test_request_with_a_mask_gets_the_defaults_of_its_task(part: dict[str, Any]):
    request = Request(image=IMAGE, **part)
    assert (request.task, request.strength, request.fill) == ("replace", 1.0, "surroundings")
    assert request.size == "keep"
    removed = Request(image=IMAGE, **part, task="remove", fill="noise", width=64)
    assert (removed.strength, removed.fill, removed.size) == (0.8, "noise", "native")
    extended = Request(image=IMAGE, extend=(8, 0, 0, 0))
    assert (extended.task, extended.fill) == ("extend", "surroundings")


def test_request_with_a_second_stage_gets_its_default_kind():
    assert Request().refine is None
    assert Request(refiner="a").refine == "ensemble"
    assert Request(upscale=2.0).refine == "sequential"
    assert Request(refiner="a", upscale=2.0).refine == "sequential"


@pytest.mark.parametrize(
    ("fields", "strength", "steps"),
    [
        ({}, 1.0, 30),
        ({"steps": "truncate"}, 1.0, 30),
        ({"image": IMAGE}, DEFAULT_STRENGTH, 30),
        ({"image": IMAGE, "strength": 0.0}, 0.0, 0),
        ({"image": IMAGE, "strength": 0.25, "steps": "truncate"}, 0.25, 7),
        ({"image": IMAGE, "mask_from": "box:0,0,8,8", "steps": "truncate"}, 1.0, 30),
    ],
)
def test_steps_to_run_depend_on_strength_and_mode(
    fields: dict[str, Any], strength: float, steps: int
):
    request = Request.model_validate(fields)
    assert (request.effective_strength, request.steps_to_run) == (strength, steps)


@pytest.mark.parametrize(
    ("fields", "steps"),
    [
        ({}, 0),
        ({"refiner": "a"}, 0),
        ({"upscale": 2.0}, 30),
        ({"upscale": 2.0, "refine_steps": 5}, 5),
        ({"upscale": 2.0, "refine_strength": 0.29, "steps": "truncate"}, 8),
    ],
)
def test_refine_steps_to_run_count_the_sequential_stage_alone(fields: dict[str, Any], steps: int):
    assert Request.model_validate(fields).refine_steps_to_run == steps


def test_request_with_another_program_s_sampler_name_stores_the_canonical_name():
    request = Request(sampler="DPM++ 3M SDE Exponential")
    assert (request.sampler, request.schedule) == ("dpmpp_3m_sde", "exponential")
    assert Request(sampler="K_EULER").schedule == Request().schedule


def test_requests_without_a_seed_get_different_seeds():
    assert len({Request().seed for _ in range(20)}) == 20


def test_request_assignment_to_a_field_raises():
    with pytest.raises(ValidationError, match="frozen"):
        Request().seed = 3  # pyright: ignore[reportAttributeAccessIssue]  (that is the test)


@pytest.mark.parametrize(
    ("fields", "guided"),
    [
        ({}, True),
        ({"guidance_scale": 1.0}, False),
        ({"guidance_scale": 0.0}, False),
        ({"guidance_interval": (0.3, 0.3)}, False),
    ],
)
def test_guided_depends_on_scale_and_interval(fields: dict[str, Any], guided: bool):
    assert Request.model_validate(fields).guided is guided


pairs = st.tuples(st.integers(0, 16384), st.integers(0, 16384))
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
requests = st.fixed_dictionaries(
    {"prompt": texts, "seed": st.integers(0, 2**63 - 65)},
    optional={
        "prompt_2": st.none() | texts,
        "negative_prompt": texts,
        "image": st.builds(Picture, data=st.binary(min_size=1)),
        "width": st.none() | st.integers(1, 1024).map(lambda side: side * 8),
        "num_inference_steps": st.integers(1, 1000),
        "steps": st.sampled_from(["exact", "truncate"]),
        "guidance_scale": st.floats(1, 50),
        "guidance_interval": st.tuples(st.floats(0, 0.5), st.floats(0.5, 1)),
        "sampler": st.sampled_from(list(SAMPLERS)),
        "schedule": st.sampled_from(list(SCHEDULES)),
        "num_images": st.integers(1, 64),
        "original_size": st.none() | pairs,
        "crops_coords_top_left": pairs,
    },
).map(Request.model_validate)


@given(requests)
def test_request_read_from_its_json_is_equal(request: Request):
    assert Request.model_validate_json(request.model_dump_json()) == request
    assert Request.model_validate(json.loads(request.model_dump_json())) == request


def test_request_with_an_old_field_name_stores_the_new_name():
    fields: dict[str, Any] = {"image": {"data": "AA=="}, "mask_from": "box:0,0,8,8", "seed": 1}
    old = Request.model_validate_json(json.dumps(fields | {"match_colours": False}))
    assert old == Request.model_validate_json(json.dumps(fields | {"match_colors": False}))
    assert not old.match_colors
    assert "match_colours" not in old.model_dump_json()
    assert "match_colours" not in json.dumps(Request.model_json_schema())


def test_request_with_both_names_of_a_field_is_rejected():
    with pytest.raises(RequestError, match=r"^match_colours: It is an alias of match_colors"):
        Request.model_validate({"match_colours": True, "match_colors": True})


def test_request_options_have_the_names_types_and_requiredness_of_the_fields():
    fields = {name: field for name, field in Request.model_fields.items() if name not in PARAMETERS}
    hints = get_type_hints(Request) | {
        "mask": PictureSource | None,
        "loras": Sequence[Lora | str],
        "controls": Sequence[Control],
    }
    assert get_type_hints(RequestOptions) == {name: hints[name] for name in fields}
    required = {name for name, field in fields.items() if field.is_required()}
    assert required == RequestOptions.__required_keys__


def test_pictures_compare_by_content_and_hide_it_in_repr():
    assert Picture(data=b"a") == Picture(data=b"a") != Picture(data=b"b")
    assert Picture(data=b"a").sha256.startswith("ca978112")
    assert len(repr(Picture(data=b"a" * 1000))) < 50


def test_import_of_requests_and_metadata_does_not_import_torch():
    code = (
        "import sys, overpaint.events, overpaint.provenance.metadata, overpaint.request; "
        "sys.exit(bool({'torch', 'diffusers', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# LoRAs in the prompt


@pytest.mark.parametrize(
    ("prompt", "plain", "loras"),
    [
        ("a fox <lora:ink:0.8>", "a fox", [("ink", 0.8, None)]),
        (
            "<lora:ink> a  fox, <lora:pen:0.5:-1>red",
            "a fox, red",
            [("ink", 1, None), ("pen", -1, 0.5)],
        ),
        ("a fox <lyco:ink:0.8>", "a fox", [("ink", 0.8, None)]),
        ("a fox <lora:ink:te=0.5:unet=0.8>", "a fox", [("ink", 0.8, 0.5)]),
        ("a fox <lora:ink:1:te=0.5:unet=0.8>", "a fox", [("ink", 0.8, 0.5)]),
        ("a fox <lora:ink:te=0.5>", "a fox", [("ink", 0.5, None)]),
        ("a fox <lora:ink:unet=0.5>", "a fox", [("ink", 0.5, 1.0)]),
        ("<lora:ink:0.8> x <lora:ink:0.2>", "x", [("ink", 0.8, None), ("ink", 0.2, None)]),
        ("a <lora:my ink (v2) [墨]:0.5>", "a", [("my ink (v2) [墨]", 0.5, None)]),
        ("a fox <lorry>", "a fox <lorry>", []),
        ("a  fox", "a  fox", []),
    ],
)
def test_prompt_with_lora_tags_moves_them_to_loras(
    prompt: str, plain: str, loras: list[tuple[str, float, float | None]]
):
    request = Request(prompt=prompt)
    assert request.prompt == plain
    assert [(lora.name, lora.scale, lora.text_scale) for lora in request.loras] == loras
    assert Request.model_validate_json(request.model_dump_json()) == request


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a <lora:ink:much>", "is not a LoRA tag"),
        ("a <lora:ink:1:1:1>", "more than two scales"),
        ("a <lora::1>", "loras.0.name"),
        ("a <lora:ink:11>", "loras.0.scale: 11.0 is out of range. It must be -10 to 10"),
        ("a <lora:ink:0.5", "begins a tag and does not end it"),
        ("a <lora:ink:0.5 <lyco:pen>", "begins a tag and does not end it"),
        ("a <hypernet:h:1>", "Overpaint has no hypernetworks"),
        ("a <lora:ink:dyn=4>", "dyn= is not supported; Overpaint uses all ranks"),
        ("a <lora:ink:1:stop=8>", "stop= is not supported; a LoRA acts at every step"),
        ("a <lora:ink:1:lbwe=x>", "lbwe= is not supported"),
        ("a <lora:ink:1:weight=2>", "weight= is not supported; the options of a tag are te, unet"),
        ("a <lora:ink:te=much>", "'much' is not a number"),
        ("a <lora:ink:1:lbw=1,2,3>", "lbw= takes 12, 17, 20, 26 numbers, or the name of a preset"),
        ("a <lora:ink:1:lbw=1,1,1,1,1,1,1,1,1,1,1,R>", "'R' is not a number"),
        ("a <lora:ink:1:lbw=OUTA>", "Did you mean OUTALL"),
    ],
)
def test_prompt_with_an_invalid_lora_tag_is_rejected(prompt: str, message: str):
    with pytest.raises(RequestError, match=message):
        Request(prompt=prompt)


def test_embeddings_of_several_prompts_map_to_the_first_field() -> None:
    request = Request(
        prompt="<embedding:b> x <embedding:a>",
        negative_prompt="<embedding:a>",
        negative_prompt_2="<embedding:c>, <embedding:>",
    )
    found = request.embeddings
    assert found == {"b": "prompt", "a": "prompt", "c": "negative_prompt_2"}
    assert list(found) == ["b", "a", "c"]


@pytest.mark.parametrize("field", ["prompt", "prompt_2", "negative_prompt", "negative_prompt_2"])
def test_prompt_with_more_breaks_than_chunks_is_rejected(field: str):
    Request.model_validate({field: "BREAK " * MAX_PROMPT_CHUNKS})
    with pytest.raises(RequestError, match=f"{field}: It has 16,000 BREAKs and may have 64"):
        Request.model_validate({field: "BREAK " * 16_000})


def test_embeddings_of_all_prompts_are_limited_in_number() -> None:
    words = [f"<embedding:word{number}>" for number in range(MAX_EMBEDDINGS)]
    fields = {"prompt": " ".join(words), "negative_prompt": f"{words[0]} <embedding:one more>"}
    with pytest.raises(RequestError, match="negative_prompt: The prompts name 33 embeddings"):
        Request.model_validate(fields)
    Request.model_validate({**fields, "negative_prompt": words[0]})
