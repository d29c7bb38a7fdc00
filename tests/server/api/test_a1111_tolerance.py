"""AUTOMATIC1111's API accepts what the web UI accepts, and says what has no effect."""

from __future__ import annotations

import base64
import io
import json
import subprocess
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from safetensors.numpy import save_file

from overpaint.errors import RequestError
from overpaint.models.library.index import LibraryIndex
from overpaint.models.library.library import Library
from overpaint.server.api.a1111 import controlnet_routes
from overpaint.server.api.a1111.controlnet import read_controls
from overpaint.server.api.a1111.listings import resolve_controlnet_title
from overpaint.server.api.a1111.model_titles import resolve_model_title
from overpaint.server.api.a1111.option_fields import Options
from overpaint.server.api.a1111.protocol import ImageInputs, TextInputs
from overpaint.server.api.a1111.translation import to_requests
from overpaint.server.api.ignored_fields import IGNORED_HEADER
from overpaint.server.jobs.service import Service
from overpaint.server.outbound.image_fetch import ImageFetcher
from tests.server.live import client_of, until

HOUSE = (Path(__file__).parents[3] / "examples" / "house.png").read_bytes()
RAW = base64.b64encode(HOUSE).decode()
CUP: dict[str, Any] = {"prompt": "a cup", "steps": 1}
IMAGE: dict[str, Any] = {"init_images": [RAW], "steps": 2}

# Fields of `Processed.js` in AUTOMATIC1111's modules/processing.py.
INFO_FIELDS = """
prompt all_prompts negative_prompt all_negative_prompts seed all_seeds subseed all_subseeds
subseed_strength width height sampler_name cfg_scale steps batch_size restore_faces
face_restoration_model sd_model_name sd_model_hash sd_vae_name sd_vae_hash seed_resize_from_w
seed_resize_from_h denoising_strength extra_generation_params index_of_first_image infotexts styles
job_timestamp clip_skip is_using_inpainting_conditioning version
"""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """Share one server among tests that leave nothing behind."""
    with client_of(tmp_path_factory.mktemp("data")) as made:
        yield made


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with client_of(tmp_path) as made:
        yield made


def send(client: TestClient, path: str, body: Any) -> tuple[Any, list[str]]:
    """Return the answer to a request that must succeed, and the fields that it ignored."""
    answer = client.post(f"/sdapi/v1/{path}", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json(), answer.headers.get(IGNORED_HEADER, "").split(", ")


def last_request(client: TestClient) -> dict[str, Any]:
    application: Any = client.app
    service: Service = application.state.service
    return service.jobs.list_page(None, 1)[0].request


def control(**fields: Any) -> dict[str, Any]:
    unit = {"module": "canny", "image": RAW} | fields
    return {"alwayson_scripts": {"ControlNet": {"args": [unit]}}}


def scripts(**args: list[Any]) -> dict[str, Any]:
    return {"alwayson_scripts": {name: {"args": own} for name, own in args.items()}}


def make_mask(size: tuple[int, int], white: tuple[int, int, int, int]) -> str:
    mask, file = Image.new("L", size), io.BytesIO()
    mask.paste(255, white)
    mask.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


SMALL_MASK = make_mask((64, 64), (0, 0, 32, 64))


@pytest.mark.parametrize(
    ("path", "body", "ignored"),
    [
        ("txt2img", {"distilled_cfg_scale": 3.5}, ["distilled_cfg_scale"]),
        ("txt2img", {"cfg": 3, "mode": "x", "uniqueDocumentId": 7}, ["cfg", "mode"]),
        ("txt2img", {"inpainting_fill": 1, "init_images": []}, ["inpainting_fill"]),
        ("txt2img", {"seed": -2, "eta": 1, "s_churn": 0}, ["eta"]),
        ("txt2img", {"scheduler": "", "sampler_name": "", "sampler_index": ""}, []),
        ("txt2img", {"sampler_name": "DPM++ 2M Karras", "scheduler": "Beta"}, ["scheduler"]),
        ("txt2img", {"steps": "", "width": "", "alwayson_scripts": []}, ["steps", "width"]),
        ("txt2img", {"hr_scale": 0, "enable_hr": False} | {"hr_scale": 2}, ["hr_scale"]),
        ("txt2img", {"script_name": "none", "script_args": [1]}, ["script_name", "script_args"]),
        ("txt2img", {"override_settings": None, "styles": ""}, ["override_settings", "styles"]),
        (
            "txt2img",
            {"override_settings": {"return_grid": False, "eta_noise_seed_delta": 0}},
            ["override_settings.return_grid", "override_settings.eta_noise_seed_delta"],
        ),
        ("txt2img", {"seed_resize_from_w": 512}, ["seed_resize_from_w"]),
        ("txt2img", {"seed_resize_from_w": 0, "seed_resize_from_h": 64}, ["seed_resize_from_h"]),
        (
            "txt2img",
            {"width": 72, "height": 64, "seed_resize_from_w": 73, "seed_resize_from_h": 64},
            ["seed_resize_from_w", "seed_resize_from_h"],
        ),
        ("txt2img", control(image_similarity=1), ["ControlNet.image_similarity"]),
        ("txt2img", control(image=None, input_image=RAW, mask=""), []),
        ("txt2img", control(hr_option="High res only"), []),
        ("txt2img", control(module="pidinet", guess_mode=True), []),
        ("img2img", {"enable_hr": False, "hr_scale": 2}, ["enable_hr", "hr_scale"]),
        ("img2img", {"mask": "", "inpaint_full_res": True}, ["inpaint_full_res"]),
        ("img2img", {"mask": None, "mask_blur_x": 1}, ["mask", "mask_blur_x"]),
        ("img2img", {"init_images": ["\r\n".join([RAW[:76], RAW[76:]])]}, []),
        ("img2img", {"init_images": [f"data:image/png;base64,{RAW[:76]}\n{RAW[76:]}\n"]}, []),
        ("txt2img", {"styles": ["None", "no such"]}, ["styles"]),
        ("txt2img", scripts(ADetailer=[True, False, {"ad_model": "None"}]), ["ADetailer"]),
        ("txt2img", scripts(AnimateDiff=[{"enable": False, "model": "x"}]), ["AnimateDiff"]),
        ("txt2img", scripts(reactor=[RAW, False, "0"]), ["reactor"]),
        ("txt2img", scripts(**{"Tiled VAE": ["False", 960]}), ["Tiled%20VAE"]),
        ("txt2img", {"enable_hr": "false", "hr_scale": -1}, ["hr_scale"]),
        ("txt2img", {"denoising_strength": 1.5}, ["denoising_strength"]),
        ("txt2img", {"sampler_name": "Euler a", "s_noise": 0}, ["s_noise"]),
        ("txt2img", {"width": 72.67, "height": "64", "steps": 1.5, "n_iter": "1"}, []),
        (
            "txt2img",
            {"enable_hr": True, "scheduler": "Karras", "hr_scheduler": "karras"}
            | {"width": 64, "height": 64, "hr_second_pass_steps": 1}
            | {"hr_checkpoint_name": "m", "override_settings": {"sd_model_checkpoint": "m"}},
            [],
        ),
        (
            "txt2img",
            {"enable_hr": True, "hr_checkpoint_name": "m", "hr_second_pass_steps": 1}
            | {"width": 64, "height": 64},
            [],
        ),
        ("img2img", {"mask_blur": 300, "inpainting_fill": 7}, ["mask_blur", "inpainting_fill"]),
        ("img2img", {"resize_mode": "1", "width": 64, "height": 64}, []),
        ("img2img", {"mask": SMALL_MASK, "inpaint_full_res": False, "mask_blur": 4.5}, []),
        ("options", {"samples_save": True, "sd_vae": "None"}, ["samples_save", "sd_vae"]),
        ("options", {"sd_vae": "auto", "samples_format": "PNG"}, ["sd_vae"]),
        ("options", {"CLIP_stop_at_last_layers": 0}, []),
        ("interrupt", {"any": "thing"}, []),
    ],
)
def test_body_that_the_web_ui_accepts_is_accepted(
    shared: TestClient, path: str, body: dict[str, Any], ignored: list[str]
) -> None:
    base = {"txt2img": CUP, "img2img": IMAGE}.get(path, {})
    made, reported = send(shared, path, base | body)
    reported = [name.removeprefix("alwayson_scripts.") for name in reported]
    assert set(ignored) <= set(reported)
    if "info" in made:
        listed = json.loads(made["info"])["ignored_fields"]
        assert set(ignored) <= {name.removeprefix("alwayson_scripts.") for name in listed}


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("txt2img", {"tiling": True}, "tiling"),
        ("txt2img", {"s_churn": 5}, "s_churn"),
        ("txt2img", {"sampler_name": "DPM++ SDE", "s_noise": 1.1}, "s_noise"),
        ("txt2img", {"sampler_name": "Euler a", "eta": 0.3}, "eta"),
        ("txt2img", {"override_settings": {"eta_noise_seed_delta": 31337}}, "eta_noise_seed_delta"),
        ("txt2img", control(advanced_weighting=[1, 2]), "advanced_weighting"),
        ("txt2img", scripts(ADetailer=[True, {"ad_model": "face_yolov8n.pt"}]), "ADetailer"),
        ("txt2img", scripts(reactor=[RAW, True, "0"]), "reactor"),
        ("txt2img", {"enable_hr": True, "hr_scale": 9}, "hr_scale"),
        ("options", {"sd_vae": "x.pt"}, "sd_vae"),
        (
            "txt2img",
            {"seed_resize_from_w": 64, "seed_resize_from_h": 64, "width": 128, "height": 64},
            "seed_resize_from_w",
        ),
        ("txt2img", {"seed_resize_from_w": 64, "seed_resize_from_h": 64}, "seed_resize_from_w"),
    ],
)
def test_another_picture_that_cannot_be_made_is_refused_by_name(
    shared: TestClient, path: str, body: dict[str, Any], field: str
) -> None:
    base = {"txt2img": CUP}.get(path, {})
    answer = shared.post(f"/sdapi/v1/{path}", json=base | body)
    assert answer.status_code == 422
    assert field in answer.text


def test_images_are_read_from_urls(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    urls = {f"https://example.org/{name}.png": HOUSE for name in ("a", "mask", "unit")}
    asked: list[str] = []

    @asynccontextmanager
    async def fetch(
        self: object, key: str, wanted: dict[str, str], count: Any
    ) -> AsyncGenerator[dict[str, bytes]]:
        asked.extend(wanted)
        yield {url: urls[url] for url in wanted.values()}

    monkeypatch.setattr(ImageFetcher, "fetch_images", fetch)
    one, mask, unit = urls
    body = {"init_images": [one], "mask": mask, "steps": 2} | control(image={"image": unit})
    send(client, "img2img", body)
    assert asked == ["alwayson_scripts.ControlNet.image", "init_images.0", "mask"]
    request = last_request(client)
    assert request["image"] == request["controls"][0]["image"]


def test_url_of_an_image_that_cannot_be_fetched_is_named(client: TestClient) -> None:
    body = {"init_images": ["http://127.0.0.1/a.png"], "steps": 2}
    answer = client.post("/sdapi/v1/img2img", json=body)
    assert answer.status_code == 422
    assert "init_images" in answer.text
    assert "cannot be fetched" in answer.text


def test_mask_of_another_size_is_stretched_to_the_image() -> None:
    given = ImageInputs.model_validate(IMAGE | {"mask": SMALL_MASK})
    (request,) = to_requests(given, Options())
    assert request.mask
    with Image.open(io.BytesIO(request.mask.data)) as mask:
        assert mask.size == (512, 512)
        assert [mask.getpixel((x, 100)) for x in (0, 200, 300, 511)] == [255, 255, 0, 0]


def test_unknown_option_does_not_keep_others_from_being_set(client: TestClient) -> None:
    body = {"sd_model_checkpoint": "n", "samples_format": "jpg", "no_such_option": 3}
    _, reported = send(client, "options", body)
    assert reported == ["no_such_option"]
    kept = client.get("/sdapi/v1/options").json()
    assert (kept["sd_model_checkpoint"], kept["samples_format"]) == ("n", "jpg")


def test_sides_are_rounded_down_to_multiples_of_8(client: TestClient) -> None:
    """Krita's plug-in sends the size of its selection."""
    send(client, "img2img", IMAGE | {"width": 133, "height": 121})
    request = last_request(client)
    assert (request["width"], request["height"]) == (128, 120)


def test_info_has_all_fields_of_the_web_ui(shared: TestClient) -> None:
    made, _ = send(shared, "txt2img", CUP | {"batch_size": 2})
    info = json.loads(made["info"])
    assert set(info) >= set(INFO_FIELDS.split())
    assert len(info["infotexts"]) == len(info["all_subseeds"]) == 2


def test_info_has_the_notices_of_the_job(shared: TestClient) -> None:
    made, _ = send(shared, "txt2img", CUP | {"prompt": "a note"})
    assert json.loads(made["info"])["notices"] == ["noted"]
    made, _ = send(shared, "txt2img", CUP)
    assert json.loads(made["info"])["notices"] == []


def test_progress_has_only_fields_of_the_web_ui(shared: TestClient) -> None:
    shown = shared.get("/sdapi/v1/progress").json()
    assert set(shown) == {"progress", "eta_relative", "state", "current_image", "textinfo"}


def test_embedding_in_a_lora_is_used_by_its_bare_name_beside_the_lora(tmp_path: Path) -> None:
    stem = "lora_unet_mid_block_attentions_0_proj_in"
    state = {
        f"{stem}.lora_up.weight": np.zeros((8, 1), np.float32),
        f"{stem}.lora_down.weight": np.zeros((1, 8), np.float32),
        "bundle_emb.<toyword>.clip_l": np.zeros((1, 768), np.float32),
        "bundle_emb.<toyword>.clip_g": np.zeros((1, 1280), np.float32),
    }
    models = tmp_path / "models"
    models.mkdir()
    save_file(state, models / "ink.safetensors")
    tag = "<lora:ink:0.5>"
    with client_of(tmp_path / "data", models_dirs=(models,)) as client:
        body = {"prompt": f"a ToyWord, {tag}", "negative_prompt": "toyword", "steps": 1}
        send(client, "txt2img", body)
        request = last_request(client)
        assert request["prompt"] == "a <embedding:toyword>,"
        assert request["negative_prompt"] == "<embedding:toyword>"
        send(client, "txt2img", {"prompt": "a toyword", "steps": 1})
        assert last_request(client)["prompt"] == "a toyword"


def test_embeddings_have_shapes(shared: TestClient) -> None:
    listed = shared.get("/sdapi/v1/embeddings").json()
    toy = listed["loaded"]["miniature-toy"]
    assert toy["shape"] > 0
    assert toy["vectors"] > 0


# Options that a request keeps


def keep(**options: Any) -> dict[str, Any]:
    return {"override_settings": options, "override_settings_restore_afterwards": False}


def test_kept_option_never_makes_another_request_fail(client: TestClient) -> None:
    long = "a cup " * 12_000
    mask = {"mask": RAW}
    send(client, "img2img", IMAGE | mask | keep(img2img_color_correction=True))
    send(client, "img2img", IMAGE)  # without a mask
    send(client, "txt2img", CUP | keep(samples_format="jpg"))
    made, reported = send(client, "txt2img", CUP | {"prompt": long})
    assert "samples_format" in reported
    with Image.open(io.BytesIO(base64.b64decode(made["images"][0]))) as image:
        assert image.format == "PNG"
    answer = client.post(
        "/sdapi/v1/txt2img",
        json=CUP | {"prompt": long, "override_settings": {"samples_format": "jpg"}},
    )
    assert answer.status_code == 422
    assert "samples_format" in answer.text


def test_options_of_a_failed_request_are_not_kept(client: TestClient) -> None:
    body = {"prompt": "refuse", "steps": 2} | keep(sd_model_checkpoint="n")
    assert client.post("/sdapi/v1/txt2img", json=body).status_code == 422
    assert client.get("/sdapi/v1/options").json()["sd_model_checkpoint"] == "m"


def test_options_set_while_a_request_paints_stay(tmp_path: Path) -> None:
    with client_of(tmp_path, 0.02) as client, ThreadPoolExecutor(1) as pool:
        body = SLOW | keep(jpeg_quality=50)
        answer = pool.submit(client.post, "/sdapi/v1/txt2img", json=body)
        until(lambda: shown(client))
        client.post("/sdapi/v1/options", json={"sd_model_checkpoint": "n"})
        client.post("/sdapi/v1/interrupt")
        assert answer.result().status_code == 200
        kept = client.get("/sdapi/v1/options").json()
        assert (kept["sd_model_checkpoint"], kept["jpeg_quality"]) == ("n", 50)


def test_kept_model_that_the_server_has_no_more_is_replaced(client: TestClient) -> None:
    application: Any = client.app
    application.state.a1111_options[""] = Options(sd_model_checkpoint="gone")
    assert client.get("/sdapi/v1/options").json()["sd_model_checkpoint"] == "m"
    send(client, "txt2img", CUP)


# Which request is interrupted


SLOW: dict[str, Any] = {"prompt": "a cup", "steps": 1000}


def state_of(client: TestClient, number: int) -> str:
    """Return the state of the job that was accepted at this place."""
    application: Any = client.app
    jobs = application.state.service.jobs.list_page(None, 100)
    return "" if len(jobs) <= number else jobs[::-1][number].state


def is_canceling(client: TestClient, number: int) -> bool:
    """Return whether a client asked to cancel the job that was accepted at this place."""
    application: Any = client.app
    return application.state.service.jobs.list_page(None, 100)[::-1][number].canceling


def shown(client: TestClient, **headers: str) -> str:
    return client.get("/sdapi/v1/progress", headers=headers).json()["state"]["job"]


def test_interrupt_ends_the_request_that_progress_shows(tmp_path: Path) -> None:
    with client_of(tmp_path, 0.02) as client, ThreadPoolExecutor(3) as pool:
        path = "/sdapi/v1/txt2img"
        first = pool.submit(client.post, path, json=SLOW)
        until(lambda: state_of(client, 0) == "running")
        seen = shown(client)
        second = pool.submit(client.post, path, json=SLOW)
        until(lambda: state_of(client, 1) == "running")
        third = pool.submit(client.post, path, json=SLOW, headers={"User-Agent": "other"})
        until(lambda: state_of(client, 2) == "running")
        assert shown(client) == seen
        client.post("/sdapi/v1/interrupt")
        assert first.result().json()["images"] == []
        # The request that this client saw has ended; it has seen no other.
        client.post("/sdapi/v1/interrupt")
        client.post("/sdapi/v1/skip", content="")
        assert [state_of(client, number) for number in (1, 2)] == ["running", "running"]
        assert not any(is_canceling(client, number) for number in (1, 2))
        other = {"User-Agent": "other"}
        mine = shown(client, **other)
        client.post("/sdapi/v1/interrupt", headers=other)
        assert third.result().json()["images"] == []
        until(lambda: shown(client, **other) != mine)
        assert state_of(client, 1) == "running"
        shown(client)
        client.post("/sdapi/v1/interrupt")
        assert second.result().json()["images"] == []


def test_interrupt_ends_the_request_of_a_client_that_saw_another_one_before(tmp_path: Path) -> None:
    with client_of(tmp_path, 0.02) as client, ThreadPoolExecutor(2) as pool:
        path = "/sdapi/v1/txt2img"
        others = pool.submit(client.post, path, json=SLOW, headers={"User-Agent": "other"})
        until(lambda: state_of(client, 0) == "running")
        shown(client)
        own = pool.submit(client.post, path, json=SLOW)
        until(lambda: state_of(client, 1) == "running")
        client.post("/sdapi/v1/interrupt")
        assert own.result().json()["images"] == []
        assert state_of(client, 0) == "running"
        client.post("/sdapi/v1/interrupt", headers={"User-Agent": "other"})
        assert others.result().json()["images"] == []


def test_interrupt_ends_the_named_request(tmp_path: Path) -> None:
    with client_of(tmp_path, 0.02) as client, ThreadPoolExecutor(2) as pool:
        for name in ("task(a)", "task(b)"):
            body = SLOW | {"force_task_id": name}
            pool.submit(client.post, "/sdapi/v1/txt2img", json=body)
        until(lambda: state_of(client, 1) == "running")
        for name in ("task(a)", "task(b)"):
            told = client.post("/internal/progress", json={"id_task": name}).json()
            assert told["active"]
            assert not told["completed"]
        assert client.get("/internal/pending-tasks").json()["size"] == 2
        client.post("/sdapi/v1/interrupt", json={"force_task_id": "task(b)"})
        until(
            lambda: client.post("/internal/progress", json={"id_task": "task(b)"}).json()[
                "completed"
            ]
        )
        assert client.post("/internal/progress", json={"id_task": "task(a)"}).json()["active"]
        client.post("/sdapi/v1/interrupt?force_task_id=nobody")
        assert client.post("/internal/progress", json={"id_task": "task(a)"}).json()["active"]
        client.post("/sdapi/v1/interrupt?force_task_id=task(a)")


def test_interrupt_leaves_jobs_of_other_apis_alone(tmp_path: Path) -> None:
    with client_of(tmp_path, 0.02) as client:
        body = {"request": {"prompt": "a cup", "num_inference_steps": 1000}}
        name = client.post("/api/jobs", json=body).json()["id"]
        until(lambda: state_of(client, 0) == "running")
        assert shown(client) == ""
        client.post("/sdapi/v1/interrupt")
        assert not client.get(f"/api/jobs/{name}").json()["state"].startswith("cancel")
        client.post(f"/api/jobs/{name}/cancel")


# Routes without which clients stop


@pytest.mark.parametrize(
    ("method", "path", "fields"),
    [
        ("GET", "/sdapi/v1/script-info", None),
        ("GET", "/sdapi/v1/memory", {"ram", "cuda"}),
        ("GET", "/sdapi/v1/extensions", None),
        ("POST", "/sdapi/v1/refresh-vae", set()),
        ("POST", "/sdapi/v1/unload-checkpoint", set()),
        ("POST", "/sdapi/v1/reload-checkpoint", set()),
        ("GET", "/controlnet/version", {"version"}),
        (
            "GET",
            "/controlnet/settings",
            {"control_net_unit_count", "control_net_max_models_num"},
        ),
        ("GET", "/controlnet/control_types", {"control_types"}),
        ("GET", "/internal/ping", set()),
        ("POST", "/internal/progress", {"active", "queued", "completed", "progress", "eta"}),
    ],
)
def test_route_answers(shared: TestClient, method: str, path: str, fields: set[str] | None) -> None:
    body = {"id_task": "none"} if path == "/internal/progress" else None
    answer = shared.request(method, path, json=body)
    assert answer.status_code == 200
    assert fields is None or set(answer.json()) >= fields


def test_detect_returns_control_images(
    shared: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {"controlnet_module": "canny", "controlnet_input_images": [RAW]}
    body |= {"controlnet_processor_res": 128, "controlnet_threshold_a": 64}
    told = shared.post("/controlnet/detect", json=body).json()
    with Image.open(io.BytesIO(base64.b64decode(told["images"][0]))) as image:
        assert min(image.size) == 128
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    for module, name in (("depth_midas", "depth-anything"), ("seg_ofade20k", "upernet")):
        body["controlnet_module"] = module
        wrong = shared.post("/controlnet/detect", json=body)
        assert wrong.status_code == 422
        assert "controlnet_module: " in wrong.text
        assert f"overpaint models pull {name}" in wrong.text


def test_control_types_list_fitting_preprocessors(shared: TestClient) -> None:
    types = shared.get("/controlnet/control_types").json()["control_types"]
    assert types["Canny"]["module_list"] == ["none", "canny"]
    assert "miniature-canny" in types["Canny"]["model_list"]
    assert set(types["All"]["module_list"]) > set(types["Depth"]["module_list"])


def test_settings_of_every_preprocessor_are_listed(shared: TestClient) -> None:
    """A Photoshop plug-in reads them, and stops without them."""
    told = shared.get("/controlnet/module_list?alias_names=1").json()
    assert set(told["module_detail"]) == set(told["module_list"])
    sliders = told["module_detail"]["canny"]["sliders"]
    assert [slider["name"] for slider in sliders] == [
        "Resolution",
        "Low Threshold",
        "High Threshold",
    ]
    for detail in told["module_detail"].values():
        for slider in detail["sliders"]:
            assert slider["min"] <= slider["value"] <= slider["max"]


@pytest.mark.parametrize("path", ["txt2img", "img2img"])
def test_routes_of_the_first_controlnet_extension_use_its_units(
    client: TestClient, path: str
) -> None:
    units = [{"module": "hed", "input_image": RAW, "guessmode": True}]
    body = {"txt2img": CUP, "img2img": IMAGE}[path] | {"controlnet_units": units}
    answer = client.post(f"/controlnet/{path}", json=body)
    assert answer.status_code == 200, answer.text
    assert "controlnet_units" not in answer.json()["parameters"]
    (used,) = last_request(client)["controls"]
    assert (used["kind"], used["weighting"]) == ("softedge", "guess")
    units[0]["module"] = "no such"
    wrong = client.post(f"/controlnet/{path}", json=body)
    assert (wrong.status_code, "no such" in wrong.text) == (422, True)


# Titles, units, several images


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("sd_xl_base", "sd_xl_base"),
        ("SDXL/SD_XL_Base.safetensors [31e35c80fc]", "sd_xl_base"),
        ("models\\sd_xl_base.ckpt", "sd_xl_base"),
        ("stable-diffusion-xl-base-1.0", "stabilityai/stable-diffusion-xl-base-1.0"),
        ("juggernaut", "JuggernautXL_v9"),
        (" JUGGERNAUTXL_V9.SAFETENSORS", "JuggernautXL_v9"),
    ],
)
def test_title_of_a_model_is_read_loosely(title: str, name: str) -> None:
    known = ("sd_xl_base", "stabilityai/stable-diffusion-xl-base-1.0", "JuggernautXL_v9", "a", "ab")
    assert resolve_model_title("model", title, known) == name


@pytest.mark.parametrize("title", ["xl", "sd_", "none", "", "b", "base"])
def test_title_of_no_or_several_models_is_refused(title: str) -> None:
    with pytest.raises(RequestError):
        resolve_model_title("model", title, ("sd_xl_base", "sd_xl_refiner", "base2"))


def encoded(mask: Image.Image) -> str:
    file = io.BytesIO()
    mask.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


@pytest.mark.parametrize(
    "title",
    [
        "miniature-canny",
        "sub/Miniature-Canny.safetensors [0123abcd]",
        "a\\miniature-canny",
        "CANNY",
    ],
)
def test_controlnet_is_found_by_any_title_of_the_web_ui(title: str, tmp_path: Path) -> None:
    service: Any = SimpleNamespace(entries=LibraryIndex(tmp_path))
    scripts = control(model=title)["alwayson_scripts"]
    resolve = partial(resolve_controlnet_title, service)
    (made,) = read_controls(TextInputs(alwayson_scripts=scripts), resolve)
    assert made.net == "miniature-canny"


@pytest.mark.parametrize(
    ("title", "message"),
    [("nosuch", "There is no model 'nosuch'"), ("miniature", "stands for several models: mini")],
)
def test_title_without_one_controlnet_is_refused(title: str, message: str, tmp_path: Path) -> None:
    service: Any = SimpleNamespace(entries=LibraryIndex(tmp_path))
    with pytest.raises(RequestError, match=message) as caught:
        resolve_controlnet_title(service, title)
    assert caught.value.field == "alwayson_scripts.ControlNet.model"


def test_mask_of_a_unit_limits_its_area() -> None:
    left = Image.new("L", (64, 64))
    left.paste(255, (0, 0, 32, 64))
    top = Image.new("L", (64, 64))
    top.paste(255, (0, 0, 64, 32))

    def area(**fields: Any) -> Image.Image | None:
        scripts = control(**fields)["alwayson_scripts"]
        (made,) = read_controls(TextInputs(alwayson_scripts=scripts))
        return made.mask and Image.open(io.BytesIO(made.mask.data)).convert("L")

    assert area() is None
    assert area(mask=encoded(Image.new("L", (64, 64)))) is None
    for one in (area(mask=encoded(left)), area(image={"image": RAW, "mask": encoded(left)})):
        assert one
        assert one.tobytes() == left.tobytes()
    both = area(mask=encoded(left), effective_region_mask=encoded(top))
    assert both
    assert both.getbbox() == (0, 0, 32, 32)


def test_several_init_images_give_one_result_each(client: TestClient) -> None:
    small = encoded(Image.new("RGB", (64, 64), "red"))
    body: dict[str, Any] = IMAGE | {"init_images": [RAW, small], "n_iter": 2, "seed": 7}
    made, _ = send(client, "img2img", body)
    info = json.loads(made["info"])
    assert info["all_seeds"] == [7, 8, 9, 10]
    assert len(made["images"]) == len(info["infotexts"]) == 4
    requests = to_requests(ImageInputs(**body), Options())
    assert [request.seed for request in requests] == [7, 8, 9, 10]
    shas = [request.image.sha256 for request in requests if request.image]
    assert shas[:2] == shas[2:]
    assert shas[0] != shas[1]


@pytest.mark.parametrize(
    ("resize", "size"),
    [
        ({"hr_resize_x": 1000}, (1000, 496)),
        ({"hr_resize_y": 768}, (1536, 768)),
        ({"hr_resize_x": 1021, "hr_resize_y": 1020}, (1016, 1016)),
    ],
)
def test_second_pass_takes_a_size(resize: dict[str, int], size: tuple[int, int]) -> None:
    body: dict[str, Any] = CUP | {"enable_hr": True, "width": 1024, "height": 512} | resize
    (request,) = to_requests(TextInputs(**body), Options())
    assert (request.upscale_to, request.upscale, request.refine) == (size, 1, "sequential")
    assert request.upscale_in == "latents"


def test_color_correction_without_a_mask_takes_colors_of_the_image() -> None:
    given, options = ImageInputs(init_images=[RAW]), Options(img2img_color_correction=True)
    (request,) = to_requests(given, options)
    assert request.match_image_colors


def test_detect_of_estimated_kinds_runs_the_estimator(monkeypatch: pytest.MonkeyPatch) -> None:
    commands = list[list[str]]()

    def work(command: list[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
        commands.append(command[2:])
        return subprocess.CompletedProcess(command, 0, b"png", b"")

    processes = SimpleNamespace(run=work, TimeoutExpired=subprocess.TimeoutExpired)
    monkeypatch.setattr(controlnet_routes, "subprocess", processes)
    modules = {"depth_zoe": "depth", "normal_bae": "normal", "seg_ofade20k": "segmentation"}
    for module in modules:
        asked = controlnet_routes.DetectRequest(
            controlnet_module=module, controlnet_input_images=[RAW]
        )
        assert controlnet_routes.make_control_images(asked) == [base64.b64encode(b"png").decode()]
    assert commands == [["overpaint.models.estimated_hint", kind] for kind in modules.values()]


def test_detect_images_of_a_request_share_one_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    timeouts = list[float]()
    now = [0.0]

    def work(command: list[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
        timeouts.append(options["timeout"])
        now[0] += 25.0
        return subprocess.CompletedProcess(command, 0, b"png", b"")

    processes = SimpleNamespace(run=work, TimeoutExpired=subprocess.TimeoutExpired)
    monkeypatch.setattr(controlnet_routes, "subprocess", processes)
    monkeypatch.setattr(controlnet_routes, "time", SimpleNamespace(monotonic=lambda: now[0]))
    made = controlnet_routes.make_control_images(
        controlnet_routes.DetectRequest(
            controlnet_module="canny", controlnet_input_images=[RAW, RAW, RAW]
        )
    )
    assert len(made) == 3
    assert timeouts == [60.0, 35.0, 10.0]


def test_sd_vae_uses_an_added_vae(tmp_path: Path) -> None:
    state = {"decoder.conv_in.weight": np.zeros((8, 4, 3, 3), np.float32)}
    save_file(state, tmp_path / "soft_vae.safetensors")
    Library(tmp_path / "home").add(tmp_path / "soft_vae.safetensors", "soft")
    with client_of(tmp_path, home=tmp_path / "home") as client:
        listed = client.get("/sdapi/v1/sd-vae").json()
        assert listed == [{"model_name": "soft", "filename": "soft"}]
        for title in ("soft", "Soft.safetensors"):
            send(client, "txt2img", CUP | {"override_settings": {"sd_vae": title}})
            assert last_request(client)["vae"] == "soft"
        send(client, "options", {"sd_vae": "soft"})
        send(client, "txt2img", CUP)
        assert last_request(client)["vae"] == "soft"
        _, ignored = send(client, "txt2img", CUP | {"override_settings": {"sd_vae": "Automatic"}})
        assert last_request(client)["vae"] is None
        assert ignored == ["override_settings.sd_vae"]


def test_taesd_decodes_with_the_tiny_decoder(tmp_path: Path) -> None:
    with client_of(tmp_path) as client:
        for method, decoder in (("TAESD", "tiny"), ("Full", None)):
            send(client, "txt2img", CUP | {"override_settings": {"sd_vae_decode_method": method}})
            assert last_request(client)["decoder"] == decoder
