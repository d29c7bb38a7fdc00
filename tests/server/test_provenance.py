"""What the operator has done to pictures reaches the files that clients get."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import c2pa
import pytest
from PIL import Image
from typer.testing import CliRunner

from overpaint.cli.main import app
from overpaint.engine.postprocess import PostprocessConfig, Postprocessor
from overpaint.errors import OverpaintError, RequestError
from overpaint.provenance import watermark
from tests.provenance.certificates import write_certificate
from tests.server.live import client_of

FIELDS = {"prompt": "a cup", "seed": 7, "num_inference_steps": 3}
HOUSE = Path(__file__).parents[2] / "examples" / "house.png"


def test_results_are_signed_with_c2pa(tmp_path: Path) -> None:
    chain, key = write_certificate(tmp_path)
    manifests = list[str]()
    with client_of(tmp_path / "data", c2pa_certificate=chain, c2pa_key=key) as client:
        house = client.post("/api/files", content=HOUSE.read_bytes()).json()["file"]
        for request in (FIELDS, FIELDS | {"image": {"file": house}, "strength": 0.5}):
            answer = client.post("/api/jobs?wait=60", json={"request": request})
            [made] = answer.json()["results"]
            data = client.get(made["url"]).content
            with c2pa.Reader("image/png", io.BytesIO(data)) as reader:
                assert reader.get_validation_state() == "Valid"
                manifests.append(reader.json())
    assert ["c2pa.created" in text for text in manifests] == [True, False]
    assert ["c2pa.edited" in text for text in manifests] == [False, True]


def test_results_have_watermark_unless_too_small(tmp_path: Path) -> None:
    marking = PostprocessConfig(watermark=True)
    with Image.open(HOUSE) as house:
        marked, reason = Postprocessor(marking).add_watermark(house.convert("RGB"))
    assert reason is None
    assert watermark.has_watermark(marked)
    with client_of(tmp_path, watermark=True) as client:
        job = client.post("/api/jobs?wait=60", json={"request": FIELDS}).json()
        assert len(job["results"]) == 1
        story = client.get(f"/api/jobs/{job['id']}/events").text
        assert "picture 0: 8x8 pixels are too few for a watermark" in story


@pytest.mark.parametrize("marks", [False, True])
def test_replicate_logs_mention_the_watermark(tmp_path: Path, marks: bool) -> None:
    with client_of(tmp_path, watermark=marks) as client:
        inputs: dict[str, Any] = {"prompt": "a cup"}
        prediction = client.post("/predictions", json={"input": inputs}).json()
        assert prediction["status"] == "succeeded"
        assert ("The server added no watermark" in prediction["logs"]) == (not marks)
        answer = client.post("/predictions", json={"input": inputs | {"apply_watermark": False}})
        assert answer.status_code == (422 if marks else 200)
        if marks:
            assert "This server watermarks every image" in json.dumps(answer.json())


def test_serve_c2pa_certificate_without_key_is_refused(tmp_path: Path) -> None:
    chain, key = write_certificate(tmp_path)
    for alone in (PostprocessConfig(certificate=chain), PostprocessConfig(key=key)):
        with pytest.raises(RequestError, match="c2pa_certificate: "):
            alone.check()
    PostprocessConfig(certificate=chain, key=key).check()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--safety-checker", "nowhere"), "neither a folder nor MODULE:FUNCTION"),
        (("--safety-checker", "no_such_module:check"), "there is no module 'no_such_module'"),
        (("--c2pa-certificate", "gone.pem", "--c2pa-key", "gone.pem"), "gone.pem cannot be read"),
    ],
)
def test_serve_missing_dependency_is_reported_before_start(
    tmp_path: Path, options: tuple[str, ...], why: str
) -> None:
    ended = CliRunner().invoke(
        app, ["serve", "--port", "0", "--data", str(tmp_path / "data"), *options]
    )
    assert isinstance(ended.exception, OverpaintError)
    assert why in str(ended.exception)
    assert not (tmp_path / "data").exists()
