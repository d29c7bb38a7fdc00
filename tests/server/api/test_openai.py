"""OpenAI's client against this server: sync, async, streams, files and errors."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from PIL import Image, ImageDraw
from replicate.client import Client

from overpaint.engine.config import EngineConfig
from overpaint.engine.worker import make_engine
from overpaint.imaging.mask_files import decode_mask
from overpaint.provenance.metadata import read_settings
from overpaint.request import Request
from overpaint.server.api.openai.protocol import (
    NATIVE_FIELDS,
    STEPS_BY_QUALITY,
    TEXT_FIELDS,
    Edit,
    Generation,
    Variation,
)
from overpaint.server.api.openai.translation import to_request
from overpaint.server.settings import DEFAULT_LIMITS, HttpSettings, Limits
from tests.docs.blocks import first_block
from tests.server import live
from tests.server.jobs.test_webhooks import receiving
from tests.server.live import NOWHERE, running, until

ROOT = Path(__file__).parents[3]
HOUSE = ROOT / "examples" / "house.png"
PATIENCE = 60.0
MODEL = "gpt-image-1"


def client_of(url: str, key: str = "any") -> OpenAI:
    return OpenAI(api_key=key, base_url=f"{url}/v1", max_retries=0)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running(tmp_path_factory.mktemp("data"), 0.01) as address:
        yield address


@pytest.fixture
def client(url: str) -> Iterator[OpenAI]:
    with client_of(url) as made:
        yield made


def cut_out(box: tuple[int, int, int, int] | None) -> bytes:
    """Make a mask for the house that is transparent in a box."""
    with Image.open(HOUSE) as house:
        mask = Image.new("RGBA", house.size, (0, 0, 0, 255))
    if box:
        ImageDraw.Draw(mask).rectangle(box, (0, 0, 0, 0))
    return png(mask)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def opened(text: str | None) -> Image.Image:
    assert text is not None
    image = Image.open(io.BytesIO(base64.b64decode(text)))
    image.load()
    return image


def jobs_of(url: str) -> list[Any]:
    return httpx.get(f"{url}/api/jobs").json()["jobs"]


def asked(url: str) -> dict[str, Any]:
    """Return the newest request."""
    return jobs_of(url)[0]["request"]


# What users write


def test_generate_with_size_and_seed_returns_images_with_seeds(client: OpenAI, url: str) -> None:
    answer = client.images.generate(
        model=MODEL, prompt="a cup", n=2, size="512x256", extra_body={"seed": 7}
    )
    assert answer.data
    pictures = [opened(image.b64_json) for image in answer.data]
    assert [picture.getpixel((0, 0)) for picture in pictures] == [(7, 0, 7)] * 2
    assert [(image.model_extra or {})["seed"] for image in answer.data] == [7, 8]
    assert (answer.output_format, answer.background, answer.quality) == ("png", "opaque", "auto")
    assert answer.size == "8x8"
    assert answer.usage
    assert answer.usage.total_tokens == 0
    request = asked(url)
    assert (request["width"], request["height"], request["prompt"]) == (512, 256, "a cup")
    assert jobs_of(url)[0]["model"] == "miniature"


def test_generate_with_native_fields_submits_them(client: OpenAI, url: str) -> None:
    ours = {
        "negative_prompt": "blurry",
        "guidance_scale": 3,
        "scheduler": "K_EULER",
        "steps": 4,
        "guidance_interval": [0.1, 0.9],
        "clip_skip": 1,
        "seed": None,
        "controls": [{"kind": "canny", "hint": {"data": base64.b64encode(cut_out(None)).decode()}}],
    }
    client.images.generate(model="sdxl", prompt="a", extra_body=ours)
    request = asked(url)
    assert (request["sampler"], request["num_inference_steps"]) == ("euler", 4)
    assert (request["negative_prompt"], request["guidance_scale"]) == ("blurry", 3)
    assert (request["guidance_interval"], request["clip_skip"]) == ([0.1, 0.9], 1)
    assert request["controls"][0]["kind"] == "canny"
    assert jobs_of(url)[0]["model"] == "sdxl"


def test_generate_with_output_format_returns_that_format(client: OpenAI) -> None:
    formats: list[Any] = [("png", "PNG"), ("jpeg", "JPEG"), ("webp", "WEBP")]
    for word, kind in formats:
        more: Any = {} if word == "png" else {"output_compression": 40}
        answer = client.images.generate(prompt="a", output_format=word, quality="low", **more)
        assert answer.data
        assert opened(answer.data[0].b64_json).format == kind
        assert (answer.output_format, answer.quality) == (word, "low")


def test_generate_with_url_format_returns_links(client: OpenAI) -> None:
    answer = client.images.generate(prompt="a", response_format="url", extra_body={"seed": 3})
    assert answer.data
    assert answer.data[0].b64_json is None
    found = httpx.get(answer.data[0].url or "")
    assert found.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(found.content)).getpixel((0, 0)) == (3, 0, 7)


def test_async_client_generates_edits_and_streams(url: str) -> None:
    async def run() -> Any:
        async with AsyncOpenAI(api_key="any", base_url=f"{url}/v1") as client:
            made = await client.images.generate(prompt="a")
            edited = await client.images.edit(image=HOUSE, prompt="b")
            stream = await client.images.generate(prompt="c", stream=True)
            return made, edited, [told.type async for told in stream]

    made, edited, told = asyncio.run(run())
    assert len(made.data) == len(edited.data) == 1
    assert told == ["image_generation.completed"]


@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")
def test_edit_with_files_bytes_and_lists_accepts_each(client: OpenAI, url: str) -> None:
    data = HOUSE.read_bytes()
    with HOUSE.open("rb") as file:
        images: list[Any] = [file, data, ("house.png", data), HOUSE, [data]]
        for image in images:
            client.images.edit(image=image, prompt="a", size="auto", n=1)
    names = {job["request"]["image"]["file"] for job in jobs_of(url)[: len(images)]}
    assert len(names) == 1
    vary = client.images.create_variation  # pyright: ignore[reportDeprecated]
    vary(image=data, n=2, size="256x256")
    request = asked(url)
    assert (request["prompt"], request["num_images"], request["width"]) == ("", 2, 256)


def test_edit_with_form_values_parses_them_by_field(client: OpenAI, url: str) -> None:
    """A form has only text values; the field determines their types."""
    mask = cut_out((10, 10, 60, 60))
    ours: Any = {
        "seed": 5,
        "negative_prompt": "12",
        "strength": 0.5,
        "match_colors": False,
        "crop": "off",
        "extend": [8, 0, 0, 8],
        "loras": "[]",
        "size": "keep",
        "steps": 6,
        "mask_from": None,
    }
    client.images.edit(image=HOUSE, mask=mask, prompt="", user="me", extra_body=ours)
    request = asked(url)
    assert (request["seed"], request["negative_prompt"], request["strength"]) == (5, "12", 0.5)
    assert (request["match_colors"], request["crop"], request["size"]) == (False, "off", "keep")
    assert (request["extend"], request["num_inference_steps"]) == ([8, 0, 0, 8], 6)
    assert (request["task"], request["prompt"]) == ("replace", "")


def test_stream_of_generation_sends_previews_then_image(client: OpenAI) -> None:
    told: list[Any] = list(
        client.images.generate(
            prompt="a", stream=True, partial_images=3, quality="medium", output_format="webp"
        )
    )
    kinds = [event.type for event in told]
    assert kinds[-1] == "image_generation.completed"
    assert set(kinds[:-1]) == {"image_generation.partial_image"}
    assert 1 <= len(kinds[:-1]) <= 3
    assert [event.partial_image_index for event in told[:-1]] == list(range(len(told) - 1))
    for event, kind in (*((event, "JPEG") for event in told[:-1]), (told[-1], "WEBP")):
        assert opened(event.b64_json).format == kind
        assert event.output_format == kind.lower()
        assert event.size == "8x8"
        assert event.created_at > 0
    assert told[-1].usage.total_tokens == 0


def test_stream_of_edit_sends_completed_events(client: OpenAI) -> None:
    with HOUSE.open("rb") as image:
        told = list(client.images.edit(image=image, prompt="a", stream=True, n=2))
    assert [event.type for event in told] == ["image_edit.completed"] * 2


def test_stream_of_failing_job_raises_api_error(client: OpenAI) -> None:
    stream = client.images.generate(prompt="break", stream=True, partial_images=1)
    with pytest.raises(openai.APIError, match="a defect"):
        list(stream)


def test_azure_client_generates_and_edits(url: str) -> None:
    for deployment in (None, "sdxl"):
        client = openai.AzureOpenAI(
            api_key="any",
            azure_endpoint=url,
            api_version="2025-04-01-preview",
            max_retries=0,
            azure_deployment=deployment,
        )
        with client, HOUSE.open("rb") as image:
            made = client.images.generate(prompt="a", model="sdxl")
            edited = client.images.edit(prompt="a", image=image, model="sdxl")
        for result in (made, edited):
            assert result.data
            assert opened(result.data[0].b64_json).size == (8, 8)
        assert {job["model"] for job in jobs_of(url)[:2]} == {"sdxl"}


def test_models_list_serves_openai_and_replicate_clients(client: OpenAI, url: str) -> None:
    """OpenAI's client and Replicate's client read the same response."""
    assert [model.id for model in client.models.list()] == ["miniature", "sdxl"]
    assert client.models.retrieve("sdxl").object == "model"
    with pytest.raises(openai.NotFoundError, match="Did you mean sdxl"):
        client.models.retrieve("sdxl2")
    theirs = Client(api_token="any", base_url=url)
    assert [model.name for model in theirs.models.list().results] == ["miniature", "sdxl"]
    theirs._client.close()  # pyright: ignore[reportPrivateUsage]


def test_docs_example_runs_with_the_real_client(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = first_block("guides/clients/openai.md", "python")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "house.png").write_bytes(HOUSE.read_bytes())
    space: dict[str, Any] = {}
    exec(lines.replace("http://127.0.0.1:8000", url), space)
    space["client"].close()
    with Image.open(tmp_path / "snow.png") as snow:
        assert snow.size == (8, 8)


# Errors


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"n": 11}, "n", "less than or equal to 10"),
        ({"size": "big"}, "size", "is not a size"),
        ({"size": "1023x512"}, "size", "multiple of 8"),
        ({"size": "64x64", "width": 64}, "size", "contradicts width"),
        ({"steps": 0}, "steps", "It must be 1 to 1000"),
        ({"steps": 9, "quality": "low"}, "quality", "contradicts steps"),
        ({"scheduler": "__class__"}, "scheduler", "There is no sampler"),
        ({"scheduler": "K_EULER", "sampler": "heun"}, "scheduler", "contradicts sampler"),
        ({"seed": "x"}, "seed", "integer"),
        ({"n": 2, "num_images": 2}, "n", "contradicts num_images"),
        ({"background": "transparent"}, "background", "not supported"),
        ({"frame_count": 4}, "frame_count", "not supported"),
        ({"output_format": "gif"}, "output_format", "png"),
        ({"output_compression": 5}, "output_compression", "no effect on PNG"),
        ({"partial_images": 4, "stream": True}, "partial_images", "less than or equal to 3"),
        ({"loras": [{"name": "x"}]}, "loras.0.name", "Unknown lora"),
        ({"prompt": "<lora:x:1>"}, "loras.0.name", "Unknown lora"),
        ({"controls": [{"kind": "no"}]}, "controls.0.kind", "There is no hint"),
        ({"webhook": "ftp://a"}, "webhook", "match"),
        ({"prompt": None}, "prompt", "required"),
    ],
)
def test_generate_with_bad_field_returns_400_naming_it(
    client: OpenAI, url: str, fields: Any, param: str, says: str
) -> None:
    before = [job["id"] for job in jobs_of(url)]
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(prompt="a", extra_body=fields)
    assert says in caught.value.message
    assert (caught.value.param, caught.value.type) == (param, "invalid_request_error")
    assert [job["id"] for job in jobs_of(url)] == before


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"image": b"no picture"}, None, "not a picture"),
        ({"mask": cut_out(None)}, "mask", "opaque everywhere"),
        ({"mask": png(Image.new("L", (100, 90), 255))}, "mask", "100x90"),
        ({"mask": b"no picture"}, None, "not a picture"),
        ({"extra_body": {"markup": "a drawing"}}, "markup", "not supported"),
        ({"input_fidelity": "high"}, "input_fidelity", "not supported"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"extra_body": {"seed": "x"}}, "seed", "integer"),
        ({"extra_body": {"strength": float("nan")}}, "strength", "valid number"),
        ({"extra_body": {"loras": [{"name": "x"}]}}, "loras", "as JSON text"),
        ({"extra_body": {"loras": '[{"name": "x"}]'}}, "loras.0.name", "Unknown lora"),
        ({"extra_body": {"guidance_interval": [[0.1], [0.9]]}}, "guidance_interval", "JSON"),
        ({"extra_body": {"guidance_interval": "[" * 9999}}, "guidance_interval", "tuple"),
    ],
)
def test_edit_with_bad_field_returns_400_naming_it(
    client: OpenAI, fields: Any, param: str | None, says: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.edit(**{"image": HOUSE, "prompt": "a"} | fields)
    assert says in caught.value.message
    assert caught.value.param == param


def test_edit_without_image_or_form_is_rejected(url: str) -> None:
    form = {"prompt": (None, "a"), "mask": ("mask.png", cut_out((0, 0, 9, 9)))}
    answer = httpx.post(f"{url}/v1/images/edits", files=form)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "image")
    twice = [(name, (None, "1")) for name in ("seed", "seed[]")]
    answer = httpx.post(f"{url}/v1/images/edits", files=twice)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "seed")
    answer = httpx.post(f"{url}/v1/images/edits", data={"prompt": "a"})
    assert answer.status_code == 415
    assert "multipart/form-data" in answer.json()["error"]["message"]
    answer = httpx.post(f"{url}/v1/images/edits", json={"prompt": "a"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "images")
    answer = httpx.post(f"{url}/v1/images/generations", content=b"{")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, None)


def test_generate_with_unknown_model_returns_404(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.images.generate(model="mini", prompt="a")
    assert (caught.value.param, caught.value.code) == ("model", "model_not_found")
    assert "Did you mean miniature" in caught.value.message


def test_generate_with_failing_job_raises_matching_error(client: OpenAI) -> None:
    """A failure that the request caused is a bad request, even if it shows late."""
    with pytest.raises(openai.BadRequestError, match="prompt: Refused") as caught:
        client.images.generate(prompt="refuse")
    assert caught.value.param == "prompt"
    with pytest.raises(openai.InternalServerError, match="a defect") as broken:
        client.images.generate(prompt="break")
    assert broken.value.type == "server_error"


def test_failed_job_is_not_retried_by_client(tmp_path: Path) -> None:
    with running(tmp_path) as url, client_of(url) as client:
        with pytest.raises(openai.InternalServerError):
            client.with_options(max_retries=2).images.generate(prompt="break")
        assert len(jobs_of(url)) == 1


def test_right_key_gets_signed_links_and_wrong_key_gets_401(tmp_path: Path) -> None:
    with running(tmp_path, api_keys=("right",)) as url:
        with (
            client_of(url, "wrong") as client,
            pytest.raises(openai.AuthenticationError, match="Bearer KEY") as caught,
        ):
            client.images.edit(image=b"", prompt="a")
        assert caught.value.code == "invalid_api_key"
        with client_of(url, "right") as client:
            answer = client.images.generate(prompt="a", response_format="url")
            assert answer.data
            link = answer.data[0].url or ""
            assert [model.id for model in client.models.list()] == ["miniature", "sdxl"]
        assert httpx.get(link.partition("?")[0]).status_code == 401
        found = httpx.get(link)
        assert Image.open(io.BytesIO(found.content)).size == (8, 8)


def test_full_queue_returns_rate_limit_error(tmp_path: Path) -> None:
    with running(tmp_path, limits=Limits(queued_jobs=0)) as url, client_of(url) as client:
        with pytest.raises(openai.RateLimitError) as caught:
            client.images.generate(prompt="a")
        assert caught.value.code == "rate_limit_exceeded"
        assert int(caught.value.response.headers["retry-after"]) >= 5


# Waiting clients


def test_client_disconnect_cancels_job(tmp_path: Path) -> None:
    http = HttpSettings(disconnect_poll_interval_s=0.05)
    with running(tmp_path, 0.02, http=http) as url, client_of(url) as client:
        slow: dict[str, Any] = {"steps": 1000}
        with pytest.raises(openai.APITimeoutError):
            client.images.generate(prompt="a", extra_body=slow, timeout=1.0)
        until(lambda: [job["state"] for job in jobs_of(url)] == ["canceled"])
        with client.images.generate(
            prompt="a", stream=True, partial_images=3, extra_body=slow | {"steps": 200}
        ) as stream:
            next(iter(stream))
        until(lambda: [job["state"] for job in jobs_of(url)] == ["canceled"] * 2)


def test_client_disconnect_with_idempotency_key_keeps_job(tmp_path: Path) -> None:
    http = HttpSettings(disconnect_poll_interval_s=0.05)
    with running(tmp_path, 0.02, http=http) as url, client_of(url) as client:
        ask: dict[str, Any] = {
            "extra_body": {"steps": 100, "seed": 4},
            "extra_headers": {"Idempotency-Key": "once"},
        }
        again: dict[str, Any] = {"extra_headers": {"Idempotency-Key": "again"}}
        with pytest.raises(openai.APITimeoutError):
            client.images.generate(prompt="a", timeout=0.5, **ask)
        answer = client.images.generate(prompt="a", **ask)
        assert answer.data
        assert opened(answer.data[0].b64_json).getpixel((0, 0)) == (4, 0, 7)
        (job,) = jobs_of(url)
        assert answer._request_id == job["id"]
        told = list(client.images.generate(prompt="b", stream=True, **again))
        assert told == list(client.images.generate(prompt="b", stream=True, **again))
        newest, _ = jobs_of(url)
        assert told[-1].created_at == int(newest["created"])
        with pytest.raises(openai.BadRequestError, match="was used for another request"):
            client.images.generate(prompt="b", **ask)


def test_stream_of_canceled_job_raises_api_error(tmp_path: Path) -> None:
    with running(tmp_path, 0.02) as url, client_of(url) as client:
        stream = client.images.generate(
            prompt="a", stream=True, partial_images=1, extra_body={"steps": 200}
        )
        assert next(iter(stream)).type == "image_generation.partial_image"
        (job,) = jobs_of(url)
        httpx.post(f"{url}/api/jobs/{job['id']}/cancel")
        with pytest.raises(openai.APIError, match="was canceled"):
            list(stream)


def test_webhook_receives_response_or_error(url: str) -> None:
    with receiving() as receiver, client_of(url) as client:
        hook = {"webhook": receiver.url, "seed": 9}
        answer = client.images.generate(prompt="a", extra_body=hook)
        with pytest.raises(openai.BadRequestError):
            client.images.generate(prompt="refuse", extra_body=hook)
        until(lambda: len(receiver.posts) == 2)
    assert answer.data
    made, failed = sorted((body for _, body in receiver.told()), key=lambda body: "error" in body)
    assert made["data"][0]["b64_json"] == answer.data[0].b64_json
    assert failed["error"]["param"] == "prompt"
    assert made["id"] != failed["id"]


def test_server_shutdown_releases_waiting_clients(tmp_path: Path) -> None:
    with live.client_of(tmp_path, 0.02) as server, ThreadPoolExecutor(2) as waiting:
        body: dict[str, Any] = {"prompt": "a", "steps": 500}
        path = "/v1/images/generations"
        plain = waiting.submit(server.post, path, json=body)
        stream = waiting.submit(server.post, path, json=body | {"stream": True})
        until(lambda: len(server.get("/api/jobs").json()["jobs"]) == 2)
        application: Any = server.app
        application.state.service.drain()
        assert plain.result().status_code == 503
        assert "is shutting down" in plain.result().json()["error"]["message"]
        assert "is shutting down" in stream.result().text
        until(
            lambda: (
                [job["state"] for job in server.get("/api/jobs").json()["jobs"]] == ["canceled"] * 2
            )
        )


# The table of fields


def test_native_fields_do_not_overlap_client_fields() -> None:
    for kind in (Generation, Edit, Variation):
        for name, field in kind.model_fields.items():
            assert field.description, name
            assert name not in NATIVE_FIELDS
    assert set(Request.model_fields) - NATIVE_FIELDS == {
        *("prompt", "image", "mask", "size", "steps")
    }
    assert {
        *("prompt", "prompt_2", "negative_prompt", "negative_prompt_2", "mask_from"),
        *("sampler", "schedule", "vae", "decoder", "refiner"),
    } == TEXT_FIELDS


def test_quality_sets_number_of_steps() -> None:
    for word, steps in STEPS_BY_QUALITY.items():
        given = Generation.model_validate({"prompt": "a", "quality": word})
        assert to_request(given, NOWHERE)[0].num_inference_steps == steps
    plain = Generation.model_validate({"prompt": "a", "quality": "auto"})
    assert to_request(plain, NOWHERE)[0].num_inference_steps == 30


@pytest.mark.parametrize("own", [True, False])
def test_white_mask_repaints_its_transparent_part_even_if_that_is_larger(own: bool) -> None:
    """Other dialects read a few white pixels on a clear layer as strokes to repaint."""
    layer = Image.new("RGBA", (64, 64), (255, 255, 255, 0))
    layer.paste((255, 255, 255, 255), (0, 0, 64, 16))
    files = (
        {"image": png(layer)} if own else {"image": png(layer.convert("RGB")), "mask": png(layer)}
    )
    request, _ = to_request(Edit.model_validate({"prompt": "a", **files}), NOWHERE)
    assert request.mask
    mask = decode_mask(request.mask, (64, 64))
    assert mask[:16].max() == 0
    assert mask[16:].min() == 1


# With the engine that paints


def test_edit_with_miniature_repaints_transparent_area(tmp_path: Path) -> None:
    config = EngineConfig(("miniature",), "cpu", "fp32", tmp_path / "home")
    changes: dict[str, Any] = {
        "engine_factory": partial(make_engine, config),
        "models": config.models,
    }
    with Image.open(HOUSE) as image:
        house = image.convert("RGB").resize((128, 128))
    mask = Image.new("RGBA", house.size, (0, 0, 0, 255))
    ImageDraw.Draw(mask).rectangle((32, 32, 95, 95), (0, 0, 0, 0))
    with running(tmp_path / "data", **changes) as url, client_of(url) as client:
        extra = {"seed": 3, "steps": 4}
        edit = client.images.edit(image=png(house), mask=png(mask), prompt="a", extra_body=extra)
        told: list[Any] = list(
            client.images.generate(
                prompt="a red house", stream=True, partial_images=2, extra_body=extra
            )
        )
        with pytest.raises(openai.BadRequestError) as caught:
            client.images.generate(prompt="a", size="8x8", extra_body=extra)
    assert caught.value.param == "size"
    assert edit.data
    done = opened(edit.data[0].b64_json)
    before, after = (np.asarray(each.convert("RGB"), np.int16) for each in (house, done))
    inside = np.zeros((128, 128), bool)
    inside[32:96, 32:96] = True
    assert (before[~inside] == after[~inside]).all()
    assert np.abs(before[inside] - after[inside]).mean() > 8
    kinds = [event.type.partition(".")[2] for event in told]
    assert kinds == ["partial_image", "partial_image", "completed"]
    final = opened(told[-1].b64_json)
    assert told[-1].size == f"{final.width}x{final.height}"
    path = tmp_path / "final.png"
    path.write_bytes(base64.b64decode(told[-1].b64_json))
    assert read_settings(path).fields["seed"] == 3


def test_form_with_too_much_json_returns_400(url: str) -> None:
    some = "[" + ",".join("0" * 1000) + "]"
    form = {
        f"f{number}": (None, some) for number in range(DEFAULT_LIMITS.json_separators // 1000 + 1)
    }
    answer = httpx.post(f"{url}/v1/images/edits", files=form)
    assert answer.status_code == 400
    assert "100,000 brackets and commas" in answer.text
