"""Fields and uploads that fal's API accepts, as the original does."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fal_client
import httpx
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from overpaint.errors import RequestError
from overpaint.server.api.fal.protocol import Arguments
from overpaint.server.api.fal.translation import report_unused_arguments, to_request
from overpaint.server.api.ignored_fields import IGNORED_HEADER, collect_ignored, list_ignored
from tests.server.live import NOWHERE, client_of, running, until

PICTURE = Path(__file__).parents[3] / "examples" / "house.png"
HOUSE = PICTURE.read_bytes()
URI = fal_client.encode(HOUSE, "image/png")
RUN, QUEUE = "/fal/run/fal-ai/fast-sdxl", "/fal/queue/fal-ai/fast-sdxl"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with client_of(tmp_path_factory.mktemp("data")) as made:
        yield made


def run(client: TestClient, path: str = RUN, headers: Any = None, **fields: Any) -> Any:
    answer = client.post(path, json={"prompt": "a"} | fields, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer


def ignored(answer: Any) -> list[str]:
    return [name for name in answer.headers.get(IGNORED_HEADER, "").split(", ") if name]


def request_of(client: TestClient) -> Any:
    return client.get("/api/jobs").json()["jobs"][0]["request"]


# Fields


@pytest.mark.parametrize("empty", [None, "", [], {}])
@pytest.mark.parametrize("name", sorted({*Arguments.model_fields} - {"prompt"}))
def test_empty_argument_counts_as_absent(name: str, empty: Any) -> None:
    with collect_ignored():
        given = Arguments.model_validate({"prompt": "a", name: empty})
        report_unused_arguments(given)
        request = to_request(given, NOWHERE)[0].model_dump(exclude={"seed"})
        reported = list_ignored()
    plain = to_request(Arguments(prompt="a"), NOWHERE)[0].model_dump(exclude={"seed"})
    assert request == plain
    assert name in reported or getattr(given, name) == empty
    assert given.file_kind == "png"


@pytest.mark.parametrize(
    ("fields", "reported"),
    [
        ({"embeddings": [], "loras": [], "image_urls": []}, ["embeddings"]),
        ({"expand_prompt": False, "safety_checker_version": "v3"}, None),
        ({"strength": 0.95, "seed": None, "mask_url": ""}, None),
        ({"acceleration": "high", "image": URI, "seeds": 1, "enhance_prompt": True}, None),
        ({"image_size": {"width": 64, "height": 64, "unit": "px"}}, ["image_size.unit"]),
        ({"size": "auto"}, None),
        ({"size": "64x64", "image_size": "square"}, ["size"]),
        ({"format": "png", "output_format": "jpeg"}, ["output_format"]),
        ({"image_url": URI, "image_urls": [URI]}, ["image_urls.0"]),
        ({"image_urls": [URI, "http://127.0.0.1/"]}, ["image_urls.1"]),
    ],
)
def test_fields_without_effect_are_accepted_and_reported(
    client: TestClient, fields: dict[str, Any], reported: list[str] | None
) -> None:
    answer = run(client, **fields)
    assert sorted(ignored(answer)) == sorted(fields if reported is None else reported)
    has_image = any(fields.get(name) for name in ("image_url", "image_urls"))
    assert bool(request_of(client)["image"]) == has_image


@pytest.mark.parametrize(
    ("size", "width", "height", "mode"),
    [("256x128", 256, 128, "native"), ("keep", None, None, "keep")],
)
def test_size_is_read_as_openai_writes_it_and_as_native_field(
    size: str, width: int | None, height: int | None, mode: str
) -> None:
    """litellm passes OpenAI's `size` on to fal."""
    given = Arguments(prompt="a", size=size, image_url=URI)
    request, _ = to_request(given, NOWHERE)
    assert (request.width, request.height, request.size) == (width, height, mode)


def test_size_that_is_none_is_refused_by_name() -> None:
    with pytest.raises(RequestError, match='write "1024x1024"') as error:
        to_request(Arguments(prompt="a", size="large"), NOWHERE)
    assert error.value.field == "size"


def test_edit_task_repaints_the_first_image(client: TestClient) -> None:
    """litellm sends `image_urls` to the task `edit`."""
    run(client, f"{RUN}/edit", image_urls=[URI])
    assert request_of(client)["image"]
    answer = client.post(f"{RUN}/edit", json={"prompt": "a"})
    assert answer.json()["detail"][0]["loc"] == ["body", "image_url"]


@pytest.mark.parametrize("path", ["lora/inpaint", "flux/dev", "fooocus/inpaint"])
def test_tasks_of_other_apps_select_the_first_model(client: TestClient, path: str) -> None:
    fields = {"image_url": URI, "mask_url": URI} if path.endswith("inpaint") else {}
    run(client, f"/fal/run/fal-ai/{path}", num_inference_steps=1, **fields)


def test_trailing_schedule_and_negative_seed_are_read_as_fal_writes_them(
    client: TestClient,
) -> None:
    answer = run(client, scheduler="Euler (trailing timesteps)", seed=-1)
    assert "seed" in ignored(answer)
    request = request_of(client)
    assert (request["sampler"], request["schedule"]) == ("euler", "trailing")
    assert request["seed"] >= 0


def test_unknown_part_of_a_lora_is_reported_with_its_place() -> None:
    with collect_ignored():
        lora = {"path": "ink", "force": True, "weight_name": None}
        given = Arguments.model_validate({"prompt": "a", "loras": [lora]})
        report_unused_arguments(given)
        assert list_ignored() == ["loras.0.force", "loras.0.weight_name"]
    assert to_request(given, NOWHERE)[0].loras[0].name == "ink"


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"output_format": "webp"}, "WEBP"),
        ({"output_format": "jpeg"}, "JPEG"),
        ({"format": "jpg"}, "JPEG"),
        ({"format": "png", "output_format": "webp"}, "PNG"),
        ({}, "PNG"),
    ],
)
def test_output_format_sets_the_file(client: TestClient, fields: Any, kind: str) -> None:
    (image,) = run(client, **fields).json()["images"]
    assert image["content_type"] == f"image/{kind.lower()}"
    assert Image.open(io.BytesIO(client.get(image["url"]).content)).format == kind


def test_headers_without_effect_are_accepted_and_reported(client: TestClient) -> None:
    headers = {"X-Fal-Request-Timeout": "60", "X-Fal-Queue-Priority": "HIGH"}
    answer = run(client, QUEUE, headers, seed=1)
    assert sorted(ignored(answer)) == ["X-Fal-Queue-Priority", "X-Fal-Request-Timeout"]
    assert ignored(run(client, f"{QUEUE}?fal_webhook=", {"X-Fal-Queue-Priority": "LOW"})) == []


# Uploads


def initiate(client: TestClient, name: str = "house.png", **more: Any) -> Any:
    body = {"file_name": name, "content_type": "image/png"} | more
    answer = client.post("/fal/rest/storage/upload/initiate?storage_type=fal-cdn-v3", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_uploaded_file_is_used_by_its_link(client: TestClient) -> None:
    links = initiate(client)
    assert links["file_url"].endswith("/house.png")
    early = client.post(RUN, json={"prompt": "a", "image_url": links["file_url"]})
    assert (early.status_code, "upload it again" in early.text) == (422, True)
    assert early.json()["detail"][0]["loc"] == ["body", "image_url"]
    for _ in range(2):  # clients repeat an upload after a lost answer
        assert client.put(links["upload_url"], content=HOUSE).status_code == 200
    assert client.put(links["upload_url"], content=b"other").status_code == 404
    url = links["file_url"]
    run(client, f"{RUN}/inpainting", image_url=url, mask_url=url)
    request = request_of(client)
    assert request["image"] == request["mask"]
    run(client, controls=[{"kind": "canny", "image": {"url": url}}])
    assert client.get(url).content == HOUSE
    assert client.get(url).headers["content-type"] == "image/png"
    script = initiate(client, "a/../x y.html", content_type="text/html")
    assert script["file_url"].endswith("/x%20y.html")
    client.put(script["upload_url"], content=b"<script>")
    assert client.get(script["file_url"]).headers["content-type"] == "application/octet-stream"


def test_upload_link_needs_its_signature(client: TestClient) -> None:
    link = initiate(client)["upload_url"]
    assert client.put(link[:-1] + "!", content=HOUSE).status_code == 403
    assert client.put(link.partition("?")[0], content=HOUSE).status_code == 403
    parts = client.post("/fal/rest/storage/upload/initiate-multipart", json={})
    assert parts.status_code == 413


def test_file_of_another_key_is_unknown(tmp_path: Path) -> None:
    with client_of(tmp_path, api_keys=("one", "two")) as client:
        one, two = ({"Authorization": f"Key {key}"} for key in ("one", "two"))
        path = "/fal/rest/storage/upload/initiate"
        assert client.post(path, json={}).status_code == 401
        links = client.post(path, json={"file_name": ""}, headers=one).json()
        assert client.put(links["upload_url"], content=HOUSE).status_code == 200
        body = {"prompt": "a", "image_url": links["file_url"]}
        assert client.post(QUEUE, json=body, headers=two).status_code == 422
        assert client.post(QUEUE, json=body, headers=one).status_code == 200
        assert client.get(links["file_url"], headers=two).status_code == 404
        assert client.get(links["file_url"]).status_code == 401


UPLOADS = """
import sys
import fal_client

url, picture, repository = sys.argv[1:]
fal_client.client.REST_URL = fal_client.client.CDN_URL = f"{url}/fal/rest"
fal_client.client.RUN_URL_FORMAT = f"{url}/fal/run/"
client = fal_client.SyncClient(key="right")
link = client.upload(open(picture, "rb").read(), "image/png", repository=repository)
print(len(client.run("fal-ai/fast-sdxl", {"prompt": "a", "image_url": link})["images"]))
"""


@pytest.mark.parametrize("repository", ["fal_v3", "fal"])
def test_python_client_uploads_files(tmp_path: Path, repository: str) -> None:
    """The client leaves connections open, so it runs in a separate process."""
    with running(tmp_path, api_keys=("right",)) as url:
        script = [sys.executable, "-c", UPLOADS, url, str(PICTURE), repository]
        done = subprocess.run(script, capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


@pytest.mark.parametrize(
    ("target", "location"),
    [
        ("https://queue.fal.run/fal-ai/fast-sdxl?a=1", "/fal/queue/fal-ai/fast-sdxl?a=1"),
        ("https://fal.run/any/m/stream", "/fal/run/any/m/stream"),
        ("https://rest.fal.ai/storage/upload/initiate", "/fal/rest/storage/upload/initiate"),
        ("https://example.com/", None),
        ("https://fal.run/../../api/jobs", None),
        ("nothing", None),
    ],
)
def test_proxy_redirects_to_the_routes_of_this_server(
    client: TestClient, target: str, location: str | None
) -> None:
    headers = {"x-fal-target-url": target}
    answer = client.post("/fal/proxy", headers=headers, follow_redirects=False)
    if location is None:
        assert answer.status_code == 404
    else:
        assert (answer.status_code, answer.headers["location"]) == (
            307,
            f"http://testserver{location}",
        )


def test_request_through_the_proxy_keeps_its_body(client: TestClient) -> None:
    headers = {"x-fal-target-url": "https://fal.run/fal-ai/fast-sdxl"}
    answer = client.post("/fal/proxy", json={"prompt": "by proxy", "seed": 3}, headers=headers)
    assert answer.json()["prompt"] == "by proxy"
    assert httpx.URL(answer.json()["images"][0]["url"]).path.endswith(".png")


def test_results_name_their_request(client: TestClient) -> None:
    body = {"prompt": "a", "num_inference_steps": 1}
    run = client.post("/fal/run/fal-ai/fast-sdxl", json=body)
    streamed = client.post("/fal/run/fal-ai/fast-sdxl/stream", json=body)
    name = client.post("/fal/queue/fal-ai/fast-sdxl", json=body).json()["request_id"]
    path = f"/fal/queue/fal-ai/fast-sdxl/requests/{name}"
    until(lambda: client.get(path).status_code == 200)
    assert client.get(path).headers["X-Fal-Request-Id"] == name
    for answer in (run, streamed):
        job = client.get(f"/api/jobs/{answer.headers['X-Fal-Request-Id']}").json()
        assert job["state"] == "succeeded"
