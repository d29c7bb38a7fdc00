"""The server publishes no flagged picture, and each dialect reports it in its own fields."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from replicate.client import Client
from replicate.exceptions import ModelError

from overpaint.engine.worker import ALL_FLAGGED
from overpaint.server.api.replicate.protocol import NSFW_MESSAGE
from tests.server.live import client_of, running

VERSION = "stability-ai/sdxl:39ed52f2a78e934b3ba6e2a89f5b1c712de7dfea535525255b1aa35c5565e08b"
FLAG = {"index": 1, "seed": 8, "concepts": ["oddness"]}
FLAG_TEXT = "picture 1 (seed 8: oddness) was flagged by the safety checker."
TIMEOUT_S = 60.0


def checker_settings(checker: str) -> dict[str, Any]:
    return {"safety_checker": f"tests.server.checkers:{checker}"}


@pytest.fixture(scope="module")
def second_flagged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that flags the second of several pictures."""
    with running(tmp_path_factory.mktemp("second"), **checker_settings("second")) as url:
        yield url


@pytest.fixture(scope="module")
def all_flagged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that flags all."""
    with running(tmp_path_factory.mktemp("everything"), **checker_settings("everything")) as url:
        yield url


def post(url: str, body: Any, **headers: str) -> Any:
    answer = httpx.post(url, json=body, headers=headers, timeout=TIMEOUT_S)
    assert answer.status_code in (200, 201), answer.text
    return answer.json()


@contextlib.contextmanager
def replicate_of(url: str) -> Generator[Client]:
    made = Client(api_token="any", base_url=url)
    try:
        yield made
    finally:
        made._client.close()  # pyright: ignore[reportPrivateUsage]


def native(url: str, count: int = 3, **output: Any) -> Any:
    fields = {"prompt": "a cup", "seed": 7, "num_images": count, "num_inference_steps": 3}
    return post(f"{url}/api/jobs?wait=60", {"request": fields, "output": output})


def test_flagged_picture_is_not_published(tmp_path: Path) -> None:
    with client_of(tmp_path, **checker_settings("second")) as client:
        fields = {"prompt": "", "seed": 7, "num_images": 3, "num_inference_steps": 3}
        answer = client.post("/api/jobs?wait=60", json={"request": fields})
        job = answer.json()
        assert job["state"] == "succeeded"
        assert job["flagged"] == [FLAG]
        assert [(made["name"], made["seed"]) for made in job["results"]] == [
            ("1-0.png", 7),
            ("1-2.png", 9),
        ]
        assert client.get(f"/api/jobs/{job['id']}/results/1-1.png").status_code == 404
        story = client.get(f"/api/jobs/{job['id']}/events").text
        assert FLAG_TEXT in story
        there = sorted(path.name for path in (tmp_path / "results" / job["id"]).iterdir())
        assert there == ["1-0.png", "1-2.png"]
        metrics = client.get("/metrics").text
        assert 'overpaint_pictures_total{fate="published"} 2.0' in metrics
        assert 'overpaint_pictures_total{fate="flagged"} 1.0' in metrics


def test_job_with_all_pictures_flagged_fails(all_flagged: str) -> None:
    job = native(all_flagged, 2)
    assert (job["state"], job["results"], job["error"]) == ("failed", [], ALL_FLAGGED)
    assert [flag["index"] for flag in job["flagged"]] == [0, 1]


def test_previews_are_hidden_with_a_safety_checker(all_flagged: str, tmp_path: Path) -> None:
    job = native(all_flagged, 1, preview_every=1)
    story = httpx.get(f"{all_flagged}/api/jobs/{job['id']}/events", timeout=TIMEOUT_S).text
    assert "event: failed" in story
    assert "event: preview" not in story
    with running(tmp_path, 0.05) as url:  # where nothing is checked they are shown
        fields = {"prompt": "", "num_inference_steps": 40}
        body = {"request": fields, "output": {"preview_every": 1}}
        job = post(f"{url}/api/jobs", body)
        story = httpx.get(f"{url}/api/jobs/{job['id']}/events", timeout=TIMEOUT_S).text
        assert "event: preview" in story


@pytest.mark.parametrize(
    ("checker", "why"),
    [
        ("broken", "The safety checker failed, so nothing is published: ZeroDivisionError"),
        ("too_few", "for 3 it answered [False, False]"),
        ("strange", "a Verdict or a bool for each picture"),
    ],
)
def test_safety_checker_failure_publishes_nothing(tmp_path: Path, checker: str, why: str) -> None:
    with running(tmp_path, **checker_settings(checker)) as url:
        job = native(url)
    assert (job["state"], job["results"]) == ("failed", [])
    assert why in job["error"]


# Dialects


def test_replicate_flagged_pictures_are_left_out(second_flagged: str) -> None:
    inputs = {"prompt": "a cup", "seed": 7, "num_outputs": 3}
    with replicate_of(second_flagged) as client:
        prediction = client.predictions.create(version=VERSION.partition(":")[2], input=inputs)
        prediction.wait()
    assert prediction.status == "succeeded"
    assert len(prediction.output or ()) == 2
    assert FLAG_TEXT in (prediction.logs or "")


def test_replicate_all_flagged_fails_with_its_message(all_flagged: str) -> None:
    with replicate_of(all_flagged) as client, pytest.raises(ModelError) as caught:
        client.run(VERSION, input={"prompt": "a cup", "seed": 7})
    assert caught.value.prediction.error == NSFW_MESSAGE


def test_cog_all_flagged_fails_with_its_message(second_flagged: str, all_flagged: str) -> None:
    inputs = {"input": {"prompt": "a cup", "num_outputs": 3}}
    assert len(post(f"{second_flagged}/predictions", inputs)["output"]) == 2
    prediction = post(f"{all_flagged}/predictions", inputs)
    assert (prediction["status"], prediction["error"], prediction["output"]) == (
        "failed",
        NSFW_MESSAGE,
        None,
    )


def test_openai_flagged_pictures_are_left_out(second_flagged: str) -> None:
    with OpenAI(api_key="any", base_url=f"{second_flagged}/v1", max_retries=0) as client:
        response = client.images.generate(prompt="a cup", n=3, extra_body={"seed": 7})
        fields: dict[str, Any] = {"seed": 7}
        stream = client.images.generate(prompt="a cup", n=3, stream=True, extra_body=fields)
        ended = [event for event in stream if event.type == "image_generation.completed"]
    assert response.data
    assert [each.model_extra for each in response.data] == [{"seed": 7}, {"seed": 9}]
    assert response.model_extra == {"flagged": [FLAG]}
    assert [(event.model_extra or {})["flagged"] for event in ended] == [[FLAG], [FLAG]]


def test_openai_all_flagged_is_moderation_blocked(all_flagged: str) -> None:
    with OpenAI(api_key="any", base_url=f"{all_flagged}/v1", max_retries=0) as client:
        with pytest.raises(openai.BadRequestError) as caught:
            client.images.generate(prompt="a cup")
        assert (caught.value.code, caught.value.type) == (
            "moderation_blocked",
            "image_generation_user_error",
        )
        assert caught.value.body
        with pytest.raises(openai.APIError, match="safety checker"):
            list(client.images.generate(prompt="a cup", model="gpt-image-1", stream=True))


def test_fal_result_lists_flagged_pictures(second_flagged: str, all_flagged: str) -> None:
    inputs = {"prompt": "a cup", "seed": 7, "num_images": 3}
    result = post(f"{second_flagged}/fal/run/fal-ai/fast-sdxl", inputs)
    assert [each["seed"] for each in result["images"]] == [7, 9]
    assert result["has_nsfw_concepts"] == [False, False, True]
    answer = httpx.post(f"{all_flagged}/fal/run/fal-ai/fast-sdxl", json=inputs, timeout=TIMEOUT_S)
    assert answer.status_code == 422
    assert answer.json()["detail"] == [
        {"loc": ["body", "prompt"], "msg": ALL_FLAGGED, "type": "content_policy_violation"}
    ]


def test_a1111_flagged_pictures_are_left_out(second_flagged: str, all_flagged: str) -> None:
    inputs = {"prompt": "a cup", "seed": 7, "batch_size": 3, "steps": 3}
    response = post(f"{second_flagged}/sdapi/v1/txt2img", inputs)
    info = json.loads(response["info"])
    assert len(response["images"]) == len(info["infotexts"]) == 2
    assert all(base64.b64decode(image) for image in response["images"])
    assert (info["all_seeds"], info["flagged"]) == ([7, 9], [FLAG])
    answer = httpx.post(f"{all_flagged}/sdapi/v1/txt2img", json=inputs, timeout=TIMEOUT_S)
    assert (answer.status_code, answer.json()["detail"]) == (500, ALL_FLAGGED)


# Whether there is a choice

UNCHECKED = (
    ("/predictions", {"input": {"prompt": "a cup", "disable_safety_checker": True}}),
    ("/fal/run/fal-ai/fast-sdxl", {"prompt": "a cup", "enable_safety_checker": False}),
)


@pytest.mark.parametrize(("path", "body"), UNCHECKED)
def test_safety_checker_cannot_be_disabled_by_clients(
    all_flagged: str, path: str, body: Any
) -> None:
    answer = httpx.post(f"{all_flagged}{path}", json=body, timeout=TIMEOUT_S)
    assert answer.status_code == 422
    assert "This server checks every picture; leave it out." in answer.text


def test_safety_checker_can_be_disabled_with_safety_optional(tmp_path: Path) -> None:
    with running(tmp_path, safety_optional=True, **checker_settings("everything")) as url:
        (cog, inputs), (fal, arguments) = UNCHECKED
        assert post(f"{url}{cog}", inputs)["status"] == "succeeded"
        assert len(post(f"{url}{fal}", arguments)["images"]) == 1
        assert native(url)["state"] == "failed"


@pytest.mark.parametrize(("path", "body"), UNCHECKED)
def test_safety_checker_missing_makes_the_flag_ineffective(
    tmp_path: Path, path: str, body: Any
) -> None:
    with running(tmp_path) as url:
        post(f"{url}{path}", body)


def test_safety_checker_that_exits_fails_the_job(tmp_path: Path) -> None:
    with client_of(tmp_path, **checker_settings("leaving")) as client:
        fields = {"prompt": "a cup", "num_inference_steps": 2}
        job = client.post("/api/jobs?wait=60", json={"request": fields}).json()
    assert job["state"] == "failed"
    assert "SystemExit" in job["error"]


def test_safety_checker_concepts_become_texts(tmp_path: Path) -> None:
    with client_of(tmp_path, **checker_settings("unusual")) as client:
        fields = {"prompt": "a cup", "seed": 7, "num_inference_steps": 2}
        job = client.post("/api/jobs?wait=60", json={"request": fields}).json()
    assert job["flagged"] == [{"index": 0, "seed": 7, "concepts": ["oddness"]}]
