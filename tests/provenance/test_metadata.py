import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from overpaint.errors import OutputError, PictureError, RequestError
from overpaint.imaging import codec
from overpaint.picture import Picture
from overpaint.provenance import a1111_text, metadata
from overpaint.provenance.importers import a1111, collector, invokeai
from overpaint.provenance.importers.comfyui import reader as comfyui
from overpaint.registry import SAMPLERS, SCHEDULES
from overpaint.request import Request
from overpaint.request.foreign_syntax import describe_foreign_syntax
from overpaint.request.parts import Control, Lora

FORMATS = ["out.png", "out.jpg", "out.webp"]
PIXELS = Image.new("RGB", (128, 96), (200, 100, 50))
SKETCH = codec.read_picture(Image.new("RGB", (8, 8), "white"))


@dataclass(frozen=True)
class Named:
    name: str


@dataclass(frozen=True)
class Checkpoint:
    name: str = "miniature"
    sha256: str = "0123456789abcdef" * 4
    family: Named = Named("miniature")
    device: str = "cpu"
    dtype_name: str = "float32"
    parts: Mapping[str, Any] = field(default_factory=dict[str, Any])


def recorded(request: Request, index: int = 0) -> dict[str, Any]:
    return metadata.make_record(request, index, PIXELS.size, Checkpoint())


def png_with(path: Path, **texts: str) -> Path:
    chunks = PngInfo()
    for key, text in texts.items():
        chunks.add_text(key, text)
    PIXELS.save(path, "PNG", pnginfo=chunks)
    return path


# Ours


def test_record_of_refined_picture_has_the_refiner_hash():
    request, second = Request(refiner="finer"), Checkpoint("finer", "fe" * 32)
    record = metadata.make_record(request, 0, PIXELS.size, Checkpoint(), second)
    assert (record["model"]["name"], record["refiner"]["name"]) == ("miniature", "finer")
    assert record["refiner"]["sha256"] == "fe" * 32
    assert metadata.make_record(Request(), 0, PIXELS.size, Checkpoint())["refiner"] is None


@pytest.mark.parametrize("name", FORMATS)
def test_written_picture_gives_an_equal_request(name: str, tmp_path: Path):
    request = Request(
        image=SKETCH,
        prompt='a "fox", ☃ 日本\nNegative prompt: no\nSteps: 3, Seed: 4, Size: 8x8',
        negative_prompt="blurry",
        guidance_interval=(0.1, 0.9),
        original_size=(64, 32),
        num_images=4,
        seed=7,
    )
    record = recorded(request, 2)
    metadata.write_picture(PIXELS, tmp_path / name, record)
    found = metadata.read_settings(tmp_path / name)
    assert found.program == "overpaint"
    assert found.record == record
    assert found.model == "miniature"
    assert found.notes == ()
    alone = metadata.to_request(found, SKETCH)
    assert alone == request.model_copy(update={"seed": 9, "num_images": 1})


@dataclass(frozen=True)
class File:
    name: str
    sha256: str = "5a" * 32
    tensors_sha256: str = "7e" * 32


USED = metadata.UsedFiles(
    loras=[File("ink"), File("clay", "5b" * 32, "7f" * 32)],
    nets=[File("miniature-canny")],
    embeddings=[File("turner", "5c" * 32)],
)


@pytest.mark.parametrize("name", FORMATS)
def test_record_has_hashes_of_used_addons(name: str, tmp_path: Path):
    request = Request(
        prompt="a <embedding:turner> fox <lora:ink:0.5>",
        loras=(Lora(name="clay", scale=-1.0, text_scale=0.25),),
        seed=1,
    )
    record = metadata.make_record(request, 0, PIXELS.size, Checkpoint(), used=USED)
    metadata.write_picture(PIXELS, tmp_path / name, record)
    found = metadata.read_settings(tmp_path / name)
    assert found.record is not None
    assert found.record["loras_sha256"] == {
        "ink": {"file": "5a" * 32, "tensors": "7e" * 32},
        "clay": {"file": "5b" * 32, "tensors": "7f" * 32},
    }
    assert found.record["nets_sha256"] == {"miniature-canny": "5a" * 32}
    assert found.record["embeddings_sha256"] == {"turner": "5c" * 32}
    assert metadata.to_request(found) == request


def test_a1111_text_has_hashes_and_tags_of_loras_and_embeddings():
    asked = Lora(name="clay", scale=-1.0, text_scale=0.25)
    request = Request(prompt="a fox <lora:ink:0.5>", loras=(asked,), seed=1)
    text = a1111_text.format_parameters(
        metadata.make_record(request, 0, (8, 8), Checkpoint(), used=USED)
    )
    assert 'Lora hashes: "ink: 7e7e7e7e7e7e, clay: 7f7f7f7f7f7f", ' in text
    assert 'TI hashes: "turner: 5c5c5c5c5c5c", ' in text
    assert {"<lora:clay:0.25:-1>", "<lora:ink:0.5>"} <= set(text.split("\n")[0].split())
    found = a1111.read_a1111(text)
    assert found is not None
    assert metadata.to_request(found).loras == request.loras


def test_record_describes_model_input_seed_and_versions():
    record = recorded(Request(image=SKETCH, seed=7, num_images=2), 1)
    assert record["model"] == {
        "name": "miniature",
        "sha256": "0123456789abcdef" * 4,
        "family": "miniature",
        "device": "cpu",
        "dtype": "float32",
    }
    assert record["input_sha256"] == SKETCH.sha256
    assert (record["seed"], record["index"], record["size"]) == (8, 1, [128, 96])
    assert set(record["versions"]) == {"torch", "diffusers", "transformers"}
    assert "image" not in record["request"]
    assert recorded(Request())["input_sha256"] is None


text = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=60
) | st.sampled_from(
    ["Negative prompt: x", "a\nNegative prompt: b", "Steps: 3, a: b, c: d", '"', "\\", "\r\n"]
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompt=text, negative=text, name=st.sampled_from(FORMATS))
def test_record_of_any_prompt_gives_an_equal_request(
    prompt: str, negative: str, name: str, tmp_path: Path
):
    request = Request(prompt=prompt, prompt_2=negative, negative_prompt=negative, seed=1)
    metadata.write_picture(PIXELS, tmp_path / name, recorded(request))
    assert metadata.to_request(metadata.read_settings(tmp_path / name)) == request


@pytest.mark.parametrize("name", FORMATS)
def test_written_picture_keeps_its_pixels(name: str, tmp_path: Path):
    metadata.write_picture(PIXELS, tmp_path / name, recorded(Request()))
    written = codec.decode(codec.read_picture(tmp_path / name))
    worst = np.abs(codec.to_array(written) - codec.to_array(PIXELS)).max()
    assert worst == 0 if name.endswith("png") else worst < 0.05


def test_record_with_old_field_name_is_read(tmp_path: Path):
    record = recorded(Request())
    record["request"]["match_colours"] = record["request"].pop("match_colors")
    found = metadata.read_settings(png_with(tmp_path / "a.png", overpaint=json.dumps(record)))
    assert "match_colours" not in found.fields
    assert found.fields["match_colors"] is True


def test_damaged_record_is_refused(tmp_path: Path):
    for text in ("{", "[]", "{}", '{"request": 3}', "[" * 100_000):
        with pytest.raises(PictureError, match="record is damaged"):
            metadata.read_settings(png_with(tmp_path / "a.png", overpaint=text))


def test_picture_without_settings_is_refused(tmp_path: Path):
    path = png_with(tmp_path / "plain.png", Comment="hello", parameters="no settings", prompt="{}")
    with pytest.raises(PictureError, match=r"plain\.png carries no settings"):
        metadata.read_settings(path)
    with pytest.raises(PictureError, match="no such file"):
        metadata.read_settings(tmp_path / "none.png")


# Writing


def test_check_output_refuses_settings_too_long_for_jpeg(tmp_path: Path):
    request = Request(prompt="very " * 8000)
    metadata.check_output(tmp_path / "out.png", request)
    metadata.check_output(tmp_path / "out.webp", request)
    with pytest.raises(OutputError, match="a JPEG holds 65,533; write a PNG"):
        metadata.check_output(tmp_path / "out.jpg", request)
    metadata.write_picture(PIXELS, tmp_path / "out.webp", recorded(request))
    assert metadata.read_settings(tmp_path / "out.webp").fields["prompt"] == request.prompt


def test_output_that_passes_the_check_is_written(tmp_path: Path):
    path = tmp_path / "out.jpg"
    longest = 0
    for length in range(15_000, 22_000, 500):
        request = Request(prompt="x" * length)
        try:
            metadata.check_output(path, request)
        except OutputError:
            break
        metadata.write_picture(PIXELS, path, recorded(request))
        longest = length
    assert 15_000 < longest < 21_500


def test_check_output_refuses_unwritable_path(tmp_path: Path):
    with pytest.raises(OutputError, match="no folder"):
        metadata.check_output(tmp_path / "none" / "out.png", Request())


# A1111


def test_a1111_text_matches_the_format_of_a1111():
    request = Request(
        image=SKETCH, prompt="a fox", negative_prompt="blurry", seed=7, strength=0.6, clip_skip=1
    )
    assert a1111_text.format_parameters(recorded(request)) == (
        "a fox\nNegative prompt: blurry\n"
        "Steps: 30, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 5, Seed: 7, "
        "Size: 128x96, Model hash: 0123456789, Model: miniature, Denoising strength: 0.6, "
        "Clip skip: 3, Version: overpaint 0.1.0"
    )


def test_a1111_text_has_the_tiny_decoder():
    text = a1111_text.format_parameters(recorded(Request(decoder="tiny")))
    assert "VAE Decoder: TAESD," in text
    found = a1111.read_a1111(text)
    assert found
    assert found.fields["decoder"] == "tiny"
    assert not any("VAE" in note for note in found.notes)


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("/home/fox/models/mine-1.0.safetensors", "mine-1.0"),
        ("/home/fox/models/mine-1.0", "mine-1.0"),
        ("stabilityai/stable-diffusion-xl-base-1.0", "stabilityai/stable-diffusion-xl-base-1.0"),
    ],
)
def test_a1111_text_has_no_folder_of_the_model(name: str, written: str):
    text = a1111_text.format_parameters(
        metadata.make_record(Request(), 0, (8, 8), Checkpoint(name=name))
    )
    assert f"Model: {written}," in text


def test_a1111_text_quotes_names_with_separators():
    record = metadata.make_record(Request(seed=1), 0, (8, 8), Checkpoint(name='C:\\a, "b"'))
    text = a1111_text.format_parameters(record)
    assert r'Model: "C:\\a, \"b\"", ' in text
    found = a1111.read_a1111(text)
    assert found is not None
    assert found.model == 'C:\\a, "b"'
    assert found.fields["seed"] == 1


@pytest.mark.parametrize("name", FORMATS)
def test_a1111_text_is_stored_in_the_place_of_each_format(name: str, tmp_path: Path):
    metadata.write_picture(
        PIXELS, tmp_path / name, recorded(Request(prompt="ein Fuchs 狐", seed=1))
    )
    with Image.open(tmp_path / name) as image:
        if name.endswith("png"):
            text = str(image.info["parameters"])
        else:
            comment = image.getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment]
            assert comment[:8] == b"UNICODE\0"
            text = comment[8:].decode("utf-16-be")
    assert text.startswith("ein Fuchs 狐\nSteps: 30, ")


lines = st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp", "Zs"]), min_size=1, max_size=40
).filter(lambda line: not line.startswith("Negative"))


@given(
    prompt=lines,
    negative=lines | st.just(""),
    sampler=st.sampled_from(list(SAMPLERS)),
    schedule=st.sampled_from(list(SCHEDULES)),
    scale=st.floats(1, 50),
    steps=st.integers(1, 1000),
    seed=st.integers(0, 2**63 - 1),
    clip_skip=st.integers(0, 11),
)
def test_a1111_text_of_any_request_gives_an_equal_request(
    prompt: str, negative: str, sampler: str, schedule: str, scale: float, **numbers: int
):
    request = Request(
        prompt=prompt,
        negative_prompt=negative,
        sampler=sampler,
        schedule=schedule,
        guidance_scale=scale,
        num_inference_steps=numbers["steps"],
        seed=numbers["seed"],
        clip_skip=numbers["clip_skip"],
    )
    found = a1111.read_a1111(a1111_text.format_parameters(recorded(request)))
    assert found is not None
    note = describe_foreign_syntax(request.prompts.values())
    assert found.notes == ((note,) if note else ())
    again = metadata.to_request(found)
    assert again == request.model_copy(update={"width": 128, "height": 96})


A1111 = """a castle, (towers:1.2)
on a hill
Negative prompt: blurry,
text
Steps: 20, Sampler: DPM++ 2M SDE, Schedule type: Automatic, CFG scale: 7, Seed: 965400086, \
Size: 512x768, Model hash: 31e35c80fc, Model: sd_xl_base_1.0, Denoising strength: 0.75, \
Clip skip: 2, Lora hashes: "a: 1, b: 2", Version: v1.9.4"""


def test_a1111_long_line_without_settings_returns_none():
    assert a1111.read_a1111("a fox\n" + "a" * 100_000) is None


def test_a1111_settings_are_read(tmp_path: Path):
    found = metadata.read_settings(png_with(tmp_path / "a.png", parameters=A1111))
    assert (found.program, found.model) == ("A1111", "sd_xl_base_1.0")
    assert found.fields == {
        "prompt": "a castle, (towers:1.2)\non a hill",
        "negative_prompt": "blurry,\ntext",
        "num_inference_steps": 20,
        "guidance_scale": 7.0,
        "seed": 965400086,
        "strength": 0.75,
        "steps": "truncate",
        "sampler": "dpmpp_2m_sde",
        "schedule": "exponential",
        "width": 512,
        "height": 768,
        "clip_skip": 0,
    }
    assert found.notes == ("settings not carried over: Lora hashes a: 1, b: 2.",)


@pytest.mark.parametrize(
    ("named", "sampler", "schedule"),
    [
        ("Sampler: DPM++ 2M Karras", "dpmpp_2m", "karras"),
        ("Sampler: Euler a", "euler_a", "linspace"),
        ("Sampler: Euler, Schedule type: Automatic", "euler", "linspace"),
        ("Sampler: DPM++ 2M, Schedule type: Automatic", "dpmpp_2m", "karras"),
        ("Sampler: Euler, Schedule type: Normal", "euler", "linspace"),
        ("Sampler: Euler, Schedule type: SGM Uniform", "euler", "trailing"),
        ("Sampler: DDIM, Schedule type: DDIM", "ddim", "normal"),
    ],
)
def test_a1111_samplers_are_read(named: str, sampler: str, schedule: str):
    found = a1111.read_a1111(f"x\nSteps: 20, {named}, CFG scale: 7, Seed: 1")
    assert found is not None
    assert (found.fields["sampler"], found.fields["schedule"]) == (sampler, schedule)
    assert found.notes == ()


def test_a1111_settings_without_counterpart_become_notes():
    found = a1111.read_a1111(
        "x\nSteps: 2000, Sampler: Restart, Schedule type: KL Optimal, CFG scale: high, "
        "Denoising strength: 0.5, Hires upscale: 2, Size: 512x512"
    )
    assert found is not None
    assert found.fields == {"prompt": "x", "negative_prompt": "", "width": 512, "height": 512}
    notes = "\n".join(found.notes)
    for word in ("2000", "Restart", "KL Optimal", "'high'", "Hires upscale 2", "Denoising"):
        assert word in notes


TAGGED = (
    "a red house, (green tree:1.2) {}\nNegative prompt: blurry, (bad:1.3)\n"
    "Steps: 22, Sampler: Euler a, Schedule type: Karras, CFG scale: 6.5, Seed: 77, Size: 128x128, "
    "Model hash: 0011223344, Model: somexl, Version: v1.10.1"
)
"""Settings as A1111 with sd-webui-lora-block-weight writes them."""


@pytest.mark.parametrize(
    ("tags", "loras"),
    [
        (
            "<lora:ink:0.8:lbw=OUTALL> <lora:ink2:1:te=0.5:unet=0.8>",
            [("ink", 0.8, None), ("ink2", 0.8, 0.5)],
        ),
        ("<lora:ink:0.8> <lora:ink:0.2>", [("ink", 0.8, None), ("ink", 0.2, None)]),
        ("<lyco:ink:0.8> <hypernet:h:1>", [("ink", 0.8, None)]),
    ],
)
def test_a1111_lora_tags_are_read(
    tags: str, loras: list[tuple[str, float, float | None]], tmp_path: Path
):
    path = png_with(tmp_path / "a.png", parameters=TAGGED.format(tags))
    found = metadata.read_settings(path)
    request = metadata.to_request(found)
    assert request.prompt == "a red house, (green tree:1.2)"
    assert request.negative_prompt == "blurry, (bad:1.3)"
    assert [(lora.name, lora.scale, lora.text_scale) for lora in request.loras] == loras
    assert found.notes == (("hypernetworks not carried over: h.",) if "hypernet" in tags else ())


def test_a1111_lora_tag_that_cannot_be_read_is_an_error(tmp_path: Path):
    path = png_with(tmp_path / "a.png", parameters=TAGGED.format("<lora:ink:1:stop=9>"))
    found = metadata.read_settings(path)
    assert found.fields["prompt"].startswith("a red house")
    with pytest.raises(RequestError, match="prompt: '<lora:ink:1:stop=9>': stop= is not supported"):
        metadata.to_request(found)
    assert metadata.to_request(found, prompt="a cup").prompt == "a cup"


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
@pytest.mark.parametrize(
    "comment",
    [
        b"UNICODE\0" + A1111.encode("utf-16-be"),
        b"UNICODE\0" + A1111.encode("utf-16-le"),
        b"ASCII\0\0\0" + A1111.encode(),
    ],
)
def test_a1111_settings_in_jpeg_and_webp_are_read(kind: str, comment: bytes, tmp_path: Path):
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = comment
    PIXELS.save(tmp_path / "a", kind, exif=exif)
    assert metadata.read_settings(tmp_path / "a").fields["seed"] == 965400086


def test_a1111_settings_after_the_pixels_of_png_are_read(tmp_path: Path):
    plain, path = BytesIO(), png_with(tmp_path / "a.png", parameters=A1111)
    PIXELS.save(plain, "PNG")
    data, bare = path.read_bytes(), plain.getvalue()
    start = data.index(b"tEXt") - 4
    chunk = data[start : data.index(b"IDAT") - 4]
    path.write_bytes(bare[:-12] + chunk + bare[-12:])
    assert metadata.read_settings(path).program == "A1111"


# InvokeAI

INVOKEAI: dict[str, Any] = {
    "app_version": "5.4.0",
    "generation_mode": "sdxl_img2img",
    "positive_prompt": "a castle",
    "negative_prompt": "blurry",
    "positive_style_prompt": "",
    "negative_style_prompt": "grainy",
    "width": 832,
    "height": 1216,
    "seed": 42,
    "rand_device": "cpu",
    "cfg_scale": 5.5,
    "cfg_rescale_multiplier": 0.7,
    "steps": 25,
    "scheduler": "dpmpp_2m_sde_k",
    "strength": 0.4,
    "seamless_x": False,
    "loras": [{"model": {"name": "ink"}, "weight": 0.8}],
    "model": {"key": "k", "name": "juggernaut", "base": "sdxl", "type": "main"},
}


def test_invokeai_settings_are_read(tmp_path: Path):
    path = png_with(tmp_path / "a.png", invokeai_metadata=json.dumps(INVOKEAI))
    found = metadata.read_settings(path)
    assert (found.program, found.model) == ("InvokeAI", "juggernaut")
    assert found.fields == {
        "prompt": "a castle",
        "negative_prompt": "blurry",
        "negative_prompt_2": "grainy",
        "width": 832,
        "height": 1216,
        "seed": 42,
        "guidance_scale": 5.5,
        "guidance_rescale": 0.7,
        "num_inference_steps": 25,
        "strength": 0.4,
        "steps": "truncate",
        "sampler": "dpmpp_2m_sde",
        "schedule": "karras",
        "loras": ({"name": "ink", "scale": 0.8},),
    }
    assert found.notes == ()
    assert metadata.to_request(found, SKETCH).seed == 42


def test_invokeai_invalid_values_become_notes():
    odd = INVOKEAI | {"seed": "x", "scheduler": "dpmpp_2s_k", "model": None, "loras": []}
    found = invokeai.read_invokeai(json.dumps(odd))
    assert found is not None
    assert found.model is None
    assert "seed" not in found.fields
    assert len(found.notes) == 2
    assert "'dpmpp_2s'" in found.notes[1]


# ComfyUI


def comfyui_graph() -> dict[str, Any]:
    def node(class_type: str, **inputs: Any) -> dict[str, Any]:
        return {"class_type": class_type, "inputs": inputs}

    return {
        "3": node(
            "KSampler",
            seed=156680208700286,
            steps=20,
            cfg=8,
            sampler_name="dpm_2_ancestral",
            scheduler="normal",
            denoise=1,
            model=["4", 0],
            positive=["6", 0],
            negative=["7", 0],
            latent_image=["5", 0],
        ),
        "4": node("CheckpointLoaderSimple", ckpt_name="sd_xl_base_1.0.safetensors"),
        "5": node("EmptyLatentImage", width=1152, height=896, batch_size=1),
        "6": node("CLIPTextEncode", text="a glass bottle", clip=["4", 1]),
        "7": node("CLIPTextEncode", text="watermark", clip=["4", 1]),
        "8": node("VAEDecode", samples=["3", 0], vae=["4", 2]),
        "9": node("SaveImage", filename_prefix="x", images=["8", 0]),
    }


def test_comfyui_settings_are_read(tmp_path: Path):
    path = png_with(tmp_path / "a.png", prompt=json.dumps(comfyui_graph()), workflow="{}")
    found = metadata.read_settings(path)
    assert (found.program, found.model) == ("ComfyUI", "sd_xl_base_1.0.safetensors")
    assert found.fields == {
        "prompt": "a glass bottle",
        "negative_prompt": "watermark",
        "seed": 156680208700286,
        "num_inference_steps": 20,
        "guidance_scale": 8,
        "sampler": "dpm2_a",
        "schedule": "linspace",
        "width": 1152,
        "height": 896,
    }
    assert found.notes == ()


def test_comfyui_settings_in_webp_are_read(tmp_path: Path):
    exif = Image.Exif()
    exif[ExifTags.Base.Model] = "prompt:" + json.dumps(comfyui_graph())
    PIXELS.save(tmp_path / "a.webp", exif=exif)
    assert metadata.read_settings(tmp_path / "a.webp").program == "ComfyUI"


def test_comfyui_graph_of_image_to_image_is_read():
    graph = comfyui_graph()
    graph["3"]["inputs"] |= {"denoise": 0.45, "latent_image": ["10", 0], "seed": ["12", 0]}
    graph["3"]["inputs"]["model"] = ["11", 0]
    graph["10"] = {"class_type": "VAEEncode", "inputs": {"pixels": ["13", 0], "vae": ["4", 2]}}
    graph["11"] = {"class_type": "LoraLoader", "inputs": {"model": ["4", 0], "clip": ["4", 1]}}
    graph["12"] = {"class_type": "PrimitiveInt", "inputs": {"value": 77}}
    graph["13"] = {"class_type": "LoadImage", "inputs": {"image": "a.png"}}
    found = comfyui.read_comfyui(json.dumps(graph))
    assert found is not None
    assert found.fields["strength"] == 0.45
    assert found.fields["seed"] == 77
    assert found.model == "sd_xl_base_1.0.safetensors"
    assert found.notes == ("nodes not carried over: LoraLoader.",)


def test_comfyui_graph_of_sdxl_with_two_samplers_is_read():
    graph = comfyui_graph()
    graph["6"] = {
        "class_type": "CLIPTextEncodeSDXL",
        "inputs": {
            "text_l": ["14", 0],
            "text_g": "style",
            "width": 4096,
            "height": 2048,
            "crop_w": 1,
            "crop_h": 2,
            "target_width": 1024,
            "target_height": 512,
            "clip": ["15", 0],
        },
    }
    graph["14"] = {"class_type": "PrimitiveString", "inputs": {"value": "a bottle"}}
    graph["15"] = {
        "class_type": "CLIPSetLastLayer",
        "inputs": {"stop_at_clip_layer": -3, "clip": ["4", 1]},
    }
    advanced = dict(graph["3"]["inputs"])
    advanced["noise_seed"] = advanced.pop("seed")
    graph["16"] = {
        "class_type": "KSamplerAdvanced",
        "inputs": advanced | {"latent_image": ["3", 0], "start_at_step": 15, "end_at_step": 20},
    }
    graph["8"]["inputs"]["samples"] = ["16", 0]
    found = comfyui.read_comfyui(json.dumps(graph))
    assert found is not None
    assert (found.fields["prompt"], found.fields["prompt_2"]) == ("a bottle", "style")
    assert found.fields["original_size"] == (2048, 4096)
    assert found.fields["crops_coords_top_left"] == (2, 1)
    assert found.fields["target_size"] == (512, 1024)
    assert found.fields["clip_skip"] == 1
    assert found.notes == (
        "settings not carried over: start_at_step 15, end_at_step 20.",
        "further samplers not carried over: KSampler.",
    )


def test_comfyui_graph_with_cycle_is_read_with_a_note():
    graph = comfyui_graph()
    graph["6"] = {"class_type": "ConditioningCombine", "inputs": {"a": ["7", 0], "b": ["6", 0]}}
    graph["7"] = {"class_type": "ConditioningCombine", "inputs": {"a": ["6", 0]}}
    found = comfyui.read_comfyui(json.dumps(graph))
    assert found is not None
    assert "prompt" not in found.fields
    assert "ConditioningCombine" in found.notes[-1]


json_values = st.recursive(
    st.none()
    | st.integers()
    | st.text(max_size=5)
    | st.tuples(st.sampled_from("34567"), st.just(0)),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


@given(node=st.sampled_from(list(comfyui_graph())), key=st.text(max_size=3), value=json_values)
def test_comfyui_graph_with_any_values_is_read_without_error(node: str, key: str, value: Any):
    graph = comfyui_graph()
    for name in [*graph[node]["inputs"], key]:
        graph[node]["inputs"][name] = value
    comfyui.read_comfyui(json.dumps(graph))
    graph[node] = value
    comfyui.read_comfyui(json.dumps(graph))


@given(text=st.text())
def test_importers_given_any_text_raise_nothing(text: str):
    for reader in (a1111.read_a1111, invokeai.read_invokeai, comfyui.read_comfyui):
        reader(text)


# Repeating


def found_ours(**fields: Any) -> collector.ImportedSettings:
    request = Request(prompt="a fox", seed=3, **fields)
    record = recorded(request)
    return collector.ImportedSettings(
        "overpaint", record["request"] | {"num_images": 1}, record=record
    )


def test_to_request_prefers_given_fields_to_settings():
    found = found_ours(image=SKETCH, strength=0.3, sampler="euler", schedule="karras")
    request = metadata.to_request(found, SKETCH, prompt="an owl", strength=0.9)
    assert (request.prompt, request.strength, request.sampler) == ("an owl", 0.9, "euler")


def test_to_request_with_sampler_that_names_its_schedule_replaces_both():
    found = found_ours(sampler="euler", schedule="karras")
    request = metadata.to_request(found, sampler="DPM++ 2M Exponential")
    assert (request.sampler, request.schedule) == ("dpmpp_2m", "exponential")
    assert metadata.to_request(found, sampler="heun").schedule == "karras"


def test_to_request_of_edit_without_picture_is_refused():
    with pytest.raises(RequestError, match="overpaint edit"):
        metadata.to_request(found_ours(image=SKETCH))


def test_to_request_without_the_control_image_is_refused():
    edges = codec.read_picture(Image.new("RGB", (8, 8)))
    asked = Request(prompt="x", controls=(Control(kind="canny", hint=edges, scale=0.5),))
    record = recorded(asked)
    assert record["controls_sha256"] == [{"hint": edges.sha256}]
    assert record["request"]["controls"][0]["scale"] == 0.5
    found = collector.ImportedSettings("overpaint", dict(record["request"]), "m", record=record)
    with pytest.raises(RequestError, match="controls: These settings are steered by pictures"):
        metadata.to_request(found)
    again = metadata.to_request(found, controls=asked.controls)
    assert again == asked


def test_to_request_with_control_from_the_picture_needs_no_other():
    fox = codec.read_picture(Image.new("RGB", (8, 8)))
    asked = Request(prompt="x", image=fox, controls=(Control(kind="canny", scale=0.5),))
    record = json.loads(json.dumps(recorded(asked)))
    found = collector.ImportedSettings("overpaint", record["request"], "m", record=record)
    assert metadata.to_request(found, fox) == asked


def test_to_request_with_a_picture_turns_creation_into_edit():
    request = metadata.to_request(found_ours(), SKETCH)
    assert request.image == SKETCH
    assert request.strength == Request(image=Picture(data=b"x")).strength
