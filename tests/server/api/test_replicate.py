"""Replicate's client 1.x against this server, and the translation of inputs."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from replicate.client import Client
from replicate.exceptions import ModelError, ReplicateError

from overpaint.imaging.codec import read_picture
from overpaint.request.parts import Lora
from overpaint.server.api.replicate.inputs import Input, to_request
from overpaint.server.api.results import format_progress, format_timestamp
from tests.docs.blocks import blocks_of
from tests.server.live import NOWHERE, running

ROOT = Path(__file__).parents[3]
HOUSE = ROOT / "examples" / "house.png"
PINNED = "stability-ai/sdxl:39ed52f2a78e934b3ba6e2a89f5b1c712de7dfea535525255b1aa35c5565e08b"
URI = f"data:image/png;base64,{base64.b64encode(HOUSE.read_bytes()).decode()}"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running(tmp_path_factory.mktemp("data"), 0.01) as address:
        yield address


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    made = Client(api_token="any", base_url=url)
    yield made
    made._client.close()  # pyright: ignore[reportPrivateUsage]


def test_run_with_pinned_version_returns_images(client: Client) -> None:
    """This is the line that users write."""
    output: Any = client.run(PINNED, input={"prompt": "a cup", "num_outputs": 2, "seed": 7})
    assert len(output) == 2
    for file in output:
        assert Image.open(io.BytesIO(file.read())).size == (8, 8)


def test_readme_example_saves_image(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (block,) = (b for b in blocks_of(ROOT / "README.md") if "import replicate" in b.text)
    monkeypatch.chdir(tmp_path)
    script = block.text.replace("http://127.0.0.1:8000", url)
    subprocess.run([sys.executable, "-c", script], check=True)
    with Image.open(tmp_path / "cup.png") as cup:
        assert cup.size == (8, 8)


def test_run_with_file_uploads_it(client: Client) -> None:
    """The client uploads files first, and sends their links."""
    with HOUSE.open("rb") as image:
        inputs = {"prompt": "a cup", "image": image, "prompt_strength": 0.5}
        output: Any = client.run("overpaint/miniature", input=inputs)
    assert len(output) == 1


def test_async_run_returns_images(url: str) -> None:
    async def run() -> Any:
        client = Client(api_token="any", base_url=url)
        try:
            return await client.async_run(PINNED, input={"prompt": "a"})
        finally:
            await client._async_client.aclose()  # pyright: ignore[reportPrivateUsage]

    assert len(asyncio.run(run())) == 1


def test_prediction_lifecycle_reports_progress_and_metrics(client: Client) -> None:
    made = client.predictions.create(
        version=PINNED, input={"prompt": "note", "num_inference_steps": 40}
    )
    seen, ended = list[float](), {"succeeded", "failed", "canceled"}
    assert made.status not in ended
    while made.status not in ended:
        made.reload()
        if made.progress:
            seen.append(made.progress.percentage)
    assert made.status == "succeeded"
    assert made.progress
    assert (made.progress.current, made.progress.total) == (40, 40)
    assert seen == sorted(seen)
    assert "noted" in (made.logs or "")
    assert made.metrics
    assert 0 <= made.metrics["predict_time"] <= made.metrics["total_time"]
    assert made.input == {"prompt": "note", "num_inference_steps": 40}
    again = client.predictions.get(made.id)
    assert again.output == made.output
    assert made.id in [other.id for other in client.predictions.list().results]


def test_idempotency_key_with_other_model_returns_422(url: str) -> None:
    def made(model: str) -> httpx.Response:
        path, body = f"{url}/v1/models/any/{model}/predictions", {"input": {"prompt": "a"}}
        return httpx.post(path, json=body, headers={"Idempotency-Key": "of one model"})

    assert made("miniature").json()["id"] == made("miniature").json()["id"]
    assert made("sdxl").status_code == 422


def test_cancel_of_running_prediction_ends_it(client: Client) -> None:
    made = client.predictions.create(version=PINNED, input={"num_inference_steps": 500})
    made.cancel()
    made.wait()
    assert made.status == "canceled"
    client.predictions.cancel(made.id)
    assert client.predictions.get(made.id).status == "canceled"


def test_run_of_failing_prediction_raises_model_error(client: Client) -> None:
    with pytest.raises(ModelError, match="Refused"):
        client.run(PINNED, input={"prompt": "refuse"})


def test_stream_sends_logs_output_and_done(client: Client) -> None:
    made = client.predictions.create(
        version=PINNED, input={"prompt": "note", "num_inference_steps": 5}, stream=True
    )
    told = [(event.event.value, event.data) for event in made.stream()]
    assert told[-1] == ("done", "{}")
    assert ("logs", "noted\n") in told or ("logs", "noted") in told
    (link,) = [data for kind, data in told if kind == "output"]
    assert link.startswith("http://127.0.0.1")


def test_models_and_versions_are_described(client: Client) -> None:
    assert [model.name for model in client.models.list().results] == ["miniature", "sdxl"]
    model = client.models.get("stability-ai/sdxl")
    version = model.latest_version
    assert version
    assert version.openapi_schema
    properties = version.openapi_schema["components"]["schemas"]["Input"]["properties"]
    assert properties["num_outputs"]["maximum"] == 4
    assert properties["prompt"]["x-order"] == 0
    by_id = client.predictions.create(version=version.id, input={"prompt": "a"})
    assert by_id.version == version.id
    with pytest.raises(ReplicateError, match="no model"):
        client.models.get("stability-ai/nothing")


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({"size": "big"}, "size"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"num_outputs": 5}, "num_outputs"),
        ({"guidance_scale": 0.5}, "guidance_scale"),
        ({"prompt_strength": 1.0001}, "prompt_strength"),
        ({"scheduler": "__class__"}, "scheduler"),
        ({"mask": URI}, "needs an image"),
        ({"image": "http://169.254.169.254/"}, "cannot be fetched"),
        ({"image": "file:///etc/passwd"}, "neither a data: URI"),
        ({"refine": "expert_ensemble_refiner"}, "needs a refiner"),
        ({"width": 1023}, "multiple of 8"),
    ],
)
def test_bad_input_returns_422_naming_it(url: str, inputs: Any, says: str) -> None:
    answer = httpx.post(f"{url}/v1/predictions", json={"version": PINNED, "input": inputs})
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert says in json.dumps(answer.json())


def test_unknown_version_returns_422_with_known_models(url: str) -> None:
    for version in ("x/y", "sdxl", "stability-ai/sd:1"):
        answer = httpx.post(f"{url}/v1/predictions", json={"version": version, "input": {}})
        assert answer.status_code == 422
        assert "overpaint/sdxl" in answer.json()["detail"]


def test_wait_shorter_than_prediction_returns_starting(url: str) -> None:
    answer = httpx.post(
        f"{url}/v1/models/stability-ai/sdxl/predictions",
        json={"input": {"num_inference_steps": 500}},
        headers={"Prefer": "wait=1"},
        timeout=30,
    )
    assert (answer.status_code, answer.json()["status"]) == (201, "starting")
    assert answer.headers["location"] == answer.json()["urls"]["get"]
    httpx.post(answer.json()["urls"]["cancel"])


def inputs_as(**fields: Any) -> Any:
    return to_request(Input(**fields), NOWHERE, fields.pop("refiner", None))


def test_inputs_translate_with_replicate_defaults() -> None:
    plain = inputs_as(prompt="a", seed=1)
    assert (plain.sampler, plain.schedule, plain.num_inference_steps) == ("euler", "normal", 50)
    assert (plain.guidance_scale, plain.strength, plain.loras) == (7.5, None, ())
    karras = inputs_as(scheduler="KarrasDPM")
    assert (karras.sampler, karras.schedule) == ("dpmpp_2m", "karras")
    edit = inputs_as(image=URI, num_inference_steps=30)
    assert (edit.strength, edit.steps, edit.size) == (0.8, "truncate", "keep")
    sized = inputs_as(image=URI, width=512, height=512)
    assert (sized.width, sized.height, sized.size) == (512, 512, "native")
    masked = inputs_as(image=URI, mask=URI, prompt_strength=0.7)
    assert (masked.strength, masked.fill) == (0.7, "original")
    styled = inputs_as(replicate_weights="ink", lora_scale=0.3)
    assert styled.loras == (Lora(name="ink", scale=0.3),)
    assert read_picture(HOUSE).data == edit.image.data


def test_refine_inputs_set_second_stage() -> None:
    ensemble = Input(refine="expert_ensemble_refiner", high_noise_frac=1.0)
    asked = to_request(ensemble, NOWHERE, "sdxl-refiner")
    assert (asked.refiner, asked.refine, asked.high_noise_frac) == ("sdxl-refiner", "ensemble", 1.0)
    after = Input(refine="base_image_refiner", refine_steps=9)
    assert to_request(after, NOWHERE, "sdxl-refiner").refine_steps == 9


def test_timestamps_and_progress_have_replicate_format() -> None:
    assert format_timestamp(0.5) == "1970-01-01T00:00:00.500000Z"
    assert format_progress(25, 50) == " 50%|#####     | 25/50"
