"""Fields that OpenAI's images API accepts, as the original does."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image, ImageDraw

from overpaint.request import Request
from overpaint.server.api.ignored_fields import (
    IGNORED_HEADER,
    collect_ignored,
    list_ignored,
    report_ignored_fields,
)
from overpaint.server.api.openai.protocol import Edit, Generation, Variation
from overpaint.server.api.openai.translation import to_request
from tests.server.live import NOWHERE, client_of

HOUSE = (Path(__file__).parents[3] / "examples" / "house.png").read_bytes()
GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with client_of(tmp_path_factory.mktemp("data")) as made:
        yield made


def generate(client: TestClient, **fields: Any) -> Any:
    answer = client.post(GENERATIONS, json={"prompt": "a"} | fields)
    assert answer.status_code == 200, answer.text
    return answer


def edit(client: TestClient, *parts: tuple[str, Any], path: str = EDITS) -> Any:
    form = [("prompt", (None, "a")), *parts]
    answer = client.post(path, files=form)
    assert answer.status_code == 200, answer.text
    return answer


def ignored(answer: Any) -> list[str]:
    return [name for name in answer.headers.get(IGNORED_HEADER, "").split(", ") if name]


def request_of(client: TestClient) -> Any:
    return client.get("/api/jobs").json()["jobs"][0]["request"]


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def house_with_hole() -> bytes:
    with Image.open(io.BytesIO(HOUSE)) as house:
        image = house.convert("RGBA")
    ImageDraw.Draw(image).rectangle((10, 10, 60, 60), (0, 0, 0, 0))
    return png(image)


# Fields


@pytest.mark.parametrize("empty", [None, "", [], {}])
@pytest.mark.parametrize("kind", [Generation, Edit, Variation])
def test_empty_fields_count_as_absent(kind: type[Generation], empty: Any) -> None:
    needed: dict[str, Any] = {"prompt": "a"}
    if kind is not Generation:
        needed["image"] = HOUSE
    plain = to_request(kind.model_validate(needed), NOWHERE)[0].model_dump(exclude={"seed"})
    for name in {*kind.model_fields, *Request.model_fields} - {"prompt", "image", "prompt_2"}:
        with collect_ignored():
            given = kind.model_validate(needed | {name: empty})
            report_ignored_fields(given)
            request = to_request(given, NOWHERE)[0].model_dump(exclude={"seed"})
            reported = list_ignored()
        if name == "negative_prompt_2" and empty == "":
            assert request["negative_prompt_2"] == ""
        else:
            assert request == plain, name
            assert name in reported or name == "negative_prompt"


@pytest.mark.parametrize(
    ("fields", "reported"),
    [
        ({"style": "vivid", "user": "me", "safety_identifier": "x"}, None),
        ({"style": "", "quality": "", "size": "", "model": "", "response_format": ""}, None),
        ({"moderation": "low", "background": "auto", "frame_count": 1}, None),
        ({"output_compression": 100}, None),
        ({"output_compression": 100, "output_format": "png"}, ["output_compression"]),
        ({"output_compression": 100, "output_format": "webp"}, []),
        ({"partial_images": 2}, None),
        ({"image": "x", "mask": None, "input_fidelity": "high"}, None),
        ({"strength": 0.5, "fit": "cover"}, None),
        ({"complexity": "low", "seeds": 1, "num_outputs": 2}, None),
        ({"n": None, "seed": None, "stream": None}, None),
        ({"num_images": 2}, []),
    ],
)
def test_fields_without_effect_are_accepted_and_reported(
    client: TestClient, fields: dict[str, Any], reported: list[str] | None
) -> None:
    answer = generate(client, **fields)
    assert sorted(ignored(answer)) == sorted(fields if reported is None else reported)
    assert len(answer.json()["data"]) == fields.get("num_images", 1)


def test_stream_reports_a_format_that_it_cannot_have(client: TestClient) -> None:
    fields = {"stream": True, "response_format": "url", "partial_images": 1, "n": 2}
    answer = generate(client, **fields)
    assert sorted(ignored(answer)) == ["partial_images", "response_format"]
    assert answer.text.count("event: image_generation.completed") == 2
    assert "b64_json" in answer.text


@pytest.mark.parametrize("name", ["image[]", "image", "image[{}]"])
def test_edit_of_several_images_repaints_the_first(client: TestClient, name: str) -> None:
    others = [png(Image.new("RGB", (64, 64), color)) for color in ("red", "blue")]
    images = [
        (name.format(number), (f"{number}.png", data, "image/png"))
        for number, data in enumerate([HOUSE, *others])
    ]
    answer = edit(client, *images)
    assert ignored(answer) == ["image[1]", "image[2]"]
    plain = edit(client, ("image", ("house.png", HOUSE, "image/png")))
    assert ignored(plain) == []
    first, second = (job["request"] for job in client.get("/api/jobs").json()["jobs"][:2])
    assert first["image"] == second["image"]


def test_edit_with_empty_parts_ignores_them(client: TestClient) -> None:
    answer = edit(
        client,
        ("image", ("house.png", HOUSE, "image/png")),
        ("mask", ("mask.png", b"", "image/png")),
        ("style", (None, "")),
        ("quality", (None, "")),
        ("input_fidelity", (None, "low")),
        ("size", (None, "")),
        ("unknown", (None, "x")),
        ("markup", ("", b"", "application/octet-stream")),
    )
    assert sorted(ignored(answer)) == sorted(
        ["mask", "style", "quality", "input_fidelity", "size", "unknown", "markup"]
    )
    assert request_of(client)["mask"] is None


def test_edit_without_mask_uses_the_transparency_of_the_image(client: TestClient) -> None:
    holed = house_with_hole()
    edit(client, ("image", ("house.png", holed, "image/png")))
    request = request_of(client)
    sent = to_request(Edit(prompt="a", image=holed), NOWHERE)[0]
    assert sent.mask is not None
    assert request["mask"] == {"file": sent.mask.sha256}
    with Image.open(io.BytesIO(sent.mask.data)) as mask:
        assert (mask.mode, mask.getbbox()) == ("L", (10, 10, 61, 61))
    assert (request["task"], request["size"]) == ("replace", "keep")
    edit(
        client,
        ("image", ("house.png", holed, "image/png")),
        ("mask_from", (None, "box:0,0,64,64")),
    )
    assert request_of(client)["mask"] is None
    edit(client, ("image", ("house.png", HOUSE, "image/png")))
    assert request_of(client)["mask"] is None


def test_variation_ignores_fields_of_the_sister_calls(client: TestClient) -> None:
    answer = edit(
        client,
        ("image", ("house.png", HOUSE, "image/png")),
        ("quality", (None, "hd")),
        ("background", (None, "transparent")),
        path="/v1/images/variations",
    )
    assert sorted(ignored(answer)) == ["background", "prompt", "quality"]
    assert request_of(client)["prompt"] == ""


# Models and keys


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({"model": "dall-e-2"}, "url"),
        ({"model": "dall-e-3"}, "url"),
        ({"model": "dall-e-3", "response_format": None}, "url"),
        ({"model": "dall-e-3", "response_format": "b64_json"}, "b64_json"),
        ({"model": "gpt-image-1"}, "b64_json"),
        ({"model": "m"}, "b64_json"),
        ({}, "b64_json"),
        ({"response_format": "url"}, "url"),
    ],
)
def test_images_of_dall_e_are_links_by_default(client: TestClient, fields: Any, key: str) -> None:
    (image,) = generate(client, **fields).json()["data"]
    assert set(image) == {key, "seed"}
    content = (
        client.get(image["url"]).content if key == "url" else base64.b64decode(image["b64_json"])
    )
    assert content.startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["m", "n", "dall-e-3", "gpt-image-1", "gpt-image-1.5"])
def test_every_model_that_works_is_described(client: TestClient, name: str) -> None:
    assert client.get(f"/v1/models/{name}").json()["id"] == name
    generate(client, model=name)
    assert client.get("/v1/models/whisper-1").status_code == 404


def test_key_in_azures_header_is_accepted(tmp_path: Path) -> None:
    with client_of(tmp_path, api_keys=("right",)) as client:
        for key, status in (("right", 200), ("wrong", 401), ("", 401)):
            answer = client.get("/v1/models", headers={"api-key": key})
            assert answer.status_code == status


# Azure's paths


@pytest.mark.parametrize("model", ["n", "dall-e-3"])
def test_deployment_of_azure_is_the_model(client: TestClient, model: str) -> None:
    path = f"/openai/deployments/{model}/images/generations?api-version=2025-04-01-preview"
    answer = client.post(path, json={"prompt": "a", "model": "other"})
    assert answer.status_code == 200, answer.text
    assert client.get("/api/jobs").json()["jobs"][0]["model"] == ("n" if model == "n" else "m")
    assert ("url" in answer.json()["data"][0]) == (model == "dall-e-3")
    missing = client.post("/openai/deployments/x/images/generations", json={"prompt": "a"})
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")
    assert client.post("/openai/v1/images/generations", json={"prompt": "a"}).status_code == 200


# Edits in JSON


def data_uri(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def edit_json(client: TestClient, **fields: Any) -> Any:
    return client.post(EDITS, json={"prompt": "a", "seed": 7} | fields)


def test_edit_in_json_equals_the_edit_in_a_form(client: TestClient) -> None:
    upload = client.post("/v1/files", files={"content": ("a.png", HOUSE)}).json()
    mask = house_with_hole()
    edit(
        client,
        ("image", ("house.png", HOUSE)),
        ("mask", ("mask.png", mask)),
        ("seed", (None, "7")),
    )
    expected = request_of(client)
    for images in (
        [{"image_url": data_uri(HOUSE)}],
        [{"file_id": upload["id"]}],
        [{"image_url": upload["urls"]["get"]}],
        [data_uri(HOUSE)],
    ):
        answer = edit_json(client, images=images, mask={"image_url": data_uri(mask)})
        assert answer.status_code == 200, answer.text
        assert request_of(client) == expected
        assert ignored(answer) == []
    answer = edit_json(client, image=data_uri(HOUSE), mask=data_uri(mask), stream=True)
    assert "event: image_edit.completed" in answer.text
    assert request_of(client) == expected


@pytest.mark.parametrize("mask", [{}, {"image_url": None}, {"file_id": ""}])
def test_empty_mask_in_json_counts_as_absent(client: TestClient, mask: Any) -> None:
    answer = edit_json(client, images=[data_uri(HOUSE)], mask=mask)
    assert answer.status_code == 200, answer.text
    assert request_of(client)["mask"] is None


def test_unknown_nested_field_of_a_form_is_reported_and_a_known_one_is_refused(
    client: TestClient,
) -> None:
    fields = {"image": ("house.png", HOUSE), "prompt": (None, "a")}
    answer = client.post(EDITS, files=fields | {"metadata[a]": (None, "1")})
    assert answer.status_code == 200, answer.text
    assert ignored(answer) == ["metadata"]
    answer = client.post(EDITS, files=fields | {"controls[0][kind]": (None, "canny")})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "controls"


def test_edit_in_json_reports_fields_without_effect(client: TestClient) -> None:
    images = [{"image_url": data_uri(HOUSE)}, {"file_id": "file-of-another-image"}]
    answer = edit_json(client, images=images, mask=None, size="", unknown=1, input_fidelity="low")
    assert answer.status_code == 200
    assert sorted(ignored(answer)) == sorted(
        ["images.1", "mask", "size", "unknown", "input_fidelity"]
    )


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({}, "images", "required"),
        ({"images": []}, "images", "required"),
        ({"images": [{}]}, "images", "needs an image_url"),
        ({"images": [{"file_id": "file-abc"}]}, "images", "upload to /v1/files"),
        ({"images": [{"image_url": "house.png"}]}, "images", "neither a data: URI"),
        ({"images": [{"image_url": "http://127.0.0.1/a.png"}]}, "images", "cannot be fetched"),
        ({"images": [7]}, "images.0", "valid dictionary"),
        ({"images": [data_uri(HOUSE)], "mask": "house.png"}, "mask", "neither a data: URI"),
        ({"images": [data_uri(HOUSE)], "mask": "http://127.0.0.1/"}, "mask", "cannot be fetched"),
    ],
)
def test_edit_in_json_names_the_wrong_field(
    client: TestClient, fields: Any, param: str, words: str
) -> None:
    answer = edit_json(client, **fields)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
    assert words in answer.json()["error"]["message"]


def test_edit_in_broken_json_is_refused(client: TestClient) -> None:
    headers = {"content-type": "application/json"}
    assert client.post(EDITS, content=b"{", headers=headers).status_code == 400
    assert client.post(EDITS, content=b"[" * 50_000, headers=headers).status_code == 400
    assert client.post(EDITS, content=b'{"a":1,"a":2}', headers=headers).status_code == 400
