"""Scenarios of Replicate's client 2.x: `python -m tests.server.api.replicate2 NAME URL IMAGE`.

It cannot be installed beside 1.x: PYTHONPATH points to a separate folder. The result is printed as
JSON.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

from PIL import Image

replicate: Any = importlib.import_module("replicate")
PINNED = "stability-ai/sdxl:39ed52f2a78e934b3ba6e2a89f5b1c712de7dfea535525255b1aa35c5565e08b"
MODEL = "overpaint/miniature"


def sizes(files: list[bytes]) -> list[Any]:
    return [Image.open(io.BytesIO(file)).size for file in files]


def run(client: Any, picture: Path) -> Any:
    pinned = client.run(PINNED, input={"prompt": "a cup", "num_outputs": 2})
    named = client.run(MODEL, input={"prompt": "a cup"}, wait=False)
    return {
        "version": replicate.__version__,
        "sizes": sizes([file.read() for file in (*pinned, *named)]),
    }


def run_async(client: Any, picture: Path) -> Any:
    async def both() -> Any:
        async with replicate.AsyncReplicate(base_url=client.base_url) as own:
            with picture.open("rb") as image:
                inputs = {"prompt": "a cup", "image": image}
                files = await own.run(PINNED, input=inputs)
            return sizes([await file.read() for file in files])

    return asyncio.run(both())


def use(client: Any, picture: Path) -> Any:
    """`use` replaces streams: one image after the other, and a plain call."""
    told = list(replicate.use(MODEL, streaming=True)(prompt="note", num_outputs=2))
    running = replicate.use(MODEL).create(prompt="note")
    output = running.output()
    return {"streamed": told, "output": output, "logs": running.logs()}


def life(client: Any, picture: Path) -> Any:
    made = client.predictions.create(
        version=PINNED, input={"prompt": "note", "num_inference_steps": 20}
    )
    done = client.predictions.wait(made.id)
    return {
        "at_first": made.status,
        "status": done.status,
        "input": done.input,
        "predict_time": done.metrics.predict_time,
        "ended": (done.completed_at - done.created_at).total_seconds(),
        "web": done.urls.web,
        "listed": done.id in [other.id for other in client.predictions.list()],
        "later": [
            other.id for other in client.predictions.list(created_after="2999-01-01T00:00:00Z")
        ],
    }


def pages(client: Any, picture: Path) -> Any:
    """Create more predictions than the 100 of a page."""
    one = {"num_inference_steps": 1}
    made = [client.predictions.create(version=PINNED, input=one).id for _ in range(101)]
    return [made.index(other.id) for other in client.predictions.list() if other.id in made]


def cancel(client: Any, picture: Path) -> Any:
    made = client.predictions.create(version=PINNED, input={"num_inference_steps": 500})
    client.predictions.cancel(prediction_id=made.id)
    return client.predictions.wait(made.id).status


def files(client: Any, picture: Path) -> Any:
    """Send files in every way that the client offers, and read one back."""
    inputs: dict[str, Any] = {"prompt": "a cup", "prompt_strength": 0.5}
    made: list[Any] = []
    for strategy in ("url", "base64"):
        with picture.open("rb") as image:
            made += client.run(
                MODEL, input=inputs | {"image": image}, file_encoding_strategy=strategy
            )
    made += client.run(MODEL, input=inputs | {"image": picture, "mask": picture})
    sent = client.files.create(content=picture.read_bytes(), filename="house.png", type="image/png")
    got = client.files.get(file_id=sent.id)
    made += client.run(MODEL, input=inputs | {"image": got.urls.get})
    other = client.files.create(content=b"other", metadata={"a": 1})
    listed = [file.id for file in client.files.list()]
    client.files.delete(file_id=other.id)
    return {
        "metadata": other.metadata,
        "listed": [other.id in listed, other.id in [file.id for file in client.files.list()]],
        "sizes": sizes([file.read() for file in made]),
        "whole": sent.checksums.sha256 == hashlib.sha256(picture.read_bytes()).hexdigest(),
        "sent": sent.content_type,
    }


def errors(client: Any, picture: Path) -> Any:
    def of(call: Any, *given: Any, **named: Any) -> str:
        try:
            call(*given, **named)
        except replicate.ReplicateError as error:
            return f"{type(error).__name__}: {error}"
        return "none"

    create = client.predictions.create
    plain = {"version": PINNED, "input": {}}
    return {
        "failed": of(client.run, PINNED, input={"prompt": "refuse"}),
        "invalid": of(client.run, PINNED, input={"num_inference_steps": 0}),
        "no model": of(client.models.get, model_owner="x", model_name="y"),
        "no prediction": of(client.predictions.get, prediction_id="0" * 32),
        "deadline": of(create, **plain, cancel_after="30s"),
    }


def models(client: Any, picture: Path) -> Any:
    model = client.models.get(model_owner="stability-ai", model_name="sdxl")
    schemas = model.latest_version.openapi_schema["components"]["schemas"]
    return {
        "names": [other.name for other in client.models.list()],
        "most": schemas["Input"]["properties"]["num_outputs"]["maximum"],
        "output": schemas["Output"]["items"]["format"],
        "secret": client.webhooks.default.secret.get().key[:6],
        "account": client.account.get().type,
        "hardware": [each.sku for each in client.hardware.list()],
        "deployments": [each.name for each in client.deployments.list()],
        "deployed": client.deployments.predictions.create(
            deployment_owner="acme", deployment_name="sdxl", input={"prompt": "a"}
        ).model,
    }


if __name__ == "__main__":
    what, url, given = sys.argv[1:]
    os.environ["REPLICATE_API_TOKEN"] = "any"
    os.environ["REPLICATE_BASE_URL"] = url
    os.environ["REPLICATE_POLL_INTERVAL"] = "0.05"
    with replicate.Replicate(base_url=url) as opened:
        print(json.dumps(globals()[what](opened, Path(given))))
