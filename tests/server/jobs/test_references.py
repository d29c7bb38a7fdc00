"""The server rejects requests with unknown names; the refiner that the operator configures."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from overpaint.engine.config import EngineConfig
from overpaint.engine.worker import make_engine
from overpaint.errors import ModelNotFoundError
from overpaint.models.library.index import FileKind, LibraryEntry, LibraryIndex
from overpaint.request import Request
from overpaint.request.parts import Lora
from overpaint.server.jobs.service import Service
from tests.models.library.test_library import lora
from tests.server import live

HOUSE = Path(__file__).parents[3] / "examples" / "house.png"
REFINER = "miniature-refiner"
FOLDER = "models/my-refiner"


def client_of(folder: Path, **changes: Any) -> TestClient:
    given: dict[str, Any] = {"models": ("miniature",), "home": folder / "home"} | changes
    return live.client_of(folder, **given)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    home = tmp_path / "home"
    kinds: dict[str, FileKind] = {"ink": "lora", "lines": "control", "word": "embedding"}
    for name, kind in kinds.items():
        entry = LibraryEntry(name=name, kind=kind, sha256="0" * 64, license=None, file="a", keys=1)
        folder = LibraryIndex(home).folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(entry.model_dump_json())
    with client_of(tmp_path, refiner=FOLDER) as made:
        yield made


def control(**fields: Any) -> dict[str, Any]:
    picture = {"data": base64.b64encode(HOUSE.read_bytes()).decode()}
    return {"controls": [{"kind": "canny", "image": picture} | fields]}


@pytest.mark.parametrize(
    ("request_", "field", "says"),
    [
        ({"loras": [{"name": "ink"}, {"name": "inkk"}]}, "loras.1.name", "Did you mean ink?"),
        ({"loras": [{"name": "word"}]}, "loras.0.name", "Unknown lora 'word'"),
        ({"loras": [{"name": "../ink"}]}, "loras.0.name", "lead to the catalog alone"),
        ({"prompt": "a <lora:pen:0.5>"}, "loras.0.name", "Unknown lora 'pen'"),
        ({"prompt": "<embedding:wrd>"}, "prompt", "Did you mean word?"),
        ({"negative_prompt_2": "<embedding:ink>"}, "negative_prompt_2", "Unknown embedding 'ink'"),
        (control(net="pen"), "controls.0.net", "Unknown control 'pen'"),
        (control(net="owner/net"), "controls.0.net", "lead to the catalog alone"),
        (control(kind="depth", estimator="./x"), "controls.0.estimator", "'./x' is a path"),
        ({"refiner": "/etc/passwd"}, "refiner", "'/etc/passwd' is a path"),
        ({"refiner": "owner/name"}, "refiner", "or a hub id"),
        ({"refiner": "sdxl-refiner"}, "refiner", "Unknown checkpoint 'sdxl-refiner'"),
    ],
)
def test_references_unknown_name_is_rejected(
    client: TestClient, request_: Any, field: str, says: str
) -> None:
    answer = client.post("/api/jobs", json={"request": request_})
    assert answer.status_code == 422, answer.text
    assert answer.json()["detail"].startswith(f"{field}: ")
    assert says in answer.json()["detail"]
    assert client.get("/api/jobs").json()["jobs"] == []


@pytest.mark.parametrize(
    "request_",
    [
        {"loras": [{"name": "ink"}, {"name": "miniature-comic"}]},
        {"prompt": "<lora:ink:0.5> <embedding:word>", "negative_prompt": "<embedding:word>"},
        {"prompt_2": "<embedding:miniature-toy>"},
        control(net="lines"),
        control(net="miniature-canny"),
        control(),
        control(kind="depth", estimator="depth-anything"),
        {"refiner": REFINER},
        {"refiner": FOLDER},
    ],
)
def test_references_known_names_are_accepted(client: TestClient, request_: Any) -> None:
    assert client.post("/api/jobs", json={"request": request_}).status_code == 201


def test_references_damaged_entry_is_not_reported_missing(
    client: TestClient, tmp_path: Path
) -> None:
    (tmp_path / "home" / "models" / "ink.json").write_text("{}")
    answer = client.post("/api/jobs", json={"request": {"loras": [{"name": "ink"}]}})
    assert answer.status_code == 422
    assert "cannot be read" in answer.json()["detail"]


def test_references_replicate_errors_use_replicate_fields(client: TestClient) -> None:
    path = "/v1/models/any/miniature/predictions"
    for inputs, field in (
        ({"replicate_weights": "pen"}, "replicate_weights"),
        ({"replicate_weights": "ink", "prompt": "<lora:pen:1>"}, "prompt"),
        ({"prompt": "<lora:pen:1>"}, "prompt"),
    ):
        answer = client.post(path, json={"input": inputs})
        assert answer.status_code == 422
        assert answer.json()["detail"].startswith(f"{field}: Unknown lora 'pen'")
    assert client.post(path, json={"input": {"replicate_weights": "ink"}}).status_code == 201


def jobs(client: TestClient) -> list[Any]:
    return client.get("/api/jobs").json()["jobs"]


def test_references_configured_refiner_is_accepted(client: TestClient) -> None:
    ensemble = {"refine": "expert_ensemble_refiner", "high_noise_frac": 0.7}
    after = {"refine": "base_image_refiner", "refine_steps": 9}
    client.post("/v1/models/any/miniature/predictions", json={"input": ensemble})
    client.post("/predictions", json={"input": after})
    second, first = (job["request"] for job in jobs(client))
    assert [r["refiner"] for r in (first, second)] == [FOLDER, FOLDER]
    assert (first["refine"], first["high_noise_frac"]) == ("ensemble", 0.7)
    assert (second["refine"], second["refine_steps"]) == ("sequential", 9)


def test_references_server_without_refiner_rejects_refining(tmp_path: Path) -> None:
    with client_of(tmp_path) as client:
        inputs = {"refine": "expert_ensemble_refiner"}
        answer = client.post("/v1/models/any/miniature/predictions", json={"input": inputs})
        assert answer.status_code == 422
        assert answer.json()["detail"].startswith("refine: ")
        assert jobs(client) == []


def test_refiner_of_the_server_paints(tmp_path: Path) -> None:
    """With the miniature itself: its record says who painted."""
    config = EngineConfig(("miniature",), "cpu", "fp32", tmp_path / "home")
    engine_factory = partial(make_engine, config)
    with client_of(tmp_path, engine_factory=engine_factory, refiner=REFINER) as client:
        inputs = {
            "prompt": "a red cup",
            "num_inference_steps": 4,
            "refine": "expert_ensemble_refiner",
            "high_noise_frac": 0.5,
            "width": 64,
            "height": 64,
        }
        answer = client.put("/predictions/one", json={"input": inputs})
        assert answer.json()["status"] == "succeeded", answer.text
        application: Any = client.app
        service: Service = application.state.service
        (job,) = service.jobs.list_page(None, 2)
        assert job.result is not None
        file = service.files.get_results_folder(job.id) / job.result["files"][0]
        with Image.open(file) as image:
            record = json.loads(image.info["overpaint"])
        assert record["refiner"]["name"] == REFINER, json.dumps(record)
        assert record["request"]["refine"] == "ensemble"


def test_references_models_in_place_are_noticed_by_a_running_server(tmp_path: Path) -> None:
    root = tmp_path / "loras"
    root.mkdir()
    with client_of(tmp_path, models_dirs=(root,)) as client:
        body = {"request": {"prompt": "a cup <lora:my ink (v2):0.5>"}}
        assert client.post("/api/jobs", json=body).status_code == 422
        path = lora(root / "my ink (v2).safetensors")
        assert client.post("/api/jobs", json=body).status_code == 201
        assert "my ink (v2)" in [own["name"] for own in client.get("/sdapi/v1/loras").json()]
        for name in (str(path), "./loras/my ink (v2).safetensors", "../my ink (v2)"):
            answer = client.post("/api/jobs", json={"request": {"loras": [{"name": name}]}})
            assert answer.status_code == 422
            assert "Unknown lora" in answer.json()["detail"]


def test_references_strange_file_beside_models_breaks_no_list(tmp_path: Path) -> None:
    root = tmp_path / "loras"
    root.mkdir()
    (root / "cut.safetensors").write_bytes(b"12")
    (root / os.fsdecode(b"bad\xff.safetensors")).write_bytes(b"12")
    folder = LibraryIndex(tmp_path / "home").folder
    folder.mkdir(parents=True)
    (folder / "x.json").write_text("{")
    with client_of(tmp_path, models_dirs=(root,)) as client:
        answer = client.get("/sdapi/v1/loras")
        assert answer.status_code == 200
        assert str(tmp_path) not in answer.text


def test_references_worker_reads_no_paths(tmp_path: Path) -> None:
    """The engine finds names as the server does, so that a name is never a path there."""
    from overpaint.engine.model_pool import ModelPool, open_engine

    path = lora(tmp_path / "ink.safetensors")
    config = EngineConfig(("miniature",), "cpu", "fp32", tmp_path / "home")
    models = open_engine(config)._models  # pyright: ignore[reportPrivateUsage]
    assert isinstance(models, ModelPool)
    painter = models.get("miniature")
    with pytest.raises(ModelNotFoundError, match="Unknown lora"):
        painter.addon_loader.load(Request(loras=(Lora(name=str(path)),)))
