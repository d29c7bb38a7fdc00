"""Settings in pictures of other programs."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from overpaint.diffusion.prompt_syntax import Segment, parse_prompt
from overpaint.errors import RequestError
from overpaint.provenance import metadata
from overpaint.provenance.importers import READERS, a1111, fooocus, invokeai, swarmui
from overpaint.provenance.importers.collector import ImportedSettings
from overpaint.provenance.importers.comfyui.prompt import translate_comfyui_prompt
from overpaint.provenance.importers.comfyui.reader import read_comfyui
from overpaint.provenance.importers.compel import translate_compel
from overpaint.provenance.importers.novelai import translate_novelai_prompt
from overpaint.provenance.picture_texts import PictureTexts
from overpaint.request import Request

PIXELS = Image.new("RGB", (128, 96), (200, 100, 50))
PROMPT = "a red house, (green tree:1.2)"
NEGATIVE = "blurry, (bad:1.3)"


def read(**texts: str) -> ImportedSettings:
    """Read texts with the keys of PNG chunks."""
    picture = PictureTexts(texts, PIXELS.size)
    found = next(filter(None, (reader(picture) for reader in READERS)), None)
    assert found is not None
    metadata.to_request(found, strength=None)  # every field is valid together with the others
    return found


# A1111's text and the programs that add to it

LINE = (
    "Steps: 22, Sampler: Euler a, Schedule type: Karras, CFG scale: 6.5, Seed: 77, Size: 128x128, "
    "Model hash: 0011223344, Model: somexl, Version: v1.10.1"
)


def a1111_text(line: str, prompt: str = PROMPT) -> str:
    return f"{prompt}\nNegative prompt: {NEGATIVE}\n{line}"


def test_lines_of_dynamic_prompts_are_no_part_of_the_prompt():
    template = "Template: a {red|blue} house,\n__trees__\nNegative Template: {bad|worse}"
    found = read(parameters=f"{a1111_text(LINE)}\n{template}")
    assert (found.fields["prompt"], found.fields["negative_prompt"]) == (PROMPT, NEGATIVE)
    assert found.fields["seed"] == 77
    (note,) = found.notes
    assert "Template: a {red|blue} house" in note
    assert "__trees__" in note


CIVITAI = (
    "Steps: 28, CFG scale: 5.5, Sampler: Euler a, Seed: 77, workflow: txt2img, Size: 832x1216, "
    "draft: false, Clip skip: 2, Created Date: 2024-11-02T10:11:12.1234567Z, Civitai resources: "
    '[{"type":"checkpoint","modelVersionId":1,"modelName":"Some, XL","modelVersionName":"v1.0"},'
    '{"type":"lora","weight":0.8,"modelVersionId":2,"modelName":"Detailer: fine, sharp",'
    '"modelVersionName":"v1"},{"type":"embed","modelVersionId":3}], '
    'Civitai metadata: {"remixOfId":12345,"list":[1,2]}, Hires: no'
)


def test_civitais_json_in_the_line_is_read():
    found = read(parameters=a1111_text(CIVITAI))
    assert (found.program, found.model) == ("Civitai", "Some, XL")
    assert found.fields == {
        "prompt": PROMPT,
        "negative_prompt": NEGATIVE,
        "num_inference_steps": 28,
        "guidance_scale": 5.5,
        "seed": 77,
        "sampler": "euler_a",
        "schedule": "linspace",
        "width": 832,
        "height": 1216,
        "clip_skip": 0,
    }
    assert found.notes == (
        "settings not carried over: Hires no.",
        "resources not carried over: lora Detailer: fine, sharp at 0.8, embed 3.",
    )


@pytest.mark.parametrize(
    "damaged",
    ['[{"type":"checkpoint"', "[" * 50_000, '{"a": [1, 2', '"not closed', "[1 2], x: [", "[[], {}"],
)
def test_damaged_json_in_the_line_loses_no_other_setting(damaged: str):
    found = read(parameters=a1111_text(f"{LINE}, Civitai resources: {damaged}"))
    assert (found.fields["prompt"], found.fields["seed"]) == (PROMPT, 77)


def test_settings_without_their_line_ends_are_read():
    found = read(parameters=a1111_text(LINE).replace("\n", " "))
    assert (found.fields["prompt"], found.fields["negative_prompt"]) == (PROMPT, NEGATIVE)
    assert found.fields["seed"] == 77
    bare = read(parameters=f"{PROMPT} Negative prompt: {LINE}")
    assert (bare.fields["prompt"], bare.fields["negative_prompt"]) == (PROMPT, "")


def test_prompts_without_settings_are_read():
    found = read(parameters=f"{PROMPT}\nNegative prompt: {NEGATIVE}")
    assert found.fields == {"prompt": PROMPT, "negative_prompt": NEGATIVE}


def test_odd_spellings_of_sizes_and_whole_numbers_are_read():
    settings = "Steps: 20.0, Sampler: Euler, Seed: 3.0, Size: 512 × 768, Clip skip: 2.0"
    found = read(parameters=f"a cup\r\nNegative prompt: a dog\r\n{settings}")
    assert found.notes == ()
    wanted = {"num_inference_steps": 20, "seed": 3, "width": 512, "height": 768, "clip_skip": 0}
    assert wanted.items() <= found.fields.items()
    assert (found.fields["prompt"], found.fields["negative_prompt"]) == ("a cup", "a dog")
    found = read(parameters=a1111_text("Steps: 20, Sampler: Euler, Seed: 3, Size: large"))
    assert "Size large" in " ".join(found.notes)


def test_first_hires_fix_is_no_image_to_image():
    settings = "Steps: 20, Sampler: Euler, Seed: 3, Denoising strength: 0.5"
    found = read(parameters=a1111_text(f"{settings}, First pass size: 512x512"))
    assert "strength" not in found.fields


@pytest.mark.parametrize(
    ("line", "program", "steps"),
    [
        ("App: SD.Next, Version: 61d2b14, Operations: img2img", "SD.Next", "exact"),
        ("Backend: Diffusers, App: SD.Next, Version: 61d2b14, Parser: native", "SD.Next", "exact"),
        ("Version: v1.10.1", "A1111", "truncate"),
        ("Version: f2.0.1v1.10.1-previous-313", "A1111", "truncate"),
        ("Version: ComfyUI", "ComfyUI", "exact"),
    ],
)
def test_strength_runs_the_steps_of_the_program(line: str, program: str, steps: str):
    settings = f"Steps: 20, Sampler: Euler, Denoising strength: 0.4, Seed: 1, {line}"
    found = read(parameters=a1111_text(settings))
    assert found.program == program
    assert found.fields["strength"] == 0.4
    assert found.fields.get("steps", "exact") == steps
    assert found.notes == ()


def test_sd_nexts_schedule_rescale_and_parser_are_read():
    found = read(
        parameters=a1111_text(
            "Steps: 20, Sampler: DPM++ 2M, Sampler sigma: karras, CFG rescale: 0.7, Seed: 1, "
            "App: SD.Next, Parser: Compel parser, CFG end: 0.8",
            prompt="a red++ house",
        )
    )
    assert found.fields["schedule"] == "karras"
    assert found.fields["guidance_rescale"] == 0.7
    assert found.fields["prompt"] == "a (red:1.21) house"
    assert found.notes == ("settings not carried over: CFG end 0.8.",)


def test_part_of_the_settings_without_a_name_is_noted():
    found = read(parameters=a1111_text("Steps: 20, CFG scale: 7,5, Seed: 1, Size: 64x64"))
    assert found.fields["guidance_scale"] == 7
    assert found.notes == ("parts without a name not carried over: 5.",)


FOOOCUS_LINE = (
    "Steps: 30, Sampler: DPM++ 2M SDE Karras, Seed: 77, Size: 128x128, CFG scale: 4.0, "
    'Sharpness: 2.0, ADM Guidance: "(1.5, 0.8, 0.3)", Model: somexl, Model hash: 0011223344, '
    'Performance: Speed, Scheduler: karras, VAE: Default (model), Raw prompt: "a, b", '
    'Lora hashes: "ink: aabbccddee, sub/pen: 1", Lora weights: "ink: 0.8, sub/pen: -0.5", '
    "Version: Fooocus v2.5.5"
)


def test_fooocus_in_a1111s_scheme_is_read(tmp_path: Path):
    exif = Image.Exif()
    exif[ExifTags.Base.Software] = "Fooocus v2.5.5"
    exif[ExifTags.Base.MakerNote] = "a1111"
    exif[ExifTags.Base.UserComment] = a1111_text(FOOOCUS_LINE)
    PIXELS.save(tmp_path / "a.jpg", exif=exif)
    found = metadata.read_settings(tmp_path / "a.jpg")
    assert (found.program, found.model) == ("Fooocus", "somexl")
    assert found.fields == {
        "prompt": PROMPT,
        "negative_prompt": NEGATIVE,
        "num_inference_steps": 30,
        "guidance_scale": 4.0,
        "seed": 77,
        "sampler": "dpmpp_2m_sde",
        "schedule": "karras",
        "width": 128,
        "height": 128,
        "loras": ({"name": "ink", "scale": 0.8}, {"name": "pen", "scale": -0.5}),
    }
    assert found.notes == (
        "settings not carried over: Sharpness 2.0, ADM Guidance (1.5, 0.8, 0.3).",
    )


@pytest.mark.parametrize(
    "hashes",
    [
        'TI hashes: "badhand: 1a2b, ink_style: 3c"',
        'Hashes: {"model": "00", "embed:badhand": "1a2b", "embed:ink_style": "3c"}',
        'Embeddings: "badhand, ink_style"',
    ],
)
def test_embeddings_that_a1111_lists_are_marked_in_the_prompts(hashes: str):
    text = a1111_text(f"{LINE}, {hashes}", prompt="a house by ink_style, inks")
    found = read(parameters=text.replace("blurry", "BadHand"))
    assert found.fields["prompt"] == "a house by <embedding:ink_style>, inks"
    assert found.fields["negative_prompt"] == "<embedding:badhand>, (bad:1.3)"
    assert found.notes == ()


# Fooocus

FOOOCUS: dict[str, Any] = {
    "adm_guidance": "(1.5, 0.8, 0.3)",
    "base_model": "somexl",
    "base_model_hash": "0011223344",
    "full_negative_prompt": [NEGATIVE, "ugly, [deformed]"],
    "full_prompt": ["cinematic still of a red house", PROMPT, PROMPT, "embedding:sub/ink.pt"],
    "guidance_scale": 4.0,
    "lora_combined_1": "ink : 0.8",
    "lora_combined_2": "False : pen : 0.5",
    "loras": [["ink", 0.8, "aabbccddee"]],
    "metadata_scheme": "fooocus",
    "negative_prompt": NEGATIVE,
    "performance": "Speed",
    "prompt": PROMPT,
    "refiner_model": "None",
    "resolution": "(128, 64)",
    "sampler": "dpmpp_2m_sde_gpu",
    "scheduler": "karras",
    "seed": "77",
    "sharpness": 2.0,
    "steps": 30,
    "styles": "['Fooocus V2', 'Fooocus Cinematic']",
    "vae": "Default (model)",
    "version": "Fooocus v2.5.5",
}


def test_fooocus_in_its_own_scheme_is_read():
    found = read(parameters=json.dumps(FOOOCUS), fooocus_scheme="fooocus")
    assert (found.program, found.model) == ("Fooocus", "somexl")
    assert found.fields == {
        "prompt": f"cinematic still of a red house, {PROMPT}, <embedding:ink>",
        "negative_prompt": rf"{NEGATIVE}, ugly, \[deformed\]",
        "num_inference_steps": 30,
        "guidance_scale": 4.0,
        "seed": 77,
        "width": 128,
        "height": 64,
        "sampler": "dpmpp_2m_sde",
        "schedule": "karras",
        "loras": ({"name": "ink", "scale": 0.8},),
    }
    assert found.notes == (
        "settings not carried over: adm_guidance (1.5, 0.8, 0.3), sharpness 2.0.",
    )


def test_fooocus_without_its_full_prompts_lists_the_styles():
    labels = {
        "Prompt": PROMPT,
        "Negative Prompt": NEGATIVE,
        "Styles": "['Fooocus V2']",
        "Base Model": "somexl.safetensors",
        "LoRA 1": "sub/ink.safetensors : 0.8",
        "Seed": 77,
    }
    found = read(parameters=json.dumps(labels))
    assert found.fields == {
        "prompt": PROMPT,
        "negative_prompt": NEGATIVE,
        "seed": 77,
        "loras": ({"name": "ink", "scale": 0.8},),
    }
    assert found.notes == ("settings not carried over: styles ['Fooocus V2'].",)


# SwarmUI

SWARMUI: dict[str, Any] = {
    "sui_image_params": {
        "prompt": f"{PROMPT} <embed:sub/toy.pt> <lora:sub/clay:0.3> <break> <random:a,b>",
        "negativeprompt": NEGATIVE,
        "model": "folder/somexl",
        "seed": 77,
        "steps": "22",
        "cfgscale": 6.5,
        "aspectratio": "1:1",
        "width": 128,
        "height": 128,
        "sampler": "euler_ancestral",
        "scheduler": "karras",
        "initimagecreativity": "0.4",
        "clipstopatlayer": "-3",
        "loras": ["sub/ink", "clay"],
        "loraweights": ["0.8", "0.3"],
        "loratencweights": ["0.5"],
        "freeuversion": "1",
        "swarm_version": "0.9.6.0",
    },
    "sui_extra_data": {"date": "2025-01-01"},
}


def test_swarmui_is_read():
    found = read(parameters=json.dumps(SWARMUI))
    assert (found.program, found.model) == ("SwarmUI", "folder/somexl")
    assert found.fields == {
        "prompt": f"{PROMPT} <embedding:toy> <lora:clay:0.3> BREAK <random:a,b>",
        "negative_prompt": NEGATIVE,
        "seed": 77,
        "num_inference_steps": 22,
        "guidance_scale": 6.5,
        "width": 128,
        "height": 128,
        "sampler": "euler_a",
        "schedule": "karras",
        "strength": 0.4,
        "clip_skip": 1,
        "loras": ({"name": "ink", "scale": 0.8, "text_scale": 0.5},),
    }
    assert found.notes[0] == "settings not carried over: freeuversion 1."
    assert "'<random:a,b>' (tags of SwarmUI)" in found.notes[1]


def test_swarmuis_lists_as_texts_are_read():
    lists = {"loras": "ink,pen", "loraweights": "0.8, 0.2"}
    params = SWARMUI["sui_image_params"] | lists | {"loratencweights": None, "prompt": "a"}
    found = read(parameters=json.dumps({"sui_image_params": params}))
    assert found.fields["loras"] == ({"name": "ink", "scale": 0.8}, {"name": "pen", "scale": 0.2})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a [red] (big:1.2) (cup)", r"a \[red\] (big:1.2) (cup)"),
        (r"embedding:toy \(o\) \o/", r"<embedding:toy> \(o\) \\o/"),
        ("<fromto[0.5]:a, b> [", r"<fromto[0.5]:a, b> \["),
    ],
)
def test_swarmuis_prompt_is_translated_as_comfyuis(text: str, expected: str):
    params = SWARMUI["sui_image_params"] | {"prompt": text}
    found = read(parameters=json.dumps({"sui_image_params": params}))
    assert found.fields["prompt"] == expected


@pytest.mark.parametrize(
    ("translate", "text"),
    [
        (translate_novelai_prompt, "cup (blue) (x:1.5"),
        (translate_novelai_prompt, r"] o_o \o/ [y"),
        (translate_comfyui_prompt, r"[old] cup \o/ [y"),
    ],
)
def test_brackets_that_another_program_takes_as_text_have_no_weight(
    translate: Callable[[str], str], text: str
):
    assert parse_prompt(translate(text)) == [[Segment(text)]]


# NovelAI

NOVELAI: dict[str, Any] = {
    "prompt": f"{{{{{PROMPT}}}}}",
    "steps": 28,
    "height": 64,
    "width": 128,
    "scale": 5.0,
    "uncond_scale": 0.0,
    "cfg_rescale": 0.2,
    "seed": 77,
    "n_samples": 1,
    "noise_schedule": "native",
    "sampler": "k_dpmpp_2s_ancestral",
    "sm": True,
    "uc": NEGATIVE,
    "request_type": "PromptGenerateRequest",
    "v4_prompt": {"caption": {"base_caption": "x", "char_captions": [{"char_caption": "a fox"}]}},
    "signed_hash": "xyz=",
}


def test_novelai_is_read():
    found = read(Software="NovelAI", Description="cut", Comment=json.dumps(NOVELAI), Source="SDXL")
    assert (found.program, found.model) == ("NovelAI", "SDXL")
    assert found.fields == {
        "prompt": r"((a red house, \(green tree:1.2\):1.05):1.05)",
        "negative_prompt": r"blurry, \(bad:1.3\)",
        "num_inference_steps": 28,
        "guidance_scale": 5.0,
        "guidance_rescale": 0.2,
        "seed": 77,
        "width": 128,
        "height": 64,
        "sampler": "dpmpp_2s_a",
        "schedule": "linspace",
    }
    assert found.notes == (
        "character prompts not carried over: a fox.",
        "settings not carried over: sm True.",
    )


def test_novelai_without_a_size_has_that_of_the_picture():
    comment = {"steps": 28, "scale": 5, "seed": 77, "uc": NEGATIVE}
    found = read(Software="NovelAI", Description=PROMPT, Comment=json.dumps(comment))
    assert found.fields["prompt"] == translate_novelai_prompt(PROMPT)
    assert (found.fields["width"], found.fields["height"]) == PIXELS.size


def test_novelai_with_damaged_settings_keeps_its_prompt():
    found = read(Software="NovelAI", Description=PROMPT, Comment='{"steps": 2')
    assert found.fields["prompt"] == translate_novelai_prompt(PROMPT)
    assert found.notes == ("the settings are damaged; only the prompt is read.",)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a {red} [big] {{house}}", "a (red:1.05) (big:0.9524) ((house:1.05):1.05)"),
        ("} ] { [", r"} \] { \["),
        ("a [red house", r"a \[red house"),
        ("cup (blue), {pan (big)}", r"cup \(blue\), (pan \(big\):1.05)"),
        (r"o_o \o/ (o:1.5", r"o_o \\o/ \(o:1.5"),
        ("1.5::a red, house:: on 0.5::hill", "(a red, house:1.5) on (hill:0.5)"),
        ("1.2::a 1.3::b::c", "(a :1.2)(b:1.3)c"),
        ("-1::hat::, a::b", "(hat:-1), a::b"),
        ("(green:1.2)", r"\(green:1.2\)"),
    ],
)
def test_novelais_emphasis_is_translated(text: str, expected: str):
    assert translate_novelai_prompt(text) == expected


# InvokeAI


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a red++ house, dark--", "a (red:1.21) house, (dark:0.81)"),
        ("(green tree)1.3, bad+", "(green tree:1.3), (bad:1.1)"),
        ("(a (big)1.2 dog)++", "(a (big:1.2) dog:1.21)"),
        ("(a dog)", "a dog"),
        ('"a dog"++ "cat"', '(a dog:1.21) "cat"'),
        ("(a:1.2) dog, [cat]", r"a:1.2 dog, \[cat\]"),
        (r"\(a\) (b)0.5", r"\(a\) (b:0.5)"),
        ("well-known house--with a - b -- c", "well-known house--with a - b -- c"),
        (") a (", r"\) a \("),
        ("by <ink style> and <ink>", "by <ink style> and <embedding:ink>"),
        ('("a red++ cat", "a \\"dog\\"").and()', 'a (red:1.21) cat BREAK a "dog"'),
        ('("a", "b").and(1, 0.5)', "a BREAK (b:0.5)"),
        ("a" + "+" * 100, "(a:10)"),
    ],
)
def test_compel_is_translated(text: str, expected: str):
    assert translate_compel(text) == (expected, [])


def test_invokeai_zeros_are_kept():
    data = {
        "positive_prompt": "a",
        "seed": 0,
        "strength": 0.0,
        "width": None,
        "odd": 0,
        "not": False,
    }
    found = read(invokeai_metadata=json.dumps(data))
    assert (found.fields["seed"], found.fields["strength"]) == (0, 0)
    assert found.notes == ("settings not carried over: odd 0.",)


def test_functions_of_compel_without_a_counterpart_are_listed():
    data = {
        "positive_prompt": '("a cat", "a dog").blend(1, 0.5)',
        "negative_prompt": "a cat.swap(dog)",
        "loras": [
            {"model": {"name": "ink"}, "weight": 0.75},
            {"lora": {"model_name": "pen"}, "weight": 0.5},
            {"model": None, "weight": 1},
            "odd",
        ],
        "controlnets": [{"image": {}}],
        "seed": 77,
    }
    found = read(invokeai_metadata=json.dumps(data))
    assert found.fields["loras"] == ({"name": "ink", "scale": 0.75}, {"name": "pen", "scale": 0.5})
    notes = "\n".join(found.notes)
    for part in (".blend(1, 0.5)", ".swap(dog)", "controlnets", "LoRA 'odd'", "LoRA None"):
        assert part in notes


# ComfyUI


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def graph(**nodes: dict[str, Any]) -> dict[str, Any]:
    """Return a graph; nodes are named n4 for "4"."""
    base = {
        "3": node(
            "KSampler",
            seed=77,
            steps=22,
            cfg=6.5,
            sampler_name="dpmpp_2m",
            scheduler="karras",
            denoise=1.0,
            model=["4", 0],
            positive=["6", 0],
            negative=["7", 0],
            latent_image=["5", 0],
        ),
        "4": node("CheckpointLoaderSimple", ckpt_name="somexl.safetensors"),
        "5": node("EmptyLatentImage", width=128, height=64, batch_size=1),
        "6": node("CLIPTextEncode", text=PROMPT, clip=["4", 1]),
        "7": node("CLIPTextEncode", text=NEGATIVE, clip=["4", 1]),
        "8": node("VAEDecode", samples=["3", 0], vae=["4", 2]),
        "9": node("SaveImage", filename_prefix="x", images=["8", 0]),
    }
    return base | {key.removeprefix("n"): value for key, value in nodes.items()}


def read_graph(**nodes: dict[str, Any]) -> ImportedSettings:
    return read(prompt=json.dumps(graph(**nodes)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("by embedding:ink, [sic]", r"by <embedding:ink>, \[sic\]"),
        ("(embedding:bad:1.2)", "(<embedding:bad>:1.2)"),
        ("embedding:sub/ink.safetensors embedding:b.pt", "<embedding:ink> <embedding:b>"),
        (r"\(a\) c:\dir (b:1.2)", r"\(a\) c:\\dir (b:1.2)"),
        ("<embedding:ink> reembedding:x embedding:", "<embedding:ink> reembedding:x embedding:"),
    ],
)
def test_comfyuis_prompt_syntax_is_translated(text: str, expected: str):
    assert translate_comfyui_prompt(text) == expected
    found = read_graph(n6=node("CLIPTextEncode", text=text, clip=["4", 1]))
    assert found.fields["prompt"] == expected


def test_loras_are_read_with_both_strengths():
    found = read_graph(
        n3=node("KSampler", **(graph()["3"]["inputs"] | {"model": ["12", 0]})),
        n6=node("CLIPTextEncode", text=PROMPT, clip=["11", 1]),
        n7=node("CLIPTextEncode", text=NEGATIVE, clip=["11", 1]),
        n10=node(
            "LoraLoader",
            lora_name="sub/ink.safetensors",
            strength_model=0.8,
            strength_clip=0.5,
            model=["4", 0],
            clip=["4", 1],
        ),
        n11=node(
            "LoraLoader",
            lora_name="sub\\pen.safetensors",
            strength_model=0.25,
            strength_clip=0.25,
            model=["10", 0],
            clip=["10", 1],
        ),
        n12=node("LoraLoaderModelOnly", lora_name="dot.pt", strength_model=1, model=["11", 0]),
    )
    assert {lora["name"]: lora for lora in found.fields["loras"]} == {
        "ink": {"name": "ink", "scale": 0.8, "text_scale": 0.5},
        "pen": {"name": "pen", "scale": 0.25},
        "dot": {"name": "dot", "scale": 1.0, "text_scale": 0.0},
    }
    assert found.model == "somexl.safetensors"
    assert found.notes == ()


def test_comfyui_lora_without_text_encoders_is_exact_and_of_one_prompt_noted():
    loader = node("LoraLoader", lora_name="ink", strength_model=0.8, model=["4", 0], clip=["4", 1])
    sampler = node("KSampler", **(graph()["3"]["inputs"] | {"model": ["10", 0]}))
    unused = read_graph(n3=sampler, n10=loader)
    assert unused.fields["loras"] == ({"name": "ink", "scale": 0.8, "text_scale": 0.0},)
    assert unused.notes == ()
    one_sided = read_graph(
        n3=sampler, n10=loader, n6=node("CLIPTextEncode", text=PROMPT, clip=["10", 1])
    )
    assert one_sided.fields["loras"] == ({"name": "ink", "scale": 0.8},)
    assert "for one prompt only" in one_sided.notes[0]


@pytest.mark.parametrize(
    "stack",
    [
        node(
            "Power Lora Loader (rgthree)",
            lora_1={"on": True, "lora": "ink.safetensors", "strength": 0.8},
            lora_2={"on": False, "lora": "pen.safetensors", "strength": 0.5},
        ),
        node("Lora Loader Stack (rgthree)", lora_01="ink.pt", strength_01=0.8, lora_02="None"),
        node("CR LoRA Stack", switch_1="On", lora_name_1="ink", model_weight_1=0.8),
    ],
    ids=lambda each: each["class_type"],
)
def test_loras_of_extensions_are_read(stack: dict[str, Any]):
    stack["inputs"] |= {"model": ["4", 0], "clip": ["4", 1]}
    found = read_graph(
        n3=node("KSampler", **(graph()["3"]["inputs"] | {"model": ["10", 0]})), n10=stack
    )
    assert found.fields["loras"] == ({"name": "ink", "scale": 0.8, "text_scale": 0.0},)
    assert found.notes == ()


CUSTOM = {
    "n3": node(
        "SamplerCustomAdvanced",
        noise=["20", 0],
        guider=["23", 0],
        sampler=["21", 0],
        sigmas=["22", 0],
        latent_image=["5", 0],
    ),
    "n20": node("RandomNoise", noise_seed=77),
    "n21": node("KSamplerSelect", sampler_name="dpmpp_2m_sde_gpu"),
    "n23": node("CFGGuider", cfg=6.5, model=["4", 0], positive=["6", 0], negative=["7", 0]),
}


@pytest.mark.parametrize(
    ("scheduler", "schedule"),
    [
        (node("AlignYourStepsScheduler", model_type="SDXL", steps=22, denoise=1), None),
        (node("KarrasScheduler", steps=22, sigma_max=14.6, sigma_min=0.03, rho=7), "karras"),
        (node("ExponentialScheduler", steps=22, sigma_max=14.6, sigma_min=0.03), "exponential"),
        (node("BasicScheduler", scheduler="beta", steps=22, denoise=1, model=["4", 0]), "beta"),
    ],
    ids=["align your steps", "karras", "exponential", "basic"],
)
def test_advanced_samplers_are_read(scheduler: dict[str, Any], schedule: str | None):
    found = read_graph(**CUSTOM, n22=scheduler)
    assert found.fields == {
        "prompt": PROMPT,
        "negative_prompt": NEGATIVE,
        "seed": 77,
        "num_inference_steps": 22,
        "guidance_scale": 6.5,
        "sampler": "dpmpp_2m_sde",
        "schedule": schedule or "align_your_steps",
        "width": 128,
        "height": 64,
    }
    assert found.notes == ()


def test_parts_of_advanced_samplers_without_a_counterpart_are_listed():
    found = read_graph(
        **CUSTOM
        | {
            "n21": node("SamplerEulerAncestral", eta=1, s_noise=1),
            "n23": node("BasicGuider", conditioning=["6", 0], model=["24", 0]),
            "n24": node("RescaleCFG", multiplier=0.7, model=["25", 0]),
            "n25": node("FreeU", b1=1.1, model=["4", 0]),
            "n22": node("SplitSigmas", step=11, sigmas=["26", 0]),
            "n26": node("BasicScheduler", scheduler="normal", steps=22, denoise=1, model=["4", 0]),
        }
    )
    assert found.fields["guidance_scale"] == 1.0
    assert found.fields["guidance_rescale"] == 0.7
    assert (found.fields["sampler"], found.fields["schedule"]) == ("euler_a", "linspace")
    assert found.fields["prompt"] == PROMPT
    assert "negative_prompt" not in found.fields
    assert found.notes == ("nodes not carried over: FreeU, SplitSigmas.",)


def test_sampler_custom_is_read():
    found = read_graph(
        n3=node(
            "SamplerCustom",
            add_noise=True,
            noise_seed=77,
            cfg=6.5,
            model=["4", 0],
            positive=["6", 0],
            negative=["7", 0],
            sampler=["21", 0],
            sigmas=["22", 0],
            latent_image=["5", 0],
        ),
        n21=CUSTOM["n21"],
        n22=node("KarrasScheduler", steps=22),
    )
    assert found.fields["seed"] == 77
    assert found.fields["num_inference_steps"] == 22
    assert found.notes == ()


@pytest.mark.parametrize(
    "join",
    [
        node("StringConcatenate", string_a=["30", 0], string_b=["31", 0], delimiter=", "),
        node("StringConcatenate", delimiter=", ", string_b=["31", 0], string_a=["30", 0]),
        node("Text Concatenate", delimiter=", ", text_a="a red", text_b=["31", 0], text_c=""),
        node("CR Text Concatenate", text1=["30", 0], text2=["31", 0], separator=", "),
        node("JoinStrings", string1=["30", 0], string2="house", delimiter=", "),
        node("StringFunction|pysssss", action="append", text_a=["30", 0], text_b="house"),
        node("ShowText|pysssss", text=["33", 0]),
    ],
    ids=lambda each: each["class_type"],
)
def test_joined_texts_are_read(join: dict[str, Any]):
    found = read_graph(
        n6=node("CLIPTextEncode", text=["32", 0], clip=["4", 1]),
        n30=node("PrimitiveString", value="a red"),
        n31=node("Text Multiline", text="house"),
        n32=join,
        n33=node("easy promptConcat", prompt1=["30", 0], prompt2=["31", 0], separator=", "),
    )
    assert found.fields["prompt"] == "a red, house"
    assert found.notes == ()


def test_texts_that_a_node_changes_are_listed():
    found = read_graph(
        n6=node("CLIPTextEncode", text=["32", 0], clip=["4", 1]),
        n32=node("StringReplace", string="a red house", find="red", replace="blue"),
    )
    assert found.fields["prompt"] == "a red house"
    assert found.notes == ("nodes not carried over: StringReplace.",)


def test_joined_conditionings_behind_a_control_net_are_read():
    sampler = graph()["3"]["inputs"] | {"positive": ["12", 0], "negative": ["12", 1]}
    found = read_graph(
        n3=node("KSampler", **sampler),
        n10=node("ConditioningConcat", conditioning_to=["6", 0], conditioning_from=["11", 0]),
        n11=node("CLIPTextEncode", text="at night", clip=["4", 1]),
        n12=node("ControlNetApplyAdvanced", positive=["10", 0], negative=["7", 0], strength=1),
    )
    assert found.fields["prompt"] == f"{PROMPT} BREAK at night"
    assert found.fields["negative_prompt"] == NEGATIVE
    assert found.notes == ("nodes not carried over: ControlNetApplyAdvanced.",)


@pytest.mark.parametrize(
    "join",
    [
        node("ConditioningCombine", conditioning_2=["11", 0], conditioning_1=["6", 0]),
        node(
            "ConditioningAverage",
            conditioning_to_strength=0.5,
            conditioning_from=["11", 0],
            conditioning_to=["6", 0],
        ),
    ],
    ids=lambda each: each["class_type"],
)
def test_combined_conditionings_lose_no_words_and_are_listed(join: dict[str, Any]):
    found = read_graph(
        n3=node("KSampler", **(graph()["3"]["inputs"] | {"positive": ["10", 0]})),
        n10=join,
        n11=node("CLIPTextEncode", text="at night", clip=["4", 1]),
    )
    assert found.fields["prompt"] == f"{PROMPT} BREAK at night"
    assert found.notes == (f"nodes not carried over: {join['class_type']}.",)


@pytest.mark.parametrize("sampler", ["KSampler (Efficient)", "easy preSampling"])
def test_prompts_and_sizes_of_loaders_are_read(sampler: str):
    settings = {"seed": 77, "steps": 22, "cfg": 6.5, "sampler_name": "euler", "scheduler": "karras"}
    links = {
        "model": ["4", 0],
        "positive": ["4", 1],
        "negative": ["4", 2],
        "latent_image": ["4", 3],
    }
    found = read_graph(
        n3=node(
            sampler, **settings, denoise=1.0, **(links if "K" in sampler else {"pipe": ["4", 0]})
        ),
        n4=node(
            "Efficient Loader",
            ckpt_name="somexl.safetensors",
            positive="a [red] house",
            negative=NEGATIVE,
            empty_latent_width=128,
            empty_latent_height=64,
            lora_name="sub/ink.safetensors",
            lora_model_strength=0.8,
            lora_clip_strength=0.5,
        ),
    )
    assert found.model == "somexl.safetensors"
    assert found.fields == {
        "prompt": r"a \[red\] house",
        "negative_prompt": NEGATIVE,
        "seed": 77,
        "num_inference_steps": 22,
        "guidance_scale": 6.5,
        "sampler": "euler",
        "schedule": "karras",
        "width": 128,
        "height": 64,
        "loras": ({"name": "ink", "scale": 0.8, "text_scale": 0.5},),
    }
    assert found.notes == ()


def test_loops_and_many_joins_of_texts_end():
    joins = {
        f"n{i}": node("StringConcatenate", string_a=[f"{i + 1}", 0], string_b=[f"{i + 1}", 0])
        for i in range(100, 400)
    }
    loop = {"n400": node("StringConcatenate", string_a=["100", 0], string_b="a house")}
    found = read_graph(n6=node("CLIPTextEncode", text=["100", 0], clip=["4", 1]), **joins, **loop)
    assert found.fields["negative_prompt"] == NEGATIVE
    assert len(found.fields.get("prompt", "")) <= 100_000


# Malformed settings of every kind

PARTS: dict[str, dict[str, Any]] = {
    "parameters of Fooocus": FOOOCUS,
    "parameters of SwarmUI": SWARMUI["sui_image_params"],
    "Comment": NOVELAI,
    "invokeai_metadata": {
        "positive_prompt": PROMPT,
        "negative_prompt": NEGATIVE,
        "seed": 77,
        "steps": 22,
        "cfg_scale": 6.5,
        "scheduler": "euler_k",
        "loras": [{"model": {"name": "ink"}, "weight": 0.75}],
        "model": {"name": "somexl"},
        "width": 128,
    },
}
HELD = {"prompt", "positive_prompt", "full_prompt", "uc"}

odd_texts = st.sampled_from(
    ["", "x", "-1", "nan", "1e999", "9" * 5000, "\ud800", "a\0b", "<lora:a:9>", "(((", "{[", "'"]
)
odd_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, -1, 0.5])
    | st.floats()
    | odd_texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(odd_texts, inner, max_size=3),
    max_leaves=6,
)
SLOW = settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow], deadline=None)


def read_json(kind: str, data: dict[str, Any]) -> ImportedSettings:
    own = {"sui_image_params": data} if kind.endswith("SwarmUI") else data
    found = read(**{kind.split()[0]: json.dumps(own), "Software": "NovelAI" if "uc" in own else ""})
    for value in (found.fields, found.notes):
        json.dumps(value)
    return found


@SLOW
@given(data=st.data(), value=odd_values)
@pytest.mark.parametrize("kind", list(PARTS))
def test_settings_with_an_odd_value_keep_the_prompt(kind: str, data: st.DataObject, value: Any):
    part = PARTS[kind]
    key = data.draw(st.sampled_from(sorted(set(part) - HELD)))
    found = read_json(kind, part | {key: value})
    assert "a red house" in found.fields["prompt"]


@SLOW
@given(value=odd_values)
@pytest.mark.parametrize("kind", list(PARTS))
def test_settings_with_an_odd_prompt_are_read_or_noted(kind: str, value: Any):
    part = PARTS[kind]
    (key,) = {"prompt", "positive_prompt"} & part.keys()
    found = read_json(kind, part | {key: value, "full_prompt": value})
    assert "prompt" in found.fields or found.notes or not value


@SLOW
@given(data=st.data(), value=odd_values)
def test_comfyui_graph_with_an_odd_value_keeps_the_prompt(data: st.DataObject, value: Any):
    nodes = graph(**CUSTOM, n22=node("KarrasScheduler", steps=22))
    key = data.draw(st.sampled_from(["4", "5", "20", "21", "22", "7"]))
    name = data.draw(st.sampled_from(sorted(nodes[key]["inputs"])))
    nodes[key]["inputs"][name] = value
    assert read(prompt=json.dumps(nodes)).fields["prompt"] == PROMPT


@SLOW
@given(key=st.sampled_from(LINE.split(", ")), value=odd_texts | st.text(max_size=20))
def test_a1111_line_with_an_odd_value_keeps_the_prompt(key: str, value: str):
    name = key.split(":")[0]
    one_line = value.replace("\n", " ")
    line = LINE.replace(key, f"{name}: {one_line}")
    found = a1111.read_a1111(a1111_text(line))
    assert found is not None
    assert found.fields["prompt"] == PROMPT


@SLOW
@given(cut=st.integers(1, len(LINE)))
def test_a1111_line_that_is_cut_keeps_the_prompt(cut: int):
    found = a1111.read_a1111(a1111_text(LINE[:-cut]))
    assert found is not None
    assert found.fields["prompt"] == PROMPT


@SLOW
@given(text=st.text() | odd_texts)
def test_any_text_is_read_or_refused(text: str):
    picture = PictureTexts(
        dict.fromkeys(("parameters", "prompt", "Comment", "invokeai_metadata"), text), (8, 8)
    )
    for reader in READERS:
        reader(picture)
    for nested in (f'{{"prompt": {text}}}', "[" * 10_000 + text):
        for read_one in (
            a1111.read_a1111,
            read_comfyui,
            fooocus.read_fooocus,
            invokeai.read_invokeai,
            swarmui.read_swarmui,
        ):
            read_one(nested)


@SLOW
@given(text=st.text(st.sampled_from("ab()[]{}<>:+-.,|\\\"' 1\n"), max_size=60))
def test_any_prompt_is_translated(text: str):
    for translated in (
        translate_compel(text)[0],
        translate_comfyui_prompt(text),
        translate_novelai_prompt(text),
    ):
        try:
            Request(prompt=translated)
        except RequestError as error:
            assert "lora" in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    "unit", ["(", ")", "[", "{", "a+", "a-", "<", '"', "\\", "1::", "::", '"a']
)
def test_long_prompts_are_translated_in_linear_time(unit: str):
    text = unit * (100_000 // len(unit))  # quadratic time would be minutes
    for translate in (translate_compel, translate_comfyui_prompt, translate_novelai_prompt):
        translate(text)


@pytest.mark.parametrize(
    "text", ['("a"' + " " * 100_000 + "b", "<hypernet:" + "a" * 100_000, "<hypernet:" * 10_000]
)
def test_unfinished_functions_and_tags_are_read_in_linear_time(text: str):
    translate_compel(text)
    with contextlib.suppress(RequestError):  # it names a tag without an end
        read(parameters=f"{text}\nSteps: 7, Sampler: Euler a, Seed: 3, Size: 512x512")


def test_png_of_each_program_is_read(tmp_path: Path):
    for kind, part in PARTS.items():
        own = {"sui_image_params": part} if kind.endswith("SwarmUI") else part
        chunks = PngInfo()
        chunks.add_text(kind.split()[0], json.dumps(own))
        PIXELS.save(tmp_path / "a.png", pnginfo=chunks)
        assert "a red house" in metadata.read_settings(tmp_path / "a.png").fields["prompt"]
