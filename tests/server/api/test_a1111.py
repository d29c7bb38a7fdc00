"""AUTOMATIC1111's API: bodies that its clients send, one real client, and the miniature."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webuiapi
from fastapi.testclient import TestClient
from PIL import Image, PngImagePlugin

from overpaint.engine.config import EngineConfig
from overpaint.engine.worker import make_engine
from overpaint.errors import RequestError
from overpaint.imaging import hints
from overpaint.picture import Picture
from overpaint.registry import SAMPLERS
from overpaint.request import Request
from overpaint.request.parts import Control
from overpaint.server.api.a1111.controlnet import (
    KIND_BY_OLD_PREPROCESSOR,
    KIND_BY_PREPROCESSOR,
    Unit,
    read_controls,
)
from overpaint.server.api.a1111.image_fields import read_mask
from overpaint.server.api.a1111.option_fields import Options
from overpaint.server.api.a1111.protocol import ImageInputs, TextInputs
from overpaint.server.api.a1111.translation import (
    mark_embeddings,
    resolve_sampler_and_schedule,
    to_requests,
)
from overpaint.server.jobs.service import Service
from overpaint.server.settings import HttpSettings
from overpaint.server.store.job_rows import NewJob
from overpaint.server.store.origins import A1111Origin
from tests.docs.blocks import first_block
from tests.server.live import client_of, running, until

HOUSE = (Path(__file__).parents[3] / "examples" / "house.png").read_bytes()
RAW = base64.b64encode(HOUSE).decode()
URI = f"data:image/png;base64,{RAW}"
PATIENCE = 60.0

OPEN_WEBUI = {
    "prompt": "a cup",
    "batch_size": 2,
    "width": 512,
    "height": 512,
    "steps": 3,
    "negative_prompt": "a car",
    "cfg_scale": 6.5,
    "sampler_name": "DPM++ 2M",
    "scheduler": "Karras",
}
"""Body of Open WebUI, with parameters that its administrator added."""

SILLY_TAVERN = {
    "url": "http://localhost:7860",
    "auth": "user:secret",
    "prompt": "a cup",
    "negative_prompt": "a car",
    "sampler_name": "Euler a",
    "scheduler": "Automatic",
    "steps": 3,
    "cfg_scale": 7,
    "width": 512,
    "height": 512,
    "restore_faces": False,
    "enable_hr": True,
    "hr_upscaler": "Latent",
    "hr_scale": 1.5,
    "hr_additional_modules": [],
    "denoising_strength": 0.7,
    "hr_second_pass_steps": 0,
    "override_settings": {"CLIP_stop_at_last_layers": 3},
    "override_settings_restore_afterwards": True,
    "clip_skip": 3,
    "save_images": True,
    "send_images": True,
    "do_not_save_grid": False,
    "do_not_save_samples": False,
}

KRITA = {
    "prompt": "a cup",
    "negative_prompt": "",
    "styles": [],
    "seed": 7,
    "sampler_name": "DPM++ 2M Karras",
    "steps": 4,
    "cfg_scale": 7.0,
    "batch_size": 1,
    "n_iter": 1,
    "refiner": "None",
    "refiner_switch_at": 0.8,
    "init_images": [RAW],
    "mask": RAW,
    "mask_blur": 3,
    "inpainting_fill": 1,
    "inpainting_mask_invert": 0,
    "inpaint_full_res": True,
    "inpaint_full_res_padding": 32,
    "denoising_strength": 0.5,
    "resize_mode": 1,
    "width": 512,
    "height": 512,
    "restore_faces": False,
    "tiling": False,
    "include_init_images": False,
    "save_images": False,
    "override_settings": {
        "sd_model_checkpoint": "n",
        "sd_vae": "Automatic",
        "img2img_color_correction": True,
    },
    "override_settings_restore_afterwards": False,
}
"""Body of a Krita plug-in that paints in a selection."""


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with client_of(tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """Share one server among tests that leave nothing behind."""
    with client_of(tmp_path_factory.mktemp("data")) as made:
        yield made


def service_of(client: TestClient) -> Service:
    application: Any = client.app
    return application.state.service


def post(client: TestClient, path: str, body: Any, status: int = 200) -> Any:
    answer = client.post(f"/sdapi/v1/{path}", json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


def get(client: TestClient, path: str) -> Any:
    answer = client.get(f"/sdapi/v1/{path}")
    assert answer.status_code == 200, answer.text
    return answer.json()


def requested(client: TestClient) -> tuple[str, dict[str, Any]]:
    """Return the model and the request of the newest job."""
    (job,) = service_of(client).jobs.list_page(None, 1)
    return job.model, job.request


def opened(image: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(image)))


def test_open_webui_body_makes_images(client: TestClient) -> None:
    made = post(client, "txt2img", OPEN_WEBUI)
    assert [opened(image).size for image in made["images"]] == [(8, 8)] * 2
    info = json.loads(made["info"])
    first = info["seed"]
    assert info["all_seeds"] == [first, first + 1]
    assert opened(made["images"][0]).getpixel((0, 0)) == (first % 256, first // 256 % 256, 7)
    assert f"Seed: {first + 1}" in info["infotexts"][1]
    assert made["parameters"]["cfg_scale"] == 6.5
    model, request = requested(client)
    assert model == "m"
    assert (request["sampler"], request["schedule"]) == ("dpmpp_2m", "karras")
    assert (request["width"], request["num_inference_steps"]) == (512, 3)
    assert request["guidance_scale"] == 6.5


def test_silly_tavern_body_makes_image_without_storing_credentials(client: TestClient) -> None:
    made = post(client, "txt2img", SILLY_TAVERN)
    assert len(made["images"]) == 1
    assert "secret" not in json.dumps(made)
    _, request = requested(client)
    assert (request["refine"], request["upscale"]) == ("sequential", 1.5)
    assert (request["upscale_in"], request["refine_strength"]) == ("latents", 0.7)
    assert request["refine_steps"] is None
    assert request["clip_skip"] == 1
    (job,) = service_of(client).jobs.list_page(None, 1)
    assert "secret" not in job.origin.model_dump_json()


def test_krita_body_repaints_selection(client: TestClient) -> None:
    made = post(client, "img2img", KRITA)
    assert len(made["images"]) == 1
    assert "init_images" not in made["parameters"]
    model, request = requested(client)
    assert model == "n"
    assert (request["strength"], request["steps"]) == (0.5, "truncate")
    assert (request["fill"], request["crop"], request["mask_blur"]) == ("original", 32, 6)
    assert (request["size"], request["width"]) == ("keep", None)
    assert (request["fit"], request["match_colors"]) == ("cover", True)
    assert (request["sampler"], request["schedule"]) == ("dpmpp_2m", "karras")
    # Options that are not restored also apply to the next request.
    assert get(client, "options")["sd_model_checkpoint"] == "n"
    made = post(client, "txt2img", {"prompt": "a cup", "steps": 1})
    assert requested(client)[0] == "n"
    assert (made["parameters"]["width"], made["parameters"]["height"]) == (8, 8)


def test_webuiapi_client_makes_and_describes_images(tmp_path: Path) -> None:
    """The real client talks to the server."""
    with running(tmp_path) as url:
        api: Any = webuiapi.WebUIApi(baseurl=f"{url}/sdapi/v1")
        try:
            made = api.txt2img(prompt="a cup", seed=7, steps=3, batch_size=2)
            assert [image.size for image in made.images] == [(8, 8)] * 2
            assert made.info["all_seeds"] == [7, 8]
            assert "Seed: 8" in made.images[1].info["parameters"]
            assert "Seed: 7" in api.png_info(made.image).info
            with Image.open(io.BytesIO(HOUSE)) as house:
                mask = Image.new("L", house.size, 255)
                assert api.img2img(images=[house], steps=3).image.size == (8, 8)
                assert api.img2img(images=[house], mask_image=mask, steps=3).image.size == (8, 8)
            assert "Euler a" in api.util_get_sampler_names()
            assert "karras" in api.util_get_scheduler_names()
            assert api.util_get_model_names() == ["miniature", "sdxl"]
            api.util_set_model("sdxl")
            assert api.util_get_current_model() == "sdxl"
            assert api.get_progress()["progress"] == 0
            assert api.interrupt() == {}
            assert api.skip() == {}
            picture: Any = house
            unit = webuiapi.ControlNetUnit(image=picture, module="canny", model="miniature-canny")
            steered = api.txt2img(controlnet_units=[unit], alwayson_scripts={}, steps=3)
            assert len(steered.images) == 1
            unit.model = "none"
            with pytest.raises(
                RuntimeError, match=r"alwayson_scripts\.ControlNet\.model: There is no model"
            ):
                api.txt2img(controlnet_units=[unit], alwayson_scripts={})
            assert "miniature-canny" in api.controlnet_model_list()
            assert "canny" in api.controlnet_module_list()
            for listing in ("sd_vae", "upscalers", "loras", "embeddings", "scripts", "schedulers"):
                assert getattr(api, f"get_{listing}")() is not None
        finally:
            api.session.close()


def test_docs_example_runs_with_the_real_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = first_block("guides/clients/a1111.md", "python")
    monkeypatch.chdir(tmp_path)
    with running(tmp_path / "data") as url:
        script = lines.replace("port=8000", f"port={url.rpartition(':')[2]}")
        told = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    assert b"Steps: 30, Sampler: DPM++ 2M, Schedule type: Karras" in told.stdout
    with Image.open(tmp_path / "cup-a1111.png") as cup:
        assert cup.size == (8, 8)


def test_img2img_with_miniature_repaints_white_area(tmp_path: Path) -> None:
    """The miniature repaints white areas only."""
    config = EngineConfig(("miniature",), "cpu", "fp32", tmp_path / "home")
    engine_factory = partial(make_engine, config)
    side = 128
    with Image.open(io.BytesIO(HOUSE)) as house:
        before = house.convert("RGB").resize((side, side))
    mask = Image.new("L", before.size)
    mask.paste(255, (0, 0, side // 2, side))
    body = {
        "init_images": [based(before)],
        "mask": based(mask),
        "mask_blur": 0,
        "inpaint_full_res": False,
        "width": side,
        "height": side,
        "denoising_strength": 1,
        "prompt": "a red cup",
        "steps": 4,
        "seed": 7,
    }
    with client_of(tmp_path, engine_factory=engine_factory, models=config.models) as client:
        made = post(client, "img2img", body)
        again = post(client, "img2img", body | {"override_settings": {"samples_format": "webp"}})
        inverted = post(client, "img2img", body | {"inpainting_mask_invert": 1})
        text = post(client, "txt2img", {"prompt": "a cup", "steps": 2, "width": 64, "height": 96})
        unit = control(image=based(before), module="canny", model="miniature-canny")
        plain = {"prompt": "a house", "steps": 4, "seed": 7, "width": side, "height": side}
        free, steered = (post(client, "txt2img", plain | more) for more in ({}, unit))
    old = np.asarray(before, np.int16)
    changed = np.abs(np.asarray(opened(made["images"][0]), np.int16) - old)
    assert changed[:, side // 2 :].max() == 0
    assert changed[:, : side // 2].mean() > 1
    flipped = np.abs(np.asarray(opened(inverted["images"][0]), np.int16) - old)
    assert flipped[:, : side // 2].max() == 0
    assert flipped[:, side // 2 :].mean() > 1
    assert along_edges(steered, before) > along_edges(free, before)
    assert opened(again["images"][0]).format == "WEBP"
    assert opened(text["images"][0]).size == (64, 96)
    info = json.loads(text["info"])
    assert (info["width"], info["height"]) == (64, 96)


def along_edges(made: Any, picture: Image.Image) -> float:
    """Return the correlation of the edges of a result and of an image, -1 to 1."""
    own, others = (
        np.asarray(
            hints.make_hint("softedge", image.convert("RGB")).convert("L"), np.float64
        ).ravel()
        for image in (opened(made["images"][0]), picture)
    )
    return float(np.corrcoef(own, others)[0, 1])


def based(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_progress_of_running_job_rises_until_interrupt(tmp_path: Path) -> None:
    with client_of(tmp_path, 0.02) as client, ThreadPoolExecutor(1) as waiting:
        idle = get(client, "progress")
        assert (idle["progress"], idle["state"]["job_count"]) == (0, 0)
        body = {"prompt": "a cup", "steps": 1000}
        answer = waiting.submit(post, client, "txt2img", body)
        until(lambda: get(client, "progress")["current_image"] is not None)
        now = get(client, "progress")
        assert 0.01 <= now["progress"] < 1
        assert now["eta_relative"] > 0
        assert now["state"]["sampling_steps"] == 1000
        assert opened(now["current_image"]).format == "JPEG"
        assert get(client, "progress?skip_current_image=true")["current_image"] is None
        assert post(client, "interrupt", {}) == {}
        made = answer.result()
        assert made["images"] == []
        assert json.loads(made["info"])["interrupted"]
        until(lambda: get(client, "progress")["progress"] == 0)


def test_progress_finds_a_request_behind_many_newer_jobs(client: TestClient) -> None:
    store = service_of(client).jobs
    store.submit(NewJob("old", "", "away", {}, 1.0, A1111Origin(task="mine")))
    for number in range(201):  # No worker has their model.
        store.submit(NewJob(f"newer{number}", "", "away", {}, 1.0))
    assert get(client, "progress")["state"]["job"] == "old"
    named = client.post("/internal/progress", json={"id_task": "mine"}).json()
    assert named["queued"]
    assert client.get("/internal/pending-tasks").json()["tasks"] == ["mine"]
    assert client.post("/sdapi/v1/interrupt").status_code == 200
    assert get(client, "progress")["state"]["job"] == ""


def test_api_keys_have_separate_options_and_jobs(tmp_path: Path) -> None:
    """Clients send a name and a password; the password is the key."""
    with (
        client_of(tmp_path, 0.02, api_keys=("one", "two")) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        one, two = ({"Authorization": f"Basic {basic(key)}"} for key in ("one", "two"))
        path = "/sdapi/v1/"
        refused = client.get(f"{path}options")
        assert (refused.status_code, refused.json()["error"]) == (401, "HTTPException")
        for wrong in ("Basic !", f"Basic {basic('three')}", "Basic", "Bearer three"):
            headers = {"Authorization": wrong}
            assert client.get(f"{path}options", headers=headers).status_code == 401
        client.post(f"{path}options", json={"sd_model_checkpoint": "n"}, headers=one)
        shown = [client.get(f"{path}options", headers=key).json() for key in (one, two)]
        assert [options["sd_model_checkpoint"] for options in shown] == ["n", "m"]
        body = {"steps": 1000}
        answer = pool.submit(client.post, f"{path}txt2img", json=body, headers=one)
        until(lambda: client.get(f"{path}progress", headers=one).json()["progress"] > 0)
        assert client.get(f"{path}progress", headers=two).json()["progress"] == 0
        assert client.post(f"{path}interrupt", headers=two).status_code == 200
        assert client.get(f"{path}progress", headers=one).json()["state"]["interrupted"] is False
        client.post(f"{path}interrupt", headers=one)
        assert answer.result().json()["images"] == []


def basic(key: str) -> str:
    return base64.b64encode(f"any:{key}".encode()).decode()


def test_failed_job_returns_matching_status(client: TestClient) -> None:
    for prompt, status, why in (("refuse", 422, "Refused"), ("break", 500, "defect")):
        wrong = post(client, "txt2img", {"prompt": prompt, "steps": 2}, status)
        assert set(wrong) == {"error", "detail", "body", "errors"}
        assert why in wrong["errors"]


def test_server_shutdown_returns_503_to_waiting_client(tmp_path: Path) -> None:
    http = HttpSettings(disconnect_poll_interval_s=0.05)
    with client_of(tmp_path, 0.02, http=http) as client, ThreadPoolExecutor(1) as waiting:
        answer = waiting.submit(post, client, "txt2img", {"steps": 1000}, 503)
        until(lambda: get(client, "progress")["progress"] > 0)
        service_of(client).drained = True
        assert "continues when the server starts again" in answer.result()["detail"]


IMAGE: dict[str, Any] = {"init_images": [URI]}
HIRES = {"enable_hr": True}


@pytest.mark.parametrize("kind", ["png", "jpg", "webp"])
@pytest.mark.parametrize("prompt", ["一" * 400, "Ā cup, 杯 🏆"])
def test_infotext_with_unicode_prompt_keeps_it(client: TestClient, kind: str, prompt: str) -> None:
    body = {"prompt": prompt, "steps": 2, "override_settings": {"samples_format": kind}}
    (told,) = json.loads(post(client, "txt2img", body)["info"])["infotexts"]
    assert told.split("\n")[0] == prompt


def control(**fields: Any) -> dict[str, Any]:
    """Make a body with a ControlNet unit."""
    return {"alwayson_scripts": {"ControlNet": {"args": [{"image": RAW} | fields]}}}


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("txt2img", {"steps": 0}, "steps"),
        ("txt2img", {"cfg_scale": 0.5}, "cfg_scale: 0.5"),
        ("txt2img", {"batch_size": 9, "n_iter": 8}, "batch_size: 72"),
        ("txt2img", {"tiling": True}, "is not supported"),
        ("txt2img", {"restore_faces": True}, "restore_faces"),
        ("txt2img", {"subseed_strength": 1.1}, "subseed_strength"),
        ("txt2img", {"sampler_name": "Restart"}, "sampler_name: There is no sampler 'Restart'"),
        ("txt2img", {"scheduler": "KL Optimal"}, "scheduler: There is no schedule"),
        ("txt2img", {"sampler_name": "Euler a", "eta": 0.5}, "eta: 0.5"),
        ("txt2img", {"script_name": "X/Y/Z plot"}, "script_name"),
        ("txt2img", {"alwayson_scripts": {"ADetailer": {"args": [True]}}}, "scripts.ADetailer"),
        ("txt2img", control(module="canny", image=None), "ControlNet.image: The unit has no image"),
        ("txt2img", control(module="canny", image=[1]), "ControlNet.image: "),
        ("txt2img", {"infotext": eval("[" * 90 + "]" * 90)}, "infotext"),
        (
            "txt2img",
            control(module="cany"),
            "ControlNet.module: Unknown preprocessor 'cany'. Did you mean canny",
        ),
        ("txt2img", control(model="pen"), "ControlNet.module: The name of the ControlNet, 'pen'"),
        (
            "txt2img",
            control(module="canny", model="pen"),
            "ControlNet.model: There is no model",
        ),
        ("txt2img", control(module="canny", weight=3), "ControlNet.weight: "),
        ("txt2img", control(module="canny", guidance_start=1, guidance_end=0), "guidance_start: 1"),
        ("txt2img", HIRES | control(module="canny", hr_option="High res only"), "hr_option: "),
        ("txt2img", {"alwayson_scripts": {"ControlNet": {"args": [3]}}}, "ControlNet: "),
        ("txt2img", {"prompt": "<lora:none:1>"}, "prompt: Unknown lora"),
        ("txt2img", {"override_settings": {"eta_noise_seed_delta": 3}}, "eta_noise_seed_delta"),
        ("txt2img", {"override_settings": {"sd_vae": "x.pt"}}, "sd_vae"),
        (
            "txt2img",
            {"override_settings": {"sd_model_checkpoint": "z"}},
            "override_settings.sd_model_checkpoint: There is no model 'z'",
        ),
        ("txt2img", {"refiner_checkpoint": "r"}, "refiner_checkpoint: There is no model 'r'"),
        ("txt2img", HIRES | {"hr_upscaler": "4x-UltraSharp"}, "hr_upscaler: unknown"),
        ("txt2img", HIRES | {"hr_resize_x": 4}, "hr_resize_x"),
        ("txt2img", HIRES | {"hr_resize_x": 1024, "width": 512}, "hr_resize_x: It needs width"),
        ("txt2img", HIRES | {"hr_prompt": "x"}, "hr_prompt: 'x'"),
        ("txt2img", HIRES | {"hr_sampler_name": "Heun"}, "hr_sampler_name: 'Heun'"),
        ("txt2img", HIRES | {"denoising_strength": 0}, "denoising_strength: 0"),
        ("txt2img", HIRES | {"refiner_checkpoint": "m"}, "refiner_checkpoint: It contradicts"),
        ("img2img", {}, "init_images"),
        ("img2img", {"init_images": ["%"]}, "init_images: The text is not base64"),
        ("img2img", {"init_images": ["ftp://a,b"]}, "init_images: The value is neither"),
        ("img2img", {"init_images": ["http://127.0.0.1/"]}, "init_images.0: The picture cannot"),
        ("img2img", {"init_images": ["aGVsbG8="]}, "not a picture"),
        ("img2img", IMAGE | {"mask": "aGVsbG8="}, "not a picture"),
        ("img2img", IMAGE | {"resize_mode": 3}, "resize_mode"),
        ("img2img", IMAGE | {"mask": RAW, "inpainting_fill": 4}, "inpainting_fill"),
        (
            "img2img",
            IMAGE | {"mask": URI, "mask_blur_x": 1},
            "mask_blur_x: 1 differs from mask_blur_y, 4",
        ),
        ("img2img", IMAGE | {"initial_noise_multiplier": 1.1}, "initial_noise_multiplier"),
        ("options", {"sd_model_checkpoint": "z"}, "There is no model 'z'"),
        ("png-info", {"image": "%"}, "image: The text is not base64"),
    ],
)
def test_invalid_body_returns_422_naming_the_field(
    shared: TestClient, path: str, body: Any, says: str
) -> None:
    before = shared.get("/api/jobs").json()
    wrong = post(shared, path, body, 422)
    assert set(wrong) == {"error", "detail", "body", "errors"}
    assert says in json.dumps(wrong["detail"], ensure_ascii=False)
    assert shared.get("/api/jobs").json() == before


@pytest.mark.parametrize(
    "body",
    [
        {"seed": None, "steps": None, "styles": None, "tiling": None, "eta": None},
        {"eta": 0, "s_churn": 0, "s_tmax": 0, "s_tmin": 0, "s_noise": 1, "sampler_index": "Euler"},
        {"eta": 1, "sampler_name": "Euler a", "seed_resize_from_h": -1, "subseed": 5},
        {"alwayson_scripts": {"ADetailer": {"args": [False]}, "x": {}, "ControlNet": {"args": []}}},
        {"alwayson_scripts": {"Refiner": {"args": [False, "", 0.8]}, "Hypertile": [False, 256]}},
        {"alwayson_scripts": {"ControlNet": {"args": [{"enabled": False, "model": "x"}]}}},
        {"hr_upscaler": "4x-UltraSharp", "hr_resize_x": 1024, "hr_prompt": "x"},
        {"override_settings": {"sd_model_checkpoint": "m.safetensors [31e35c80fc]"}},
    ],
)
def test_neutral_values_of_unsupported_fields_are_accepted(shared: TestClient, body: Any) -> None:
    assert len(post(shared, "txt2img", {"prompt": "a cup", "steps": 1} | body)["images"]) == 1


def test_send_images_false_returns_no_images(client: TestClient) -> None:
    made = post(client, "txt2img", {"steps": 1, "send_images": False})
    assert made["images"] == []
    assert len(json.loads(made["info"])["infotexts"]) == 1
    shown = post(client, "img2img", IMAGE | {"steps": 1, "include_init_images": True})
    assert shown["parameters"]["init_images"] == [URI]


def test_options_sent_back_change_only_edited_values(client: TestClient) -> None:
    """Open WebUI reads all options, changes one, and sends all back."""
    options = get(client, "options")
    assert options["sd_model_checkpoint"] == "m"
    post(client, "options", options | {"sd_model_checkpoint": "n", "samples_format": "jpg"})
    made = post(client, "txt2img", {"steps": 1})
    assert opened(made["images"][0]).format == "JPEG"
    assert requested(client)[0] == "n"
    once = post(client, "txt2img", {"steps": 1, "override_settings": {"samples_format": "png"}})
    assert opened(once["images"][0]).format == "PNG"
    assert get(client, "options")["samples_format"] == "jpg"


def test_listings_name_values_that_requests_accept(client: TestClient) -> None:
    assert [model["title"] for model in get(client, "sd-models")] == ["m", "n"]
    for sampler in get(client, "samplers"):
        assert resolve_sampler_and_schedule(sampler["name"], "Automatic")[0] in SAMPLERS
    for schedule in get(client, "schedulers"):
        by_name, by_label = (
            resolve_sampler_and_schedule("Euler", schedule[k]) for k in ("name", "label")
        )
        assert by_name == by_label
    assert "miniature-comic" in [lora["name"] for lora in get(client, "loras")]
    assert "miniature-toy" in get(client, "embeddings")["loaded"]
    for upscaler in (*get(client, "upscalers"), *get(client, "latent-upscale-modes")):
        hires = HIRES | {"hr_upscaler": upscaler["name"], "steps": 1}
        assert len(post(client, "txt2img", hires)["images"]) == 1
    assert client.get("/queue/status").json()["queue_size"] == 0
    assert post(client, "refresh-checkpoints", {}) == {}


def test_png_info_returns_settings_of_image(client: TestClient) -> None:
    made = post(client, "txt2img", {"prompt": "a cup", "steps": 3, "seed": 7})
    found = post(client, "png-info", {"image": made["images"][0]})
    assert found["info"] == json.loads(made["info"])["infotexts"][0]
    assert (found["parameters"]["Steps"], found["parameters"]["Seed"]) == ("3", "7")
    assert "overpaint" in found["items"]
    plain = post(client, "png-info", {"image": based(Image.new("RGB", (8, 8)))})
    assert (plain["info"], plain["parameters"]) == ("", {})


def test_png_info_of_texts_that_are_long_when_unpacked_is_refused(client: TestClient) -> None:
    texts = PngImagePlugin.PngInfo()
    for number in range(3):
        texts.add_text(f"note {number}", "a" * 500_000, zip=True)
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=texts)
    body = {"image": base64.b64encode(file.getvalue()).decode()}
    answer = client.post("/sdapi/v1/png-info", json=body)
    assert answer.status_code == 422
    assert "more than 1,000,000 characters" in answer.text


def test_every_field_has_description() -> None:
    for inputs in (TextInputs, ImageInputs, Options, Unit):
        for name, field in inputs.model_json_schema()["properties"].items():
            assert field.get("description"), name
    tiling = TextInputs.model_json_schema()["properties"]["tiling"]
    assert tiling["anyOf"][0]["enum"] == [False]


def text(**fields: Any) -> Request:
    given = TextInputs(**fields)
    (request,) = to_requests(given, Options(), refiners=("r",), embeddings=("toy",))
    return request


@pytest.mark.parametrize(
    ("sampler", "scheduler", "ours"),
    [
        ("Euler", "Automatic", ("euler", "linspace")),
        ("DPM++ 2M", "automatic", ("dpmpp_2m", "karras")),
        ("DPM++ 3M SDE", "Automatic", ("dpmpp_3m_sde", "exponential")),
        ("Euler a", "Normal", ("euler_a", "linspace")),
        ("Euler a", "SGM Uniform", ("euler_a", "trailing")),
        ("UniPC", "sgm_uniform", ("unipc", "trailing")),
        ("DPM++ 2M Karras", "Karras", ("dpmpp_2m", "karras")),
        ("PLMS", "DDIM", ("pndm", "normal")),
    ],
)
def test_sampler_and_scheduler_names_resolve(
    sampler: str, scheduler: str, ours: tuple[str, str]
) -> None:
    request = text(sampler_name=sampler, scheduler=scheduler)
    assert (request.sampler, request.schedule) == ours


def test_refiner_checkpoint_sets_ensemble() -> None:
    request = text(refiner_checkpoint="r.safetensors [0123abcd]", refiner_switch_at=0.7)
    assert (request.refiner, request.refine) == ("r", "ensemble")
    assert request.high_noise_frac == 0.7
    assert text(refiner_checkpoint="None", refiner_switch_at=0.7).refine is None


def test_second_pass_with_pixel_upscaler_sets_refine() -> None:
    request = text(
        enable_hr=True,
        hr_upscaler="Lanczos",
        hr_second_pass_steps=9,
        hr_sampler_name="Use same sampler",
        sampler_name="Heun",
    )
    assert (request.upscale, request.upscale_in, request.refine_steps) == (2.0, "pixels", 9)
    assert request.refine_strength == 0.75
    assert text(enable_hr=True, hr_scale=1).refine == "sequential"


def test_prompt_with_loras_and_embeddings_marks_them() -> None:
    request = text(prompt="a cup <lora:ink:0.5>, (toy:1.2)", negative_prompt="TOY, toys, toy-like")
    assert request.prompt == "a cup , (<embedding:toy>:1.2)"
    assert [(lora.name, lora.scale) for lora in request.loras] == [("ink", 0.5)]
    assert request.negative_prompt == "<embedding:toy>, toys, toy-like"
    assert mark_embeddings("a mıni MINI", ("mini",)) == "a mıni <embedding:mini>"
    assert mark_embeddings("a <embedding:toy> toy-car", ("toy", "toy-car")) == (
        "a <embedding:toy> <embedding:toy-car>"
    )


def test_txt2img_without_size_uses_native_size() -> None:
    request = text(steps=20)
    assert (request.width, request.height, request.size) == (None, None, "native")
    assert (request.guidance_scale, request.num_inference_steps) == (7.0, 20)


def units(*units: dict[str, Any], **fields: Any) -> tuple[Control, ...]:
    kind = ImageInputs if "init_images" in fields else TextInputs
    scripts = {"controlnet": {"args": list(units)}}
    return read_controls(kind(alwayson_scripts=scripts, **fields))


def test_controlnet_units_translate_to_controls() -> None:
    made, finished, region = units(
        {
            "module": "canny",
            "image": RAW,
            "threshold_a": 64,
            "threshold_b": -1,
            "guidance_end": 0.5,
            "resize_mode": "Crop and Resize",
        },
        {"model": "control_openpose [0123abcd]", "image": {"image": RAW}, "control_mode": 2},
        {
            "module": "softedge_hed",
            "image": RAW,
            "control_mode": "My prompt is more important",
            "effective_region_mask": RAW,
            "weight": 0.7,
        },
    )
    assert (made.kind, made.options, made.end) == ("canny", {"low": 64}, 0.5)
    assert made.image
    assert not made.hint
    assert made.net is None
    assert (finished.kind, finished.net, finished.weighting) == (
        "pose",
        "control_openpose",
        "guess",
    )
    assert finished.hint
    assert not finished.image
    assert (region.kind, region.weighting, region.scale) == ("softedge", "soft", 0.7)
    assert region.mask


def test_controlnet_unit_without_image_uses_init_image() -> None:
    made, finished = units({"module": "depth_midas"}, {"model": "net-tile"}, **IMAGE)
    assert (made.kind, made.image, made.hint) == ("depth", None, None)
    assert finished.hint == Picture(data=HOUSE)


def test_every_preprocessor_has_known_kind() -> None:
    for module, kind in (KIND_BY_PREPROCESSOR | KIND_BY_OLD_PREPROCESSOR).items():
        assert units({"module": module, "image": RAW})[0].kind == kind
        hints.check_hint(kind, {})


def masked(**fields: Any) -> Request:
    (request,) = to_requests(ImageInputs(**IMAGE, mask=URI, **fields), Options())
    return request


def test_mask_without_full_res_turns_crop_off() -> None:
    request = masked(inpaint_full_res=0, width=64, height=32, inpainting_mask_invert=1, mask_blur=0)
    assert (request.crop, request.width, request.height) == ("off", 64, 32)
    assert (request.mask_invert, request.mask_blur, request.fit) == (True, 0, "stretch")
    assert (request.strength, request.match_colors) == (0.75, False)


@pytest.mark.parametrize(
    ("theirs", "ours"), tuple(enumerate(("surroundings", "original", "noise", "flat")))
)
def test_inpainting_fill_sets_fill(theirs: int, ours: str) -> None:
    assert masked(inpainting_fill=theirs).fill == ours


def test_mask_with_transparency_ignores_brightness() -> None:
    """White is repainted; with transparency, opaque pixels are."""

    def levels(image: Image.Image, *, rounded: bool) -> list[int]:
        with Image.open(
            io.BytesIO(read_mask(decoded(image), "mask", rounded=rounded).data)
        ) as mask:
            return np.asarray(mask.convert("L"))[0, ::2].tolist()

    grays = Image.fromarray(np.tile(np.repeat(np.array([0, 100, 200, 255], np.uint8), 2), (8, 1)))
    assert levels(grays, rounded=True) == [0, 0, 255, 255]
    assert levels(grays, rounded=False) == [0, 100, 200, 255]
    clear = Image.merge("RGBA", (grays, grays, grays, grays.point(list(range(255, -1, -1)))))
    assert levels(clear, rounded=True) == [255, 255, 0, 0]


def decoded(image: Image.Image) -> bytes:
    return base64.b64decode(based(image))


def test_request_error_names_client_field() -> None:
    with pytest.raises(RequestError) as caught:
        text(cfg_scale=0.5)
    assert caught.value.field == "cfg_scale"
    with pytest.raises(RequestError) as caught:
        text(prompt="<lora:ink:1> <lora:ink:1:dyn=4>")
    assert caught.value.field == "prompt"


def test_too_many_controlnet_units_are_rejected_before_reading_images(client: TestClient) -> None:
    units = [{"module": "canny", "effective_region_mask": "no picture"}] * 17
    body = {"prompt": "a cup", "alwayson_scripts": {"controlnet": {"args": units}}}
    answer = client.post("/sdapi/v1/txt2img", json=body)
    assert answer.status_code == 422
    assert "up to 16 units" in answer.text
