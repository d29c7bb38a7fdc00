"""Fields that Replicate's API accepts, as the original does, and its smaller routes."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from fastapi.testclient import TestClient
from PIL import Image
from pydantic import ValidationError

from overpaint.errors import RequestError
from overpaint.server.api.fields import parse_preferences
from overpaint.server.api.ignored_fields import IGNORED_HEADER, collect_ignored, list_ignored
from overpaint.server.api.replicate.inputs import (
    Input,
    output_options,
    report_unused_inputs,
    to_request,
)
from overpaint.server.api.replicate.protocol import Body, VersionBody
from overpaint.server.api.replicate.routes import MAX_WAIT_S, wait_seconds
from overpaint.server.jobs.service import Service
from overpaint.server.jobs.webhooks import job_at_event
from overpaint.server.store.outbox import WEBHOOK_EVENTS
from tests.server.jobs.test_webhooks import receiving
from tests.server.live import NOWHERE, client_of, until

HOUSE = (Path(__file__).parents[3] / "examples" / "house.png").read_bytes()
URI = f"data:image/png;base64,{base64.b64encode(HOUSE).decode()}"
WAIT = {"Prefer": "wait=50"}
PATH = "/v1/models/any/m/predictions"
PYTHON = {"User-Agent": "replicate-python/1.0.7"}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with client_of(tmp_path_factory.mktemp("data")) as made:
        yield made


def predict(client: TestClient, body: Any, headers: Any = WAIT) -> Any:
    answer = client.post(PATH, json=body, headers=headers)
    assert answer.status_code == 201, answer.text
    return answer.json()


def ignored(answer: Any) -> list[str]:
    return [name for name in answer.headers.get(IGNORED_HEADER, "").split(", ") if name]


# Fields


@pytest.mark.parametrize("empty", [None, "", [], {}])
@pytest.mark.parametrize("name", sorted(Input.model_fields))
def test_empty_input_counts_as_absent(name: str, empty: Any) -> None:
    given = Input.model_validate({name: empty})
    assert to_request(given, NOWHERE, None).model_copy(update={"seed": 0}) == to_request(
        Input(), NOWHERE, None
    ).model_copy(update={"seed": 0})


def test_negative_seed_is_a_random_one_and_mask_of_another_size_is_stretched() -> None:
    file = io.BytesIO()
    Image.new("L", (64, 64), 255).save(file, "PNG")
    mask = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    given = Input.model_validate({"image": URI, "mask": mask, "seed": -1, "refine_steps": 0})
    with collect_ignored():
        report_unused_inputs(given)
        assert list_ignored() == ["input.refine_steps", "input.seed"]
    request = to_request(given, NOWHERE, None)
    assert request.mask
    with Image.open(io.BytesIO(request.mask.data)) as stretched:
        assert stretched.size == (512, 512)


def test_pinned_version_of_an_unknown_model_stands_for_the_first_one(client: TestClient) -> None:
    body = {"version": f"stability-ai/sdxl:{'39ed52f2' * 8}", "input": {"prompt": "a"}}
    answer = client.post("/v1/predictions", json=body)
    assert answer.status_code == 201, answer.text
    wrong = client.post("/v1/predictions", json=body | {"version": "stability-ai/sdxl:39ed"})
    assert wrong.status_code == 422


@pytest.mark.parametrize("empty", [None, "", []])
@pytest.mark.parametrize("name", sorted({*Body.model_fields, *VersionBody.model_fields}))
def test_empty_field_of_body_counts_as_absent(name: str, empty: Any) -> None:
    body = VersionBody.model_validate({"input": {"prompt": "a"}, "version": "a/m"} | {name: empty})
    assert body.webhook is None
    assert not body.webhook_events_filter


def test_unknown_fields_are_accepted_and_reported(client: TestClient) -> None:
    body = {
        "input": {"prompt": "a", "go_fast": True, "megapixels": "1", "seed": None, "mask": ""},
        "stream": True,
        "webhook": "",
        "webhook_events_filter": None,
        "webhook_completed": "https://example.com",
    }
    answer = client.post(PATH, json=body, headers=WAIT | {"Cancel-After": "30s"})
    assert answer.status_code == 201, answer.text
    assert answer.json()["status"] == "succeeded"
    assert set(ignored(answer)) == {
        *("Cancel-After", "stream", "webhook", "webhook_events_filter", "webhook_completed"),
        *("input.go_fast", "input.megapixels", "input.seed"),
    } | ({"input.mask"} & set(ignored(answer)))


def test_prediction_without_version_names_the_field(client: TestClient) -> None:
    answer = client.post("/v1/predictions", json={"input": {}})
    assert (answer.status_code, "version" in answer.text) == (422, True)
    answer = client.post("/v1/predictions", json={"version": None, "model": "any/m", "input": {}})
    assert answer.status_code == 201


def ignored_inputs() -> list[str]:
    return [name.removeprefix("input.") for name in list_ignored()]


def request_as(**fields: Any) -> tuple[Any, list[str]]:
    with collect_ignored():
        return to_request(Input(**fields), NOWHERE, None), ignored_inputs()


@pytest.mark.parametrize(
    ("fields", "size", "reported"),
    [
        ({"size": "512x768"}, (512, 768), []),
        ({"size": "512x768", "width": 64}, (64, None), ["size"]),
        ({"size": "512x768", "aspect_ratio": "1:1"}, (512, 768), ["aspect_ratio"]),
        ({"aspect_ratio": "1:1"}, (1024, 1024), []),
        ({"aspect_ratio": "16:9"}, (1368, 768), []),
        ({"aspect_ratio": "9:16"}, (768, 1368), []),
        ({"aspect_ratio": "custom", "width": 256, "height": 512}, (256, 512), ["aspect_ratio"]),
        ({"aspect_ratio": "match_input_image", "image": URI}, (None, None), ["aspect_ratio"]),
        ({"aspect_ratio": "1:1", "image": URI}, (None, None), ["aspect_ratio"]),
        ({"size": "512x512", "image": URI}, (512, 512), []),
    ],
)
def test_size_follows_pixels_then_ratio(fields: Any, size: Any, reported: list[str]) -> None:
    request, names = request_as(**fields)
    assert (request.width, request.height) == size
    assert names == reported
    if fields.get("image"):
        assert request.size == ("native" if size[0] else "keep")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"size": "big"}, "size"),
        ({"size": "0x8"}, "size"),
        ({"size": "1023x512"}, "size"),
        ({"aspect_ratio": "wide"}, "aspect_ratio"),
        ({"aspect_ratio": "1:0"}, "aspect_ratio"),
        ({"aspect_ratio": "99999:1"}, "aspect_ratio"),
    ],
)
def test_wrong_size_is_refused_by_its_name(fields: Any, field: str) -> None:
    with pytest.raises(RequestError) as caught:
        request_as(**fields)
    assert caught.value.field == field


def test_size_that_the_model_does_not_draw_is_refused_by_its_name(client: TestClient) -> None:
    predict(client, {"input": {"prompt": "a"}})  # the worker reports the native size
    answer = client.post(PATH, json={"input": {"size": "8x8"}})
    if answer.status_code == 422:
        assert answer.json()["detail"].startswith("size")


def test_ratio_follows_the_side_of_the_requested_model_before_any_is_loaded(tmp_path: Path) -> None:
    with client_of(tmp_path, models=("miniature", "sdxl")) as client:
        service: Service = client.app.state.service  # pyright: ignore
        assert service.supervisor.natives == {}
        for model, width in (("miniature", 128), ("sdxl", 1024)):
            inputs = {"prompt": "a cup", "aspect_ratio": "1:1"}
            body = {"version": f"overpaint/{model}", "input": inputs}
            made = client.post("/v1/predictions", json=body)
            assert made.status_code == 201, made.text
            job = service.jobs.get(made.json()["id"])
            assert job
            assert (job.model, job.request["width"]) == (model, width)


def test_strength_is_another_name_of_prompt_strength() -> None:
    assert request_as(image=URI, strength=0.3)[0].strength == 0.3
    request, names = request_as(image=URI, strength=0.3, prompt_strength=0.5)
    assert (request.strength, names) == (0.5, ["strength"])


def test_inputs_without_their_partner_are_reported() -> None:
    alone: dict[str, Any] = {"lora_scale": 0.6, "high_noise_frac": 0.8, "refine_steps": 9}
    with collect_ignored():
        report_unused_inputs(Input(prompt_strength=0.8, strength=0.5, **alone))
        assert sorted(ignored_inputs()) == sorted(["prompt_strength", "strength", *alone])
    with collect_ignored():
        weights, refine = "ink", "base_image_refiner"
        report_unused_inputs(
            Input(image=URI, strength=0.5, replicate_weights=weights, refine=refine, **alone)
        )
        assert list_ignored() == ["input.high_noise_frac"]


def test_output_format_and_quality_set_the_file(client: TestClient) -> None:
    with collect_ignored():
        assert output_options(Input(output_format="jpeg", output_quality=40)).kind == "jpg"
        assert output_options(Input(output_quality=100)).options == {}
        assert ignored_inputs() == ["output_quality"]
    for word, kind, suffix in (("webp", "WEBP", "webp"), ("jpg", "JPEG", "jpg")):
        made = predict(client, {"input": {"output_format": word, "output_quality": 0}})
        (link,) = made["output"]
        assert link.endswith(f".{suffix}")
        assert Image.open(io.BytesIO(client.get(link).content)).format == kind


def test_whole_numbers_may_have_a_fraction_of_zero() -> None:
    given = Input.model_validate({"num_inference_steps": 9.0, "guidance_scale": 3.0, "seed": 7.0})
    assert (given.num_inference_steps, given.guidance_scale, given.seed) == (9, 3.0, 7)
    for wrong in (9.5, float("inf"), float("nan"), "9"):
        with pytest.raises(ValidationError):
            Input.model_validate({"num_inference_steps": wrong})


# Headers


@pytest.mark.parametrize(
    ("prefer", "seconds"),
    [
        (None, 0),
        ("", 0),
        ("respond-async", 0),
        ("wait", MAX_WAIT_S),
        ("WAIT", MAX_WAIT_S),
        ("Wait=5", 5),
        ('respond-async, wait = "7"', 7),
        ("wait=2.5", 2.5),
        ("wait=600", MAX_WAIT_S),
        ("wait=soon", MAX_WAIT_S),
        ("output=url; Wait=3", 3),
    ],
)
def test_wait_preference_in_any_case_is_read(prefer: str | None, seconds: float) -> None:
    assert wait_seconds(prefer) == seconds
    assert parse_preferences("Respond-Async") == {"respond-async": ""}


@pytest.mark.parametrize(
    ("headers", "start"),
    [
        ({}, "http://testserver/v1/predictions/"),
        ({"User-Agent": "curl/8"}, "http://"),
        (PYTHON, "data:image/png;base64,"),
        ({"User-Agent": "replicate-javascript/1.4.0"}, "data:"),
        ({"User-Agent": "AsyncReplicate/Python 2.0.0b4"}, "data:"),
        ({"User-Agent": "_ModuleClient/Python 2.0.0b4"}, "data:"),
        (PYTHON | {"Prefer": "Wait, Output=URL"}, "http://"),
        ({"Prefer": "wait, output=data-uri"}, "data:"),
    ],
)
def test_output_is_a_link_for_clients_that_can_use_it(
    client: TestClient, headers: Any, start: str
) -> None:
    made = predict(client, {"input": {"prompt": "a"}}, WAIT | headers)
    (output,) = made["output"]
    assert output.startswith(start)
    if start.startswith("http"):
        assert urlsplit(output).path.endswith(".png")
        assert client.get(output).content.startswith(b"\x89PNG")
    again = client.get(f"/v1/predictions/{made['id']}", headers=headers).json()
    assert again["output"][0].startswith(start)


def test_signed_link_ends_with_the_suffix_of_its_file(tmp_path: Path) -> None:
    with client_of(tmp_path, api_keys=("right",)) as client:
        key = {"Authorization": "Bearer right"}
        (link,) = predict(client, {"input": {"output_format": "webp"}}, WAIT | key)["output"]
        assert link.endswith(".webp")
        assert client.get(link).headers["content-type"] == "image/webp"
        start, expires, signature, file = link.rsplit("/", 3)
        wrong = signature[1:] + signature[:1]
        for other in (
            f"{start}/{expires}/{wrong}/{file}",
            f"{start}/1/{signature}/{file}",
        ):
            assert client.get(other).status_code == 403
        assert client.get(f"{start}/{file}").status_code == 401


# Webhooks


@pytest.mark.parametrize("events", [None, [], ["start", "output", "logs", "completed"]])
def test_only_one_webhook_reports_the_end(client: TestClient, events: Any) -> None:
    with receiving() as receiver:
        body = {"input": {"prompt": "note"}, "webhook": receiver.url}
        made = predict(client, body | {"webhook_events_filter": events})
        until(lambda: "completed" in str([headers for headers, _ in receiver.posts]))
        posts = [json.loads(content) for _, content in receiver.posts]
    ended = [post for post in posts if post["status"] in ("succeeded", "failed", "canceled")]
    assert [post["id"] for post in ended] == [made["id"]]
    assert [post["completed_at"] for post in posts if post not in ended] == [None] * (
        len(posts) - 1
    )
    assert ended[0]["output"]


def test_webhook_before_the_end_shows_the_images_but_no_end(client: TestClient) -> None:
    made = predict(client, {"input": {"prompt": "a"}})
    application: Any = client.app
    job = application.state.service.jobs.get(made["id"])
    for kind in WEBHOOK_EVENTS:
        at = job_at_event(job, kind)
        assert (at.state, at.ended is None) == (
            ("succeeded", False) if kind == "completed" else ("running", True)
        )
        assert bool(at.result) == (kind in ("output", "completed"))


# Smaller routes


def upload(client: TestClient, data: bytes = HOUSE, **form: Any) -> Any:
    files = {"content": ("house.png", data, "image/png"), **form}
    answer = client.post("/v1/files", files=files)
    assert answer.status_code == 201, answer.text
    return answer.json()


@pytest.mark.parametrize(
    ("metadata", "stored"),
    [
        (("metadata", b"{}", "application/json"), {}),
        (("metadata", b'{"a": 1}', "application/json"), {"a": 1}),
        ((None, ""), {}),
        ((None, "null"), {}),
        ((None, '{"b": "x"}'), {"b": "x"}),
    ],
)
def test_file_metadata_is_accepted_and_returned(
    client: TestClient, metadata: Any, stored: Any
) -> None:
    made = upload(client, metadata=metadata)
    assert made["metadata"] == stored
    assert client.get(made["urls"]["get"]).json() == made


def test_file_metadata_as_form_fields_is_accepted(client: TestClient) -> None:
    fields: dict[str, Any] = {"metadata[a]": (None, "1"), "other": (None, "x")}
    made = upload(client, **fields)
    assert made["metadata"] == {"a": "1"}


@pytest.mark.parametrize("metadata", ["[1]", '"a"', "x" * 20_000])
def test_file_metadata_that_is_no_small_object_is_refused(
    client: TestClient, metadata: str
) -> None:
    files = {"content": ("a.png", HOUSE, "image/png"), "metadata": (None, metadata)}
    answer = client.post("/v1/files", files=files)
    assert (answer.status_code, "metadata" in answer.text) == (422, True)


def test_files_are_listed_and_deleted_by_their_owner(tmp_path: Path) -> None:
    with client_of(tmp_path, api_keys=("one", "two")) as client:
        one, two = ({"Authorization": f"Bearer {key}"} for key in ("one", "two"))

        def put(data: bytes, headers: Any) -> Any:
            return client.post("/v1/files", files={"content": data}, headers=headers).json()

        first, second = put(b"first", one), put(b"second", one)
        put(b"first", two)

        def names(headers: Any) -> list[str]:
            return [
                file["id"] for file in client.get("/v1/files", headers=headers).json()["results"]
            ]

        assert names(one) == [second["id"], first["id"]]
        assert names(two) == [first["id"]]
        path = f"/v1/files/{first['id']}"
        assert client.delete(path, headers=one).status_code == 204
        assert client.delete(path, headers=one).status_code == 404
        assert client.get(path, headers=one).status_code == 404
        assert names(one) == [second["id"]]
        assert client.get(path, headers=two).status_code == 200
        assert client.delete("/v1/files/other", headers=one).status_code == 404
        assert put(b"first", one)["id"] == first["id"]
        assert client.get(path, headers=one).status_code == 200


def test_list_of_files_has_pages(client: TestClient) -> None:
    for number in range(101):
        upload(client, b"%d" % number)
    page = client.get("/v1/files").json()
    assert len(page["results"]) == 100
    assert client.get(page["next"]).json()["results"]
    assert client.get("/v1/files?cursor=nothing").status_code == 404


def test_deployments_and_account_are_described(client: TestClient) -> None:
    listed = client.get("/v1/deployments").json()["results"]
    assert [each["name"] for each in listed] == ["m", "n"]
    found = client.get("/v1/deployments/acme/m").json()
    assert (found["owner"], found["current_release"]["model"]) == ("acme", "overpaint/m")
    made = client.post("/v1/deployments/acme/n/predictions", json={"input": {}}, headers=WAIT)
    assert (made.status_code, made.json()["model"]) == (201, "overpaint/n")
    assert (
        made.json()["version"]
        == client.get("/v1/deployments/a/n").json()["current_release"]["version"]
    )
    assert client.get("/v1/deployments/acme/other").status_code == 404
    assert client.get("/v1/account").json()["type"] == "organization"
    assert client.get("/v1/hardware").json()[0]["sku"]
    for name in ("collections", "trainings"):
        assert client.get(f"/v1/{name}").json()["results"] == []


def test_predictions_are_listed_by_time(client: TestClient) -> None:
    made = predict(client, {"input": {"prompt": "a"}})

    def listed(**query: str) -> list[str]:
        results = client.get("/v1/predictions", params=query).json()["results"]
        return [each["id"] for each in results]

    assert made["id"] in listed(created_after=made["created_at"], created_before="")
    assert made["id"] not in listed(created_before=made["created_at"])
    assert listed(created_after="2999-01-01T00:00:00Z") == []
    assert client.get("/v1/predictions?created_after=soon").status_code == 422


def test_models_are_searched_by_name(client: TestClient) -> None:
    """Replicate's JavaScript client searches by the method QUERY."""
    for text, names in (("m", ["m"]), ('"N"', ["n"]), ("", ["m", "n"]), ("Other", [])):
        answer = client.request("QUERY", "/v1/models", content=text)
        assert [model["name"] for model in answer.json()["results"]] == names
