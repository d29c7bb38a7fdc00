"""The commands, run in this process with a fake painter whose pictures have one color."""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from safetensors.numpy import save_file

import overpaint
from overpaint.cli import terminal as terminal_module
from overpaint.cli.main import main
from overpaint.cli.painting import DEFAULT_MODEL_NOTE
from overpaint.cli.settings import SETTINGS
from overpaint.errors import DeviceError, ModelNotFoundError
from overpaint.events import Event, Finished, Notice, Preview, Step
from overpaint.imaging import codec
from overpaint.imaging.hints import drawing
from overpaint.models.library.library import Library
from overpaint.provenance import metadata, watermark
from overpaint.request import Request
from tests.tiny_estimators import tiny_estimator, write_estimator

HEAVY_MODULES = {
    "torch",
    "diffusers",
    "transformers",
    "numpy",
    "PIL",
    "cv2",
    "sqlalchemy",
    "fastapi",
    "huggingface_hub",
    "httpx2",
    "psutil",
    "yaml",
}
"""Modules whose import takes a tenth of a second or more."""


@dataclass(frozen=True)
class Named:
    name: str


@dataclass(frozen=True)
class PartFile:
    name: str
    sha256: str


@dataclass(frozen=True)
class Checkpoint:
    name: str
    sha256: str = "ab" * 32
    family: Named = Named("miniature")
    device: str = "cpu"
    dtype_name: str = "bfloat16"
    parts: Mapping[str, PartFile] = field(default_factory=dict[str, PartFile])


@dataclass(frozen=True)
class Taken:
    refiner: Checkpoint | None


@dataclass
class FakePainter:
    model: Checkpoint
    requests: list[Request] = field(default_factory=list[Request])
    error: BaseException | None = None

    @property
    def addon_loader(self) -> "FakePainter":
        return self

    def load(self, request: Request) -> Taken:
        name = request.refiner
        return Taken(Checkpoint(name, self.model.sha256) if name else None)

    def stream(self, request: Request) -> Iterator[Event]:
        self.requests.append(request)
        yield Notice("a word of warning")
        for done in range(1, 4):
            yield Step(done, 3, 1.0)
            if self.error:
                raise self.error
        yield Preview(0, Image.new("RGB", (8, 8)))
        n, size = request.num_images, (request.width or 64, request.height or 48)
        pictures = tuple(
            Image.new("RGB", size, ((request.seed + i) % 256, 128, 0)) for i in range(n)
        )
        second = self.load(request).refiner
        records = tuple(
            metadata.make_record(request, i, size, self.model, second) for i in range(n)
        )
        yield Finished(pictures, tuple(request.seed + i for i in range(n)), records)


@dataclass
class Loader:
    """In place of `overpaint.load`: remembers what was asked for."""

    calls: list[tuple[str, str, str]] = field(default_factory=list[tuple[str, str, str]])
    requests: list[Request] = field(default_factory=list[Request])
    sha256: str = "ab" * 32
    error: BaseException | None = None
    models_dirs: tuple[Path, ...] = ()
    parts: dict[str, str] = field(default_factory=dict[str, str])
    limits: tuple[float | None, float | None] = (None, None)
    planned: Request | None = None

    def __call__(
        self,
        model: str,
        *,
        device: str,
        dtype: str,
        vram_gb: float | None,
        ram_gb: float | None,
        plan_for: Request,
        home: str | None,
        models_dirs: tuple[Path, ...],
        **parts: str | None,
    ) -> FakePainter:
        del home
        self.parts = {part: name for part, name in parts.items() if name is not None}
        self.models_dirs = models_dirs
        self.limits, self.planned = (vram_gb, ram_gb), plan_for
        self.calls.append((model, device, dtype))
        files = {part: PartFile(name, self.sha256) for part, name in self.parts.items()}
        return FakePainter(Checkpoint(model, self.sha256, parts=files), self.requests, self.error)


@pytest.fixture
def loader(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Loader:
    """A fake loader, and a working folder with `fox.png` in it."""
    loader = Loader()
    # Not setattr, which would look at the old value first and import torch.
    monkeypatch.setitem(vars(overpaint), "load", loader)
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (20, 10), "orange").save("fox.png")
    return loader


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: object) -> Ran:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Ran(int(ended.value.code or 0), captured.out, captured.err)

    return run


# edit


def test_edit_writes_a_picture_in_the_current_folder_and_prints_its_path(loader: Loader, run: Any):
    ran = run("edit", "fox.png", "a wolf", "--seed", 7)
    assert ran == Ran(0, "fox-overpaint.png\n", ran.err)
    assert ran.err.splitlines()[1] == "note: a word of warning"
    assert "miniature, 64x48, seed 7" in ran.err
    [request] = loader.requests
    assert request == Request(image=codec.read_picture("fox.png"), prompt="a wolf", seed=7)
    assert loader.calls == [("miniature", "auto", "auto")]
    found = metadata.read_settings("fox-overpaint.png")
    assert metadata.to_request(found, request.image) == request


OPTIONS: list[tuple[str, dict[str, Any]]] = [
    (
        "--strength 0.3 --negative fog --steps 9 --guidance 3.5 --seed 3 --num-images 2 "
        "--size 96x64 --fit stretch --sampler K_EULER --schedule beta --guidance-rescale 0.5 "
        "--guidance-interval 0.1,0.9 --prompt-2 dog --negative-2 mist --clip-skip 2 "
        "--truncate-steps",
        {
            "strength": 0.3,
            "negative_prompt": "fog",
            "num_inference_steps": 9,
            "guidance_scale": 3.5,
            "seed": 3,
            "num_images": 2,
            "width": 96,
            "height": 64,
            "fit": "stretch",
            "sampler": "euler",
            "schedule": "beta",
            "guidance_rescale": 0.5,
            "guidance_interval": (0.1, 0.9),
            "prompt_2": "dog",
            "negative_prompt_2": "mist",
            "clip_skip": 2,
            "steps": "truncate",
        },
    ),
    (
        "--mask-from box:1,2,9,8 --invert --grow 2 --blur -0 --task remove --fill flat --crop 16 "
        "--extend left=8,bottom=16 --match-colors --refiner mine --refine ensemble "
        "--high-noise-frac 0.7 --aesthetic-score 7 --negative-aesthetic-score 2 --vae soft "
        "--decoder tiny --inpaint langevin:3 --preset fast --seed 3",
        {
            "mask_from": "box:1,2,9,8",
            "mask_invert": True,
            "mask_grow": 2,
            "task": "remove",
            "fill": "flat",
            "crop": 16,
            "extend": (8, 0, 0, 16),
            "refiner": "mine",
            "high_noise_frac": 0.7,
            "aesthetic_score": 7.0,
            "negative_aesthetic_score": 2.0,
            "seed": 3,
            "vae": "soft",
            "decoder": "tiny",
            "langevin_steps": 3,
            "preset": "fast",
        },
    ),
    (
        "--mask fox.png --blur 3 --no-match-colors --crop off --upscale 1.5 --upscale-in latents "
        "--refine-strength 0.4 --refine-steps 7 --seed 3",
        {
            "mask": "fox.png",
            "mask_blur": 3,
            "match_colors": False,
            "crop": "off",
            "upscale": 1.5,
            "upscale_in": "latents",
            "refine_strength": 0.4,
            "refine_steps": 7,
            "seed": 3,
        },
    ),
    (
        "--match-image-colors --subseed 5 --subseed-strength 0.3 --seed 3",
        {"match_image_colors": True, "subseed": 5, "subseed_strength": 0.3, "seed": 3},
    ),
    (
        "--lora ink:0.8 --lora clay:-1:text=0.5:up_blocks.0=0 --lora fog --lora-lenient "
        "--control canny=fox.png:0.7:0-0.8:low=50 --control depth@fox.png:net=mine:weighting=soft "
        "--control tile --control normal:estimator=some/body:strength=2 "
        "--control canny:.5:mask=fox.png --seed 3",
        {
            "loras": (
                {"name": "ink", "scale": 0.8},
                {"name": "clay", "scale": -1.0, "text_scale": 0.5, "blocks": {"up_blocks.0": 0.0}},
                {"name": "fog"},
            ),
            "lora_lenient": True,
            "controls": (
                {
                    "kind": "canny",
                    "image": "fox.png",
                    "scale": 0.7,
                    "end": 0.8,
                    "options": {"low": 50},
                },
                {"kind": "depth", "hint": "fox.png", "net": "mine", "weighting": "soft"},
                {"kind": "tile"},
                {"kind": "normal", "estimator": "some/body", "options": {"strength": 2}},
                {"kind": "canny", "scale": 0.5, "mask": "fox.png"},
            ),
            "seed": 3,
        },
    ),
]


@pytest.mark.parametrize(("options", "fields"), OPTIONS)
def test_options_of_edit_set_the_fields_of_the_request(
    loader: Loader, run: Any, options: str, fields: dict[str, Any]
):
    ran = run("edit", "fox.png", "a wolf", *options.split())
    assert ran.code == 0, ran.err
    fox = codec.read_picture("fox.png")
    given = {"image": fox, "prompt": "a wolf", **fields}
    if "mask" in fields:
        given["mask"] = fox
    given["controls"] = tuple(
        {key: fox if value == "fox.png" else value for key, value in control.items()}
        for control in fields.get("controls", ())
    )
    assert loader.requests == [Request.model_validate(given)]


CREATE_OPTIONS = "--upscale-to 96x64 --upscale-in latents --refine-strength 0.4 --seed 3"


def test_upscale_to_of_create_sets_the_size_of_the_second_stage(loader: Loader, run: Any):
    ran = run("create", "a wolf", *CREATE_OPTIONS.split())
    assert ran.code == 0, ran.err
    given = {"upscale_to": (96, 64), "upscale_in": "latents", "refine_strength": 0.4, "seed": 3}
    assert loader.requests == [Request.model_validate({"prompt": "a wolf"} | given)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--upscale-to big", "--upscale-to: 'big' is not a size. Give WIDTHxHEIGHT."),
        ("--upscale-to 64x64 --upscale 2", "--upscale-to: It contradicts upscale."),
        ("--upscale-to 0x64", "--upscale-to"),
    ],
)
def test_upscale_to_with_a_wrong_value_is_refused(run: Any, options: str, words: str):
    ran = run("create", "a wolf", *options.split())
    assert ran.code == 2
    assert words in ran.err


def test_upscale_to_is_no_option_of_commands_that_repaint_a_picture(run: Any):
    for command in ("edit", "sweep"):
        assert run(command, "fox.png", "a wolf", "--upscale-to", "64x64").code == 2
        assert "--upscale-to" not in run(command, "--help").out


def test_every_option_of_the_table_is_tested():
    every = [*(options for options, _ in OPTIONS), CREATE_OPTIONS]
    given = {word for options in every for word in options.split() if word.startswith("--")}
    assert {s.flags[0].split("/")[0] for s in SETTINGS.values()} <= given


@pytest.mark.parametrize(("flag", "value"), [("", True), ("no-", False)])
def test_match_colors_flag_in_its_old_spelling_is_accepted(
    loader: Loader, run: Any, flag: str, value: bool
):
    ran = run("edit", "fox.png", "x", "--mask-from", "box:0,0,8,8", f"--{flag}match-colours")
    assert ran.code == 0, ran.err
    assert loader.requests[0].match_colors is value


@pytest.mark.parametrize("command", ["edit", "create", "sweep", "models add"])
def test_help_does_not_show_old_spellings_of_flags(run: Any, command: str):
    shown = run(*command.split(), "--help").out
    assert "colour" not in shown
    assert "licence" not in shown


@pytest.mark.parametrize("flag", ["--license", "--licence"])
def test_models_add_records_the_license_in_either_spelling(
    run: Any, flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OVERPAINT_HOME", str(tmp_path))
    save_file({"emb_params": np.zeros((1, 8), np.float32)}, tmp_path / "word.safetensors")
    ran = run("models", "add", tmp_path / "word.safetensors", flag, "MIT")
    assert ran.code == 0, ran.err
    assert "license         MIT" in ran.out


def test_model_device_and_dtype_options_reach_the_loader(loader: Loader, run: Any):
    options = ("--model", "sdxl", "--device", "cpu", "--dtype", "fp32", "--vram", "7.5")
    assert run("edit", "fox.png", "a wolf", *options).code == 0
    assert loader.calls == [("sdxl", "cpu", "fp32")]
    assert loader.limits == (7.5, None)
    assert loader.planned == loader.requests[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--mask-from", "requires an argument"),
        ("--extend up=8", "'up=8' is not a side and a number of pixels"),
        ("--extend left=5000", "It must be 0 to 4096"),
        ("--extend left=8,top=8,left=16", "names left twice"),
        ("--extend left=0,left=16", "names left twice"),
        ("--crop some", "crop"),
        ("--mask-from box:0,0,9,9 --mask fox.png", "contradicts mask"),
        ("--high-noise-frac 1.2 --refiner x", "1.2 is out of range. It must be 0 to 1"),
        ("--high-noise-frac 0.5", "has no effect without a second stage"),
        ("--refine ensemble", "needs a refiner"),
    ],
)
def test_edit_with_invalid_mask_or_stage_options_is_rejected(
    loader: Loader, run: Any, options: str, message: str
):
    ran = run("edit", "fox.png", "a wolf", *options.split())
    assert ran.code == 2
    assert message in ran.err
    assert not loader.requests


def test_edit_with_a_missing_mask_file_names_it(loader: Loader, run: Any):
    assert run("edit", "fox.png", "a wolf", "--mask", "no.png").err == (
        "overpaint: no.png: no such file.\n"
    )


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (("--mask-from", "box:1,2"), "give 4 numbers"),
        (("--mask-from", "star:1,2,3,4"), "names no shape; begin with one of box:"),
        (("--mask-from", "box:30,0,40,9"), "selects no pixel of the picture (20x10 pixels)"),
        (("--mask", "small.png"), "The mask is 8x8 and the picture 20x10"),
    ],
)
def test_edit_with_an_invalid_mask_is_rejected_before_loading_a_model(
    loader: Loader, run: Any, mask: tuple[str, str], message: str
):
    Image.new("L", (8, 8), 255).save("small.png")
    ran = run("edit", "fox.png", "a wolf", *mask)
    assert ran.code != 0
    assert message in ran.err
    assert not loader.calls


def test_create_accepts_a_second_stage_but_no_mask(loader: Loader, run: Any):
    assert run("create", "a fox", "--refiner", "mine", "--upscale", 2).code == 0
    assert loader.requests[0].refine == "sequential"
    assert run("create", "a fox", "--mask-from", "box:0,0,9,9").code == 2


def test_edit_with_size_keep_sets_the_field(loader: Loader, run: Any):
    assert run("edit", "fox.png", "x", "--size", "keep").code == 0
    assert loader.requests[0].size == "keep"


def test_edit_without_output_chooses_an_unused_name(loader: Loader, run: Any):
    assert run("edit", "fox.png", "x").out == "fox-overpaint.png\n"
    assert run("edit", "fox.png", "x").out == "fox-overpaint-2.png\n"
    assert run("edit", "fox.png", "x", "-n", 2).out == "fox-overpaint-0.png\nfox-overpaint-1.png\n"
    assert run("edit", "fox.png", "x", "-n", 2).out == (
        "fox-overpaint-2-0.png\nfox-overpaint-2-1.png\n"
    )


def test_edit_with_output_overwrites_the_file(loader: Loader, run: Any):
    for seed in (1, 2):
        assert run("edit", "fox.png", "x", "-o", "out.webp", "--seed", seed).out == "out.webp\n"
    assert metadata.read_settings("out.webp").fields["seed"] == 2


def test_edit_of_several_pictures_numbers_the_files(loader: Loader, run: Any):
    ran = run("edit", "fox.png", "x", "-n", 3, "--seed", 5, "-o", "a.jpg")
    assert ran.out.split() == ["a-0.jpg", "a-1.jpg", "a-2.jpg"]
    assert [metadata.read_settings(name).fields["seed"] for name in ran.out.split()] == [5, 6, 7]


def test_edit_with_json_prints_one_object(loader: Loader, run: Any):
    ran = run("edit", "fox.png", "x", "-n", 2, "--seed", 5, "--json")
    result = json.loads(ran.out)
    assert result["outputs"] == ["fox-overpaint-0.png", "fox-overpaint-1.png"]
    assert result["seeds"] == [5, 6]
    assert result["size"] == [64, 48]
    assert result["notices"] == [DEFAULT_MODEL_NOTE, "a word of warning"]
    assert result["model"] == "miniature"
    assert result["seconds"] >= 0
    assert [record["seed"] for record in result["metadata"]] == [5, 6]


def test_edit_with_quiet_prints_nothing_on_stderr(loader: Loader, run: Any):
    assert run("edit", "fox.png", "x", "--quiet") == Ran(0, "fox-overpaint.png\n", "")


def test_edit_without_a_terminal_shows_no_progress_bar(loader: Loader, run: Any):
    assert "━" not in run("edit", "fox.png", "x").err


def test_edit_on_a_terminal_shows_steps(
    loader: Loader, run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    with (tmp_path / "screen").open("w", encoding="utf-8") as screen:

        def console(**_: Any) -> Console:
            return Console(file=screen, force_terminal=True)

        monkeypatch.setattr(terminal_module, "Console", console)
        assert run("edit", "fox.png", "x").code == 0
    shown = (tmp_path / "screen").read_text(encoding="utf-8")
    assert "3/3" in shown
    assert "loading miniature" in shown


# create


def test_create_with_a_prompt_writes_a_picture(loader: Loader, run: Any):
    assert run("create", "a fox", "--size", "64x64", "--seed", 1).out == "overpaint.png\n"
    assert loader.requests == [Request(prompt="a fox", width=64, height=64, seed=1)]


def test_create_with_strength_is_rejected(loader: Loader, run: Any):
    assert run("create", "a fox", "--strength", 0.5).code == 2


# --like


def test_like_repeats_the_picture(loader: Loader, run: Any):
    run("edit", "fox.png", "a wolf", "-n", 3, "--seed", 7, "--strength", 0.4, "-m", "mine")
    ran = run("edit", "fox.png", "--like", "fox-overpaint-2.png", "-o", "again.png")
    assert ran.code == 0
    first, again = loader.requests
    assert again == first.model_copy(update={"seed": 9, "num_images": 1})
    assert loader.calls == [("mine", "auto", "auto"), ("mine", "auto", "bfloat16")]
    assert Path("again.png").read_bytes()[:8] == Path("fox.png").read_bytes()[:8]
    with Image.open("again.png") as a, Image.open("fox-overpaint-2.png") as b:
        assert a.tobytes() == b.tobytes()


def test_like_with_other_options_overrides_the_settings(loader: Loader, run: Any):
    run("edit", "fox.png", "a wolf", "--seed", 7, "-o", "a.png", "--size", "64x64")
    run("edit", "fox.png", "a cat", "--like", "a.png", "--steps", 5, "--size", "keep", "-m", "b")
    request = loader.requests[1]
    assert (request.prompt, request.seed, request.num_inference_steps) == ("a cat", 7, 5)
    assert (request.size, request.width) == ("keep", None)
    assert loader.calls[1][0] == "b"


def test_like_with_another_picture_or_other_weights_notes_it(loader: Loader, run: Any):
    run("edit", "fox.png", "a wolf", "-o", "a.png")
    Image.new("RGB", (20, 10), "blue").save("sea.png")
    same = run("edit", "fox.png", "--like", "a.png").err
    assert "another picture" not in same
    assert "weights" not in same
    loader.sha256 = "cd" * 32
    other = run("edit", "sea.png", "--like", "a.png").err
    assert "note: the settings were used on another picture." in other
    assert "note: the weights of the model differ" in other
    assert "weights of the refiner" not in other


def test_like_with_another_refiner_notes_it(loader: Loader, run: Any):
    run("edit", "fox.png", "a wolf", "-o", "a.png", "--refiner", "second")
    assert "weights" not in run("edit", "fox.png", "--like", "a.png").err
    loader.sha256 = "cd" * 32
    assert (
        "note: the weights of the refiner differ" in run("edit", "fox.png", "--like", "a.png").err
    )


def test_parts_of_the_command_line_go_to_the_model_and_the_picture(loader: Loader, run: Any):
    run("create", "a fox", "-m", "mine", "--vae", "v.safetensors", "--unet", "fast", "-o", "a.png")
    assert loader.parts == {"vae": "v.safetensors", "unet": "fast"}
    assert loader.requests[0].vae == "v.safetensors"
    record = metadata.read_settings("a.png").record
    assert record is not None
    parts = {"vae": "v.safetensors", "unet": "fast"}
    assert record["model"]["parts"] == {
        part: {"name": name, "sha256": "ab" * 32} for part, name in parts.items()
    }
    with Image.open("a.png") as picture:
        assert f"VAE hash: {'ab' * 5}, VAE: v" in picture.info["parameters"]
    loader.sha256 = "cd" * 32
    ran = run("create", "--like", "a.png", "-o", "b.png")
    assert loader.parts == parts
    assert "note: the unet differs from fast, which made the picture" in ran.err


def test_like_with_a_picture_of_a1111_uses_its_settings(loader: Loader, run: Any):
    exif = Image.Exif()
    exif[0x0110] = "prompt:{}"
    text = (
        "a castle\nSteps: 12, Sampler: Euler a, CFG scale: 6, Seed: 4, Model: other, Tiling: True"
    )
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + text.encode("utf-16-be")
    Image.new("RGB", (8, 8)).save("a1111.jpg", exif=exif)
    ran = run("create", "--like", "a1111.jpg")
    assert loader.requests[0].prompt == "a castle"
    assert loader.requests[0].num_inference_steps == 12
    assert loader.calls == [("miniature", "auto", "auto")]
    assert "note: settings not carried over: Tiling True." in ran.err
    assert "'other'" in ran.err


# sweep


def test_sweep_draws_a_grid_with_one_seed(loader: Loader, run: Any):
    ran = run(
        "sweep", "fox.png", "a wolf", "--strength", "0.2,0.5,1", "--guidance", "3,7", "--json"
    )
    result = json.loads(ran.out)
    assert result["outputs"] == ["fox-sweep.png"]
    cells = [(request.guidance_scale, request.strength) for request in loader.requests]
    assert cells == [(3, 0.2), (3, 0.5), (3, 1), (7, 0.2), (7, 0.5), (7, 1)]
    assert len({request.seed for request in loader.requests}) == 1
    assert len(result["metadata"]) == 6
    assert len(loader.calls) == 1
    with Image.open("fox-sweep.png") as sheet:
        assert list(sheet.size) == result["size"]
        assert sheet.width > 3 * 64
        assert sheet.height > 2 * 48
    found = metadata.read_settings("fox-sweep.png")
    assert found.record is not None
    assert found.record["sweep"] == {"strength": [0.2, 0.5, 1.0], "guidance_scale": [3.0, 7.0]}


def test_sweep_with_like_takes_the_guidance_of_the_settings(loader: Loader, run: Any):
    run("edit", "fox.png", "a wolf", "--guidance", 2.5, "-o", "a.png")
    run("sweep", "fox.png", "--like", "a.png", "--strength", "0.3")
    assert (loader.requests[1].guidance_scale, loader.requests[1].strength) == (2.5, 0.3)


# hint


def test_hint_of_a_pose_reads_keypoints(loader: Loader, run: Any):
    Path("pose.json").write_text('{"canvas_width": 20, "canvas_height": 10, "people": []}')
    assert run("edit", "fox.png", "x", "--control", "pose=pose.json:0.5").code == 0
    assert loader.requests[0].controls[0].scale == 0.5
    assert run("hint", "pose", "pose.json", "-o", "pose.png").code == 0
    ran = run("edit", "fox.png", "x", "--control", "pose")
    assert ran.code == 2
    assert "cannot be made from a picture; give the finished hint" in ran.err


def test_hint_writes_the_control_image(loader: Loader, run: Any):
    assert run("hint", "canny", "fox.png", "-o", "edges.png").out == "edges.png\n"
    assert codec.decode(codec.read_picture("edges.png")).size == (20, 10)
    assert run("hint", "tile", "fox.png", "-o", "t.png", "--option", "factor=2").code == 0
    assert loader.calls == []


def test_hint_with_an_estimator_writes_its_output(loader: Loader, run: Any, tmp_path: Path):
    write_estimator(tiny_estimator("depth_anything"), tmp_path / "near")
    write_estimator(tiny_estimator("upernet"), tmp_path / "what")
    fox = Image.linear_gradient("L").resize((40, 24)).convert("RGB")
    fox.save("fox.png")
    for kind, folder, colors in (("depth", "near", 100), ("normal", "near", 50)):
        ran = run("hint", kind, "fox.png", "-o", f"{kind}.png", "--estimator", folder)
        assert (ran.code, ran.out) == (0, f"{kind}.png\n"), ran.err
        shown = codec.decode(codec.read_picture(f"{kind}.png"))
        assert shown.size == (40, 24)
        assert len(set(shown.get_flattened_data())) > colors
    asked = ("--estimator", "what", "--device", "cpu")
    assert run("hint", "segmentation", "fox.png", "-o", "s.png", *asked).code == 0
    seen = np.asarray(codec.decode(codec.read_picture("s.png"))).reshape(-1, 3)
    assert {tuple(c) for c in seen.tolist()} <= {tuple(c) for c in drawing.ADE20K_PALETTE.tolist()}
    ran = run("hint", "segmentation", "fox.png", "-o", "s.png", "--estimator", "near")
    assert ran.code == 4
    assert "estimates depth; this control image needs classes" in ran.err
    assert loader.calls == []


# What goes wrong


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ("edit fox.png x --strength 1.1", 2, "--strength: 1.1 is out of range. It must be 0 to 1"),
        ("edit fox.png x --strength nan", 2, "--strength: nan is not finite"),
        ("edit fox.png x --steps 0", 2, "--steps: 0 is out of range. It must be 1 to 1000"),
        ("edit fox.png x --steps 1000000000", 2, "--steps: 1000000000"),
        ("edit fox.png x --steps many", 2, "--steps"),
        ("edit fox.png x --size 1023x1024", 2, "--size: 1023 is not a multiple of 8"),
        ("edit fox.png x --size big", 2, "--size: 'big' is not a size. Give WIDTHxHEIGHT"),
        ("edit fox.png x --sampler dpmp_2m", 2, "Did you mean dpmpp_2m"),
        ("edit fox.png x --guidance-interval 3", 2, "--guidance-interval: "),
        ("edit fox.png x --guidance-interval a,b", 2, "'a,b' is not a list of numbers"),
        ("edit fox.png x --guidance-interval 0,2", 2, "--guidance-interval: 2.0 is out"),
        ("edit fox.png x --nonsense", 2, "--nonsense"),
        (
            "edit fox.png x --control cany",
            2,
            "--control: There is no hint 'cany'. Did you mean canny?",
        ),
        ("edit fox.png x --control canny=no.png:0.7", 3, "no.png: no such file"),
        ("edit fox.png x --control canny=text.png", 3, "text.png is not a picture"),
        (
            "edit fox.png x --control canny@fox.png:3",
            2,
            "--control: 3.0 is out of range.",
        ),
        ("edit fox.png x --control canny:0.9-0.1", 2, "--control: 0.9 is after the end"),
        ("edit fox.png x --control canny:lo=4", 2, "canny has no option 'lo'. Did you mean low"),
        ("edit fox.png x --control canny:low=x", 2, "'low=x' is not a name and a number"),
        ("edit fox.png x --control canny@fox.png:low=4", 2, "no effect on a finished hint"),
        ("edit fox.png x --control canny:what", 2, "'what' is not a scale, a range or an option"),
        ("edit fox.png x --control =3", 2, "'=3' is not a control"),
        ("edit fox.png x --control depth:low=4", 2, "depth has no option 'low'. It has none"),
        ("edit fox.png x --control canny:estimator=a/b", 2, "--control: It has no effect on canny"),
        ("edit fox.png x --control depth@fox.png:estimator=a/b", 2, "no effect on a finished hint"),
        ("create x --control canny", 2, "The canny control image needs a picture"),
        ("edit fox.png x --lora ink:nan", 2, "--lora: nan is not finite"),
        ("edit fox.png x --lora ink:a", 2, "--lora: 'a' is not a list of numbers"),
        ("edit fox.png <lora:ink:x>", 2, "'<lora:ink:x>' is not a LoRA tag"),
        ("edit fox.png x --lora-lenient", 2, "has no effect without a LoRA"),
        ("models add none.safetensors", 4, "There is no file: none.safetensors"),
        ("hint cany fox.png -o a.png", 2, "KIND: There is no hint 'cany'"),
        ("hint canny none.png -o a.png", 3, "none.png: no such file."),
        (
            "hint canny fox.png -o a.png --estimator a/b",
            2,
            "--estimator: It has no effect on",
        ),
        ("hint depth fox.png -o a.png --option low=3", 2, "--option: depth has no option 'low'"),
        ("hint depth fox.png -o a.png --estimator depthany", 4, "Did you mean depth-anything?"),
        ("hint depth fox.png -o a.png --device tpu", 2, "--device: Unknown device 'tpu'"),
        ("hint canny fox.png -o a.bmp", 5, "the suffix is unknown; use one of .png"),
        ("sweep fox.png x -o a.webp", 5, "A sweep may exceed WebP's limit of 16,383 pixels"),
        ("edit fox.png", 2, "PROMPT: It is missing. Give a prompt, or --like FILE."),
        ("edit", 2, "PICTURE: It is missing. Give a picture"),
        ("edit fox.png --upscale 2", 2, "cannot enlarge a picture without a prompt"),
        ("edit fox.png fox.png", 2, "PROMPT: It is missing"),
        ("edit fox.png fox.png x -o out.png", 5, "2 pictures need a folder; write out.png/."),
        ("edit fox.png x -n 2 -o -", 5, "stdout takes one picture"),
        ("edit fox.png x -o - --json", 2, "--output: - writes the picture to stdout"),
        ("edit http://127.0.0.1/a.png x", 3, "an address that is not public"),
        ("edit fox.png x --mask http://127.0.0.1/a.png", 3, "an address that is not public"),
        ("edit fox.png x --threads 0", 2, "--threads"),
        ("edit none.png x", 3, "none.png: no such file."),
        ("edit *.gif x", 3, "*.gif: no such file."),
        ("edit empty.png x", 3, "empty.png is empty (0 bytes)"),
        ("edit text.png x", 3, "text.png is not a picture"),
        ("edit fox.png x --like fox.png", 3, "fox.png carries no settings"),
        ("edit fox.png x -o text.png/out.png", 5, "The folder text.png cannot be made"),
        ("edit fox.png x -o out.bmp", 5, "the suffix is unknown; use one of .png"),
        ("create x --size keep", 2, "--size: 'keep' needs an image"),
        ("sweep fox.png x --strength 0.2,oops", 2, "--strength: '0.2,oops'"),
        ("sweep fox.png x --strength 0.2,1.5", 2, "--strength: 1.5 is out of range"),
        ("sweep fox.png x --guidance 0.5", 2, "--guidance: 0.5 is between"),
        ("sweep fox.png x -o text.png/", 5, "The folder text.png cannot be made"),
        ("info none.png", 3, "no such file"),
    ],
)
def test_commands_with_invalid_arguments_fail_before_loading_a_model(
    arguments: str, code: int, words: str, loader: Loader, run: Any
):
    Path("empty.png").touch()
    Path("text.png").write_text("hello")
    before = sorted(Path().iterdir())
    ran = run(*arguments.split())
    assert ran.code == code
    assert words in ran.err
    assert "Traceback" not in ran.err
    assert ran.out == ""
    assert loader.calls == []
    assert sorted(Path().iterdir()) == before


@pytest.mark.parametrize(
    ("error", "code"),
    [(DeviceError("out of memory; close something."), 6), (KeyboardInterrupt(), 130)],
)
def test_edit_that_ends_early_leaves_no_file(
    error: BaseException, code: int, loader: Loader, run: Any
):
    loader.error = error
    ran = run("edit", "fox.png", "x", "-o", "out.png")
    assert ran.code == code
    assert "Traceback" not in ran.err
    assert [path.name for path in Path().iterdir()] == ["fox.png"]


def test_interrupt_before_the_first_picture_says_that_no_file_was_written(loader: Loader, run: Any):
    loader.error = KeyboardInterrupt()
    ran = run("edit", "fox.png", "x", "-o", "out.png")
    assert ran.code == 130
    assert ran.err.splitlines()[-1] == "overpaint: interrupted. No file was written."


def test_interrupt_while_saving_names_the_complete_files(
    loader: Loader, run: Any, monkeypatch: pytest.MonkeyPatch
):
    write = metadata.write_picture

    def interrupted(image: Image.Image, path: Path, record: Any) -> None:
        if path.name == "out-2.png":
            raise KeyboardInterrupt
        write(image, path, record)

    monkeypatch.setattr(metadata, "write_picture", interrupted)
    ran = run("edit", "fox.png", "x", "-o", "out.png", "-n", "4")
    assert ran.code == 130
    assert ran.err.splitlines()[-1] == "overpaint: interrupted. Complete: out-0.png, out-1.png"
    assert {path.name for path in Path().iterdir()} == {"fox.png", "out-0.png", "out-1.png"}


def test_interrupt_of_models_add_names_the_added_files(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("a", "b"):
        save_file(
            {"lora_unet_mid.lora_down.weight": np.zeros((1, 1), np.float32)},
            tmp_path / f"{name}.safetensors",
        )
    monkeypatch.setenv("OVERPAINT_HOME", str(tmp_path / "home"))
    add = Library.add

    def interrupted(self: Library, source: Path, *rest: Any) -> Any:
        if source.stem == "b":
            raise KeyboardInterrupt
        return add(self, source, *rest)

    monkeypatch.setattr(Library, "add", interrupted)
    ran = run("models", "add", tmp_path)
    assert ran.code == 130
    assert ran.err.splitlines()[-1] == "overpaint: interrupted. Complete: a"


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_full_stdout_after_a_saved_picture_is_an_error_without_traceback(
    loader: Loader, run: Any, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
):
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        ran = run("edit", "fox.png", "x", "-o", "out.png", *options)
        monkeypatch.undo()
    assert ran.code == 5
    assert ran.err.splitlines()[-2:] == [
        "overpaint: saved, but not printed: out.png",
        "overpaint: stdout cannot be written: No space left on device. Free space, or write "
        "elsewhere.",
    ]


@pytest.mark.parametrize("command", ["overpaint --version", "overpaint models list --json"])
@pytest.mark.parametrize("target", ["> /dev/full", ">&-", "2> /dev/full > /dev/full"])
def test_command_with_a_full_or_closed_stdout_prints_no_traceback(command: str, target: str):
    program = command.replace("overpaint", f"{sys.executable} -m overpaint", 1)
    done = subprocess.run(
        f"{program} {target}", shell=True, capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert (done.returncode == 0) == (target == ">&-")


def test_create_with_a_missing_model_exits_with_its_code(
    loader: Loader, run: Any, monkeypatch: pytest.MonkeyPatch
):
    def load(model: str, **_: str) -> FakePainter:
        raise ModelNotFoundError(f"There is no model {model!r}.")

    monkeypatch.setitem(vars(overpaint), "load", load)
    assert run("create", "x", "-m", "sdx") == Ran(4, "", "overpaint: There is no model 'sdx'.\n")


def test_main_with_a_defect_raises_it(loader: Loader):
    loader.error = ZeroDivisionError("a defect")
    with pytest.raises(ZeroDivisionError):
        main(["create", "x"])


# info and the rest


def test_info_prints_the_settings(loader: Loader, run: Any):
    run("edit", "fox.png", "a wolf", "--seed", 7, "-o", "a.png")
    ran = run("info", "a.png")
    assert ran.code == 0
    lines = dict(line.split(maxsplit=1) for line in ran.out.splitlines())
    assert lines["prompt"] == "a wolf"
    assert lines["seed"] == "7"
    assert lines["model"] == "miniature"
    assert lines["weights"] == "ab" * 32
    assert lines["input"] == codec.read_picture("fox.png").sha256
    assert lines["result"] == "64x48"
    assert "torch" in lines["versions"]
    assert "prompt_2" not in lines
    data = json.loads(run("info", "a.png", "--json").out)
    assert data["program"] == "overpaint"
    assert data["record"]["input_sha256"] == codec.read_picture("fox.png").sha256


def test_info_prints_the_watermark(loader: Loader, run: Any):
    Image.effect_noise((256, 256), 20).convert("RGB").save("large.png")
    made, why = watermark.add_watermark(codec.decode(codec.read_picture("large.png")))
    assert why is None
    made.save("marked.png")  # and nothing else in it
    assert run("info", "marked.png").out == "watermark  SDXL's, invisible\n"
    assert json.loads(run("info", "marked.png", "--json").out) == {"watermark": True}
    assert run("info", "large.png").code == 3


def test_create_of_a_picture_too_small_for_a_watermark_notes_it(loader: Loader, run: Any):
    ran = run("create", "a cup", "--watermark", "-o", "a.png")
    assert ran.code == 0
    assert "64x48 pixels are too few for a watermark" in ran.err
    lines = run("info", "a.png").out.splitlines()
    assert lines[-1].split() == ["watermark", "none"]
    assert json.loads(run("info", "a.png", "--json").out)["watermark"] is False


def test_info_prints_notes_on_settings_without_a_counterpart(loader: Loader, run: Any):
    exif = Image.Exif()
    text = "x\nSteps: 12, Sampler: Restart, Seed: 4"
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + text.encode("utf-16-be")
    Image.new("RGB", (8, 8)).save("a.jpg", exif=exif)
    assert "note: left out: Overpaint has no sampler 'Restart'." in run("info", "a.jpg").out


def test_models_add_takes_folders_and_many_files(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OVERPAINT_HOME", str(tmp_path / "home"))
    folder = tmp_path / "new"
    folder.mkdir()
    for name in ("my ink", "墨"):
        save_file({"a.lora_down.weight": np.ones((2, 2), "f")}, folder / f"{name}.safetensors")
    save_file({"x": np.ones(2, "f")}, folder / "vae.safetensors")
    ran = run("models", "add", folder)
    assert ran.code == 4
    assert ran.out == "added my ink: lora\nadded 墨: lora\n"
    assert "not added: " in ran.err
    assert "vae.safetensors is neither a LoRA" in ran.err
    assert run("models", "show", "墨").code == 0
    files = (folder / "my ink.safetensors", folder / "墨.safetensors")
    assert "2 files cannot have one name" in run("models", "add", *files, "--name", "x").err
    assert run("models", "add", *files).code == 0


def test_models_of_a_folder_in_place_are_listed(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OVERPAINT_HOME", str(tmp_path / "home"))
    (tmp_path / "loras").mkdir()
    save_file({"a.lora_down.weight": np.ones((2, 2), "f")}, tmp_path / "loras" / "ink.safetensors")
    assert "ink" not in run("models", "list").out.split()
    assert "ink" in run("models", "list", "--models-dir", tmp_path / "loras").out.split()
    monkeypatch.setenv("OVERPAINT_MODELS_DIRS", str(tmp_path / "loras"))
    shown = json.loads(run("models", "show", "ink.safetensors", "--json").out)
    assert shown["path"] == str(tmp_path / "loras" / "ink.safetensors")
    assert run("models", "list", "--models-dir", tmp_path / "none").code == 4


def test_edit_passes_folders_of_models_and_paths_of_loras(loader: Loader, run: Any, tmp_path: Path):
    lora = "./a:b/ink.safetensors:0.8:text=0.5"
    ran = run("edit", "fox.png", "x", "--lora", lora, "--models-dir", tmp_path, "-o", "a.png")
    assert ran.code == 0
    assert loader.models_dirs == (tmp_path,)
    [own] = loader.requests[0].loras
    assert (own.name, own.scale, own.text_scale) == ("./a:b/ink.safetensors", 0.8, 0.5)


def test_models_list_prints_known_models(run: Any):
    assert "miniature" in run("models", "list").out
    rows = json.loads(run("models", "list", "--json").out)
    assert {"name", "family", "license", "repository", "path"} == set(rows[0])


def test_doctor_reports_the_memory_of_a_request(tmp_path: Path, run: Any):
    file = tmp_path / "request.json"
    file.write_text('{"prompt": "a cup", "num_images": 2}')
    found = json.loads(run("doctor", "--request", file, "--json").out)["request"]
    assert found["total"] == found["weights"] + max(found[n] for n in ("encode", "step", "decode"))
    assert min(found.values()) > 0
    assert f"{file}: 0.0" in run("doctor", "--request", file).out


def test_doctor_plans_the_memory_of_a_gpu(tmp_path: Path, run: Any):
    file = tmp_path / "request.json"
    file.write_text('{"prompt": "a cup"}')
    found = json.loads(run("doctor", "--request", file, "--vram", "0.03", "--json").out)
    assert found["request"]["limit"]["max_bytes"] == 27_000_000
    assert "0.0 GB of weights have room" in run("doctor", "--request", file, "--vram", "0.03").out
    assert "all weights have room" in run("doctor", "--request", file, "--vram", "8").out
    assert "of RAM: all weights have room" in run("doctor", "--request", file, "--ram", "8").out
    assert "--ram: It needs --request" in run("doctor", "--ram", "8").err
    assert "--vram: It needs --request" in run("doctor", "--vram", "8").err


@pytest.mark.parametrize(
    ("text", "message"),
    [("[]", "has no JSON object"), ("{", "cannot be read as JSON"), ('{"stepz": 1}', "stepz")],
)
def test_doctor_refuses_what_is_no_request(tmp_path: Path, run: Any, text: str, message: str):
    file = tmp_path / "request.json"
    file.write_text(text)
    ran = run("doctor", "--request", file)
    assert ran.code == 2
    assert message in ran.err


def test_doctor_of_an_unknown_model_names_it(tmp_path: Path, run: Any):
    file = tmp_path / "request.json"
    file.write_text("{}")
    assert "no-such-model" in run("doctor", "--request", file, "--model", "no-such-model").err


def test_doctor_reports_the_torch_version(run: Any):
    ran = run("doctor")
    assert ran.code == 0
    assert "torch" in ran.out


def test_version_option_prints_the_version(run: Any):
    assert run("--version") == Ran(0, f"overpaint {overpaint.__version__}\n", "")


@pytest.mark.parametrize("command", [[], ["edit"], ["create"], ["sweep"], ["info"], ["models"]])
def test_help_of_every_command_prints_its_usage(command: list[str], run: Any):
    ran = run(*command, "--help")
    assert ran.code == 0
    assert "Usage: overpaint" in ran.out


def test_help_imports_no_heavy_module():
    code = (
        "import sys\nfrom overpaint.cli.main import main\n"
        "try:\n    main(['edit', '--help'])\n"
        "except SystemExit:\n"
        f"    sys.exit(', '.join({HEAVY_MODULES} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert ran.stderr == b"\n"


def test_import_of_the_package_imports_no_heavy_module():
    heavy = HEAVY_MODULES | {"pydantic", "typer"}
    code = f"import sys, overpaint; sys.exit(', '.join({heavy} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert ran.stderr == b"\n"
