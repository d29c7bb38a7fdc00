"""fal's client against this server: queue, run, streams, webhooks and errors."""

from __future__ import annotations

import asyncio
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fal_client
import httpx
import pytest
from fal_client import AsyncClient, SyncClient
from fal_client.client import FalClientHTTPError
from PIL import Image

from overpaint.imaging.codec import read_picture
from overpaint.request.parts import Lora
from overpaint.server.api.fal.protocol import NATIVE_FIELDS, SIZES_BY_NAME, Arguments
from overpaint.server.api.fal.translation import to_request
from overpaint.server.settings import HttpSettings, WorkerSettings
from tests.docs.blocks import first_block
from tests.server.jobs.test_webhooks import receiving
from tests.server.live import NOWHERE, running, until

ROOT = Path(__file__).parents[3]
HOUSE = ROOT / "examples" / "house.png"
URI = fal_client.encode_file(HOUSE)
APP = "fal-ai/fast-sdxl"
PATIENCE = 60.0


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    http = HttpSettings(disconnect_poll_interval_s=0.05)
    with running(tmp_path_factory.mktemp("data"), 0.01, http=http) as address:
        yield address


@pytest.fixture
def client(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[SyncClient]:
    point(monkeypatch, url)
    made = SyncClient(key="any")
    yield made
    made._client.close()  # pyright: ignore[reportPrivateUsage]


def point(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Point fal's clients at an address."""
    monkeypatch.setattr("fal_client.client.QUEUE_URL_FORMAT", f"{url}/fal/queue/")
    monkeypatch.setattr("fal_client.client.RUN_URL_FORMAT", f"{url}/fal/run/")


def asked(url: str) -> dict[str, Any]:
    """Return the newest job."""
    return httpx.get(f"{url}/api/jobs").json()["jobs"][0]


def opened(image: dict[str, Any]) -> Image.Image:
    return Image.open(io.BytesIO(httpx.get(image["url"]).content))


# What users write


def test_subscribe_with_logs_returns_result(client: SyncClient, url: str) -> None:
    told: list[fal_client.Status] = []
    enqueued: list[str] = []
    made = client.subscribe(
        APP,
        {"prompt": "note", "seed": 7, "num_images": 2, "image_size": "portrait_4_3"},
        with_logs=True,
        interval=0.01,
        on_enqueue=enqueued.append,
        on_queue_update=told.append,
    )
    assert [image["seed"] for image in made["images"]] == [7, 8]
    assert (made["seed"], made["prompt"]) == (7, "note")
    assert made["has_nsfw_concepts"] == [False, False]
    first = made["images"][0]
    assert (first["width"], first["height"], first["content_type"]) == (8, 8, "image/png")
    assert opened(first).getpixel((0, 0)) == (7, 0, 7)
    job = asked(url)
    assert (enqueued, job["model"]) == ([job["id"]], "miniature")
    request = job["request"]
    assert (request["width"], request["height"]) == SIZES_BY_NAME["portrait_4_3"]
    assert (request["num_inference_steps"], request["guidance_scale"]) == (25, 7.5)
    assert isinstance(last := told[-1], fal_client.Completed)
    assert last.error is None
    assert last.metrics["inference_time"] >= 0
    assert last.logs is not None
    assert "noted" in [line["message"] for line in last.logs]


def test_request_lifecycle_reports_status_and_cancellation(client: SyncClient, url: str) -> None:
    handle = client.submit("any/sdxl", {"prompt": "a", "num_inference_steps": 1000})
    until(lambda: isinstance(handle.status(), fal_client.InProgress))
    behind = httpx.get(handle.response_url)
    assert (behind.status_code, behind.json()["detail"]) == (400, "Request is still in progress")
    assert httpx.get(handle.status_url).status_code == 202
    status = handle.status(with_logs=True)
    assert isinstance(status, fal_client.InProgress)
    assert isinstance(status.logs, list)
    assert asked(url)["model"] == "sdxl"
    client.cancel("any/sdxl", handle.request_id)
    until(lambda: isinstance(handle.status(), fal_client.Completed))
    ended = client.status("any/sdxl", handle.request_id)
    assert isinstance(ended, fal_client.Completed)
    assert (ended.error_type, ended.error) == ("client_cancelled", "The request was canceled.")
    with pytest.raises(FalClientHTTPError, match="was canceled") as caught:
        handle.get()
    assert caught.value.status_code == 499
    with pytest.raises(FalClientHTTPError) as again:
        handle.cancel()
    assert again.value.response.json() == {"status": "ALREADY_COMPLETED"}


def test_queue_position_with_low_priority_comes_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server runs one job at a time; the low priority goes last."""
    with running(tmp_path, 0.01, worker=WorkerSettings(poll_interval_s=0.05, max_jobs=1)) as url:
        point(monkeypatch, url)
        client = SyncClient(key="any")
        long = {"prompt": "a", "num_inference_steps": 1000}
        first = client.submit(APP, long)
        until(lambda: isinstance(first.status(), fal_client.InProgress))
        low = client.submit(APP, long, priority="low")
        assert low.status() == fal_client.Queued(position=0)
        normal = client.submit(APP, long)
        assert normal.status() == fal_client.Queued(position=0)
        assert low.status() == fal_client.Queued(position=1)
        client._client.close()  # pyright: ignore[reportPrivateUsage]


def test_run_with_sync_mode_returns_data_uri(client: SyncClient) -> None:
    made = client.run(APP, {"prompt": "a", "sync_mode": True, "format": "jpeg", "seed": 3})
    (image,) = made["images"]
    assert image["url"].startswith("data:image/jpeg;base64,")
    assert image["content_type"] == "image/jpeg"


def test_run_with_image_and_mask_uses_fal_defaults(client: SyncClient, url: str) -> None:
    arguments = {"prompt": "a", "image_url": URI, "mask_url": URI, "mask_grow": 4}
    client.run(f"{APP}/inpainting", arguments)
    request = asked(url)["request"]
    assert (request["strength"], request["steps"], request["fill"]) == (
        0.95,
        "truncate",
        "original",
    )
    assert request["mask_grow"] == 4
    client.run(
        APP,
        {"prompt": "a", "image_url": URI, "steps": "exact", "strength": 0.5},
        path="image-to-image",
    )
    request = asked(url)["request"]
    assert (request["strength"], request["steps"]) == (0.5, "exact")
    upload = httpx.post(
        f"{url}/v1/files", files={"content": ("house.png", HOUSE.read_bytes(), "image/png")}
    ).json()["urls"]["get"]
    client.run(APP, {"prompt": "a", "image_url": upload})
    assert asked(url)["request"]["image"] == request["image"]


def test_async_client_subscribes_runs_and_streams(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    point(monkeypatch, url)

    async def run() -> Any:
        client = AsyncClient(key="any")
        try:
            made = await client.subscribe(APP, {"prompt": "a"}, interval=0.01)
            ran = await client.run(APP, {"prompt": "a"})
            shown = [event async for event in client.stream(APP, {"prompt": "a"})]
            return made, ran, shown
        finally:
            await (await client._client).aclose()  # pyright: ignore[reportPrivateUsage]

    made, ran, shown = asyncio.run(run())
    assert len(made["images"]) == len(ran["images"]) == len(shown[-1]["images"]) == 1


def test_stream_sends_previews_then_result_or_error(client: SyncClient) -> None:
    told = list(client.stream(APP, {"prompt": "a", "seed": 5}))
    assert "seed" not in told[0]
    assert told[0]["images"][0]["url"].startswith("data:image/jpeg;base64,")
    assert told[-1]["seed"] == 5
    broken = list(client.stream(APP, {"prompt": "refuse", "num_inference_steps": 2}))
    assert broken[-1]["detail"] == [
        {"loc": ["body", "prompt"], "msg": "Refused", "type": "value_error"}
    ]


def test_status_stream_ends_with_completed(client: SyncClient) -> None:
    handle = client.submit(APP, {"prompt": "note"})
    with httpx.stream("GET", f"{handle.status_url}/stream", params={"logs": True}) as answer:
        told = [json.loads(line[6:]) for line in answer.iter_lines() if line]
    assert told[-1]["status"] == "COMPLETED"
    assert told[-1]["response_url"] == handle.response_url
    kinds = [each["status"] for each in told]
    assert kinds == sorted(kinds, key=["IN_QUEUE", "IN_PROGRESS", "COMPLETED"].index)


def test_webhook_receives_result_or_error(client: SyncClient) -> None:
    with receiving() as receiver:
        done = client.submit(APP, {"prompt": "a"}, webhook_url=receiver.url)
        failed = client.submit(APP, {"prompt": "refuse"}, webhook_url=receiver.url)
        until(lambda: len(receiver.posts) == 2)
        told = {body["request_id"]: body for body in (json.loads(b) for _, b in receiver.posts)}
    assert told[done.request_id]["status"] == "OK"
    assert told[done.request_id]["payload"] == done.get()
    assert told[failed.request_id]["status"] == "ERROR"
    assert told[failed.request_id]["payload"]["detail"][0]["loc"] == ["body", "prompt"]


def test_repeated_idempotency_key_returns_same_request(client: SyncClient) -> None:
    headers = {"Idempotency-Key": "one"}
    handles = [client.submit(APP, {"prompt": "a", "seed": 1}, headers=headers) for _ in range(2)]
    assert handles[0].request_id == handles[1].request_id
    with pytest.raises(FalClientHTTPError) as caught:
        client.submit(APP, {"prompt": "b", "seed": 1}, headers=headers)
    assert caught.value.status_code == 422


def test_client_disconnect_cancels_job_without_idempotency_key(url: str) -> None:
    """A job continues only if the client sent a key to ask for its result later."""
    long = {"prompt": "a", "num_inference_steps": 1000}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{url}/fal/run/{APP}", json=long, timeout=0.5)
    until(lambda: asked(url)["state"] == "canceled")
    gone = asked(url)["id"]
    with httpx.stream("POST", f"{url}/fal/run/{APP}/stream", json=long) as answer:
        next(answer.iter_lines())
    until(lambda: asked(url)["id"] != gone and asked(url)["state"] == "canceled")
    kept = {"prompt": "a", "seed": 1, "num_inference_steps": 150}
    headers = {"Idempotency-Key": "later"}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{url}/fal/run/{APP}", json=kept, headers=headers, timeout=0.5)
    again = httpx.post(f"{url}/fal/queue/{APP}", json=kept, headers=headers).json()
    until(lambda: httpx.get(again["status_url"]).json()["status"] == "COMPLETED")
    assert httpx.get(again["response_url"]).json()["seed"] == 1


def test_docs_example_runs_with_the_real_client(
    url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = first_block("guides/clients/fal.md", "python")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "house.png").write_bytes(HOUSE.read_bytes())
    point(monkeypatch, "unused")  # so that what the lines set is undone
    space: dict[str, Any] = {}
    exec(lines.replace("http://127.0.0.1:8000", url), space)
    space["client"]._client.close()
    assert opened({"url": capsys.readouterr().out.strip()}).size == (8, 8)


def test_docs_host_variables_point_the_client_at_the_server() -> None:
    """Two variables point fal's clients at a server that they reach by https:."""
    text = first_block("guides/clients/fal.md", "text")
    hosts = ("FAL_RUN_HOST=HOST/fal/run", "FAL_QUEUE_RUN_HOST=HOST/fal/queue")
    assert " ".join(hosts) in text
    code = "import fal_client.client as c; print(c.RUN_URL_FORMAT, c.QUEUE_URL_FORMAT)"
    environment = dict(os.environ)
    for name, _, value in (host.partition("=") for host in hosts):
        environment[name] = value
    told = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert told.stdout.split() == ["https://HOST/fal/run/", "https://HOST/fal/queue/"]


# Errors


@pytest.mark.parametrize(
    ("fields", "place", "says"),
    [
        ({"prompt": None}, ["prompt"], "required"),
        ({"num_images": 65}, ["num_images"], "less than or equal to 64"),
        ({"image_size": "big"}, ["image_size"], "square_hd"),
        ({"image_size": {"width": 1023, "height": 512}}, ["image_size"], "multiple of 8"),
        ({"image_size": "square", "width": 64}, ["image_size"], "contradicts width"),
        ({"mask_url": URI}, ["mask_url"], "needs an image"),
        ({"image_url": "http://169.254.169.254/"}, ["image_url"], "cannot be fetched"),
        ({"image_url": "file:///etc/passwd"}, ["image_url"], "neither a data: URI"),
        ({"embeddings": [{"path": "a"}]}, ["embeddings"], "not supported"),
        ({"controlnets": [{"path": "a"}]}, ["controlnets"], "not supported"),
        ({"ip_adapter": [{"path": "a"}]}, ["ip_adapter"], "not supported"),
        ({"scheduler": "__class__"}, ["scheduler"], "There is no sampler"),
        ({"expand_prompt": True}, ["expand_prompt"], "not supported"),
        ({"format": "gif"}, ["format"], "png"),
        ({"output_format": "gif"}, ["output_format"], "png"),
        ({"loras": [{"path": "x"}]}, ["loras", 0, "path"], "Unknown lora"),
        ({"prompt": "<lora:x:1>"}, ["prompt"], "Unknown lora"),
        ({"controls": [{"kind": "no"}]}, ["controls", 0, "kind"], "There is no hint"),
    ],
)
def test_request_with_bad_argument_returns_422_naming_it(
    client: SyncClient, url: str, fields: Any, place: list[str | int], says: str
) -> None:
    before = asked(url)["id"] if httpx.get(f"{url}/api/jobs").json()["jobs"] else None
    for call in (client.submit, client.run):
        with pytest.raises(FalClientHTTPError) as caught:
            call(APP, {"prompt": "a"} | fields)
        assert caught.value.status_code == 422
        told = caught.value.response.json()["detail"]
        assert any(each["loc"][: 1 + len(place)] == ["body", *place] for each in told), told
        assert says in json.dumps(told)
    assert (asked(url)["id"] if before else None) == before


def test_request_with_bad_link_is_rejected(client: SyncClient) -> None:
    with pytest.raises(FalClientHTTPError, match="fal_webhook"):
        client.submit(APP, {"prompt": "a"}, webhook_url="http://10.0.0.1/")
    with pytest.raises(FalClientHTTPError, match="image_url"):
        client.run(f"{APP}/inpainting", {"prompt": "a"})
    with pytest.raises(FalClientHTTPError, match="neither a data"):
        client.run(APP, {"prompt": "a", "image_url": "no picture"})
    with pytest.raises(FalClientHTTPError, match="not a picture"):
        client.run(APP, {"prompt": "a", "image_url": "data:,no picture"})


def test_unknown_app_or_request_returns_404(client: SyncClient, url: str) -> None:
    for app, says in (
        ("any/sdxl2", "Did you mean sdxl"),
        (f"{APP}/upscale", "has no task 'upscale'"),
    ):
        with pytest.raises(FalClientHTTPError, match=says) as caught:
            client.submit(app, {"prompt": "a"})
        assert caught.value.status_code == 404
    native = httpx.post(f"{url}/api/jobs", json={"request": {}}).json()["id"]
    for name in ("nothing", native):
        with pytest.raises(FalClientHTTPError, match=r"(?i)there is no") as caught:
            client.status(APP, name)
        assert caught.value.status_code == 404


def test_failed_request_raises_matching_error(client: SyncClient) -> None:
    handle = client.submit(APP, {"prompt": "refuse"})
    with pytest.raises(FalClientHTTPError, match="Refused") as caught:
        handle.get(interval=0.01)
    assert caught.value.status_code == 422
    ended = handle.status()
    assert isinstance(ended, fal_client.Completed)
    assert (ended.error, ended.error_type) == ("prompt: Refused", "bad_request")
    with pytest.raises(FalClientHTTPError, match="a defect") as broken:
        client.run(APP, {"prompt": "break"})
    assert broken.value.status_code == 500


def test_api_key_reads_only_its_own_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(tmp_path, api_keys=("one", "two")) as url:
        point(monkeypatch, url)
        clients = [SyncClient(key=key) for key in ("one", "two", "three")]
        handle = clients[0].submit(APP, {"prompt": "a"})
        made = handle.get(interval=0.01)
        assert opened(made["images"][0]).size == (8, 8)
        for client, status in zip(clients[1:], (404, 401), strict=True):
            with pytest.raises(FalClientHTTPError) as caught:
                client.result(APP, handle.request_id)
            assert caught.value.status_code == status
        for client in clients:
            client._client.close()  # pyright: ignore[reportPrivateUsage]


# Translation


def inputs_as(**fields: Any) -> Any:
    return to_request(Arguments(**fields), NOWHERE)[0]


def test_arguments_translate_with_fal_defaults() -> None:
    plain = inputs_as(prompt="a", seed=1)
    assert (plain.num_inference_steps, plain.guidance_scale, plain.strength) == (25, 7.5, None)
    assert (plain.width, plain.size, plain.steps) == (None, "native", "exact")
    edit = inputs_as(prompt="a", image_url=URI)
    assert edit.image.data == read_picture(HOUSE).data
    assert (edit.strength, edit.steps) == (0.95, "truncate")
    masked = inputs_as(prompt="a", image_url=URI, mask_url=URI, fill="noise")
    assert (masked.fill, masked.strength, masked.size) == ("noise", 0.95, "keep")
    styled = inputs_as(prompt="a", loras=[{"path": "ink", "scale": 0.3}], scheduler="Euler A")
    assert styled.loras == (Lora(name="ink", scale=0.3),)
    assert styled.sampler == "euler_a"


def test_native_field_in_old_spelling_is_accepted(client: SyncClient, url: str) -> None:
    arguments = {"prompt": "a", "image_url": URI, "mask_url": URI, "match_colours": False}
    client.run(f"{APP}/inpainting", arguments)
    assert asked(url)["request"]["match_colors"] is False


def test_native_fields_do_not_overlap_arguments() -> None:
    assert {"clip_skip", "controls", "refiner", "task"} <= NATIVE_FIELDS
    assert NATIVE_FIELDS.isdisjoint(Arguments.model_fields)


def test_field_name_of_many_digits_returns_422(url: str) -> None:
    controls = [{"kind": "canny", "9" * 5000: 1}]
    body = {"prompt": "a cup", "controls": controls}
    assert httpx.post(f"{url}/fal/run/{APP}", json=body).status_code == 422
