"""Two keys: neither sees, fetches, ends or changes what is the other's, by any route that there is.

`ROUTES` says of every route what a stranger is answered there. One that is not in it fails a test,
so that nobody adds a route without saying.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
from fastapi.routing import iter_route_contexts
from fastapi.testclient import TestClient
from PIL import Image

from overpaint.request import Request
from overpaint.server.jobs.service import Service
from overpaint.server.store.api_keys import hash_key
from overpaint.server.store.origins import A1111Origin
from tests.server.live import client_of, until

SECRET = "a bull in a china shop"
LONG = {"prompt": SECRET, "num_inference_steps": 1000}
TOKEN = {"idempotency-key": "order-1"}
THEIR_ID = "the-owners-own-id"
THEIR_TASK = "the-owners-own-task"
WEBHOOK = "https://receiver.invalid/owner"
BRIEF = {"prompt": "a cup", "num_inference_steps": 1}


def picture() -> bytes:
    made = io.BytesIO()
    Image.new("RGB", (64, 64), (1, 2, 3)).save(made, "PNG")
    return made.getvalue()


PICTURE = picture()
TEXT = base64.b64encode(PICTURE).decode()


@dataclass(frozen=True)
class Strangers:
    """What a stranger is answered, who puts in what is another's.

    Attributes:
        status: of the answer.
        body: JSON that is sent.
        headers: likewise.
        upload: a file of a form, or a body as it is.
    """

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict[str, str])
    upload: str = ""


SAME = Strangers()
"""The stranger's own, or what is the same for everybody."""

HIDDEN = Strangers(404)
UNSIGNED = Strangers(403)
"""A signature in the link replaces the key, and the stranger has none."""
OTHER_KEY = UNSIGNED
"""The key of `--metrics-key` opens it, and no API key."""
MADE = Strangers(201, {"request": BRIEF}, TOKEN)
CAPABILITY = SAME
"""Who can name the hash of a picture has, or had, the picture: that it is there is no secret."""

ROUTES: dict[str, Strangers] = {
    # Native
    "POST /api/jobs": MADE,
    "GET /api/jobs": SAME,
    "GET /api/jobs?before={name}": HIDDEN,
    "GET /api/jobs/{name}": HIDDEN,
    "POST /api/jobs/{name}/cancel": HIDDEN,
    "GET /api/jobs/{name}/events": HIDDEN,
    "GET /api/jobs/{name}/results/{file}": HIDDEN,
    "GET /api/jobs/{name}/webhooks": HIDDEN,
    "POST /api/jobs/{name}/webhooks/{event}/replay": HIDDEN,
    "GET /api/webhooks/secret": SAME,
    "POST /api/files": Strangers(201, upload="body"),
    "GET /api/files/{hash}": CAPABILITY,
    "GET /api/models": SAME,
    "GET /api/usage": SAME,
    # Replicate
    "POST /v1/predictions": Strangers(201, {"version": "o/m", "input": BRIEF}),
    "GET /v1/predictions": SAME,
    "GET /v1/predictions?cursor={name}": HIDDEN,
    "POST /v1/models/{owner}/{model}/predictions": Strangers(201, {"input": BRIEF}),
    "GET /v1/predictions/{name}": HIDDEN,
    "POST /v1/predictions/{name}/cancel": HIDDEN,
    "GET /v1/predictions/{name}/output/{file}": HIDDEN,
    "GET /v1/predictions/{name}/stream": HIDDEN,
    "GET /v1/predictions/{name}/output/{expires}/{signature}/{file}": UNSIGNED,
    "GET /v1/models": SAME,
    "QUERY /v1/models": SAME,
    "GET /v1/models/{owner}/{model}": SAME,
    "GET /v1/models/{owner}/{model}/versions": SAME,
    "GET /v1/models/{owner}/{model}/versions/{version}": SAME,
    "GET /v1/webhooks/default/secret": SAME,
    "GET /v1/account": SAME,
    "GET /v1/hardware": SAME,
    "GET /v1/collections": SAME,
    "GET /v1/trainings": SAME,
    "GET /v1/deployments": SAME,
    "GET /v1/deployments/{owner}/{model}": SAME,
    "POST /v1/deployments/{owner}/{model}/predictions": Strangers(201, {"input": BRIEF}),
    "GET /v1/files": SAME,
    "DELETE /v1/files/{hash}": HIDDEN,
    "POST /v1/files": Strangers(201, upload="content"),
    "GET /v1/files/{hash}": CAPABILITY,
    # OpenAI
    "POST /v1/images/generations": Strangers(200, {"prompt": "a cup", "steps": 1}),
    "POST /v1/images/edits": Strangers(200, {"prompt": "a cup", "steps": 1}, upload="image"),
    "POST /v1/images/variations": Strangers(200, {"steps": 1}, upload="image"),
    **{
        f"POST {prefix}/images/{name}": Strangers(
            200, {"prompt": "a cup", "steps": 1}, upload="" if name == "generations" else "image"
        )
        for prefix in ("/openai/v1", "/openai/deployments/{model}")
        for name in ("generations", "edits", "variations")
    },
    "GET /v1/models/{model}": SAME,
    # cog
    "GET /": SAME,
    "GET /health-check": SAME,
    "POST /predictions": Strangers(200, {"input": BRIEF}),
    "PUT /predictions/{own}": Strangers(200, {"input": BRIEF}),
    "POST /predictions/{name}/cancel": HIDDEN,
    # fal
    "POST /fal/queue/{owner}/{model}": Strangers(200, BRIEF),
    "POST /fal/queue/{owner}/{model}/{task}": Strangers(200, BRIEF),
    "GET /fal/queue/{owner}/{model}/requests/{name}": HIDDEN,
    "GET /fal/queue/{owner}/{model}/requests/{name}/status": HIDDEN,
    "GET /fal/queue/{owner}/{model}/requests/{name}/status/stream": HIDDEN,
    "PUT /fal/queue/{owner}/{model}/requests/{name}/cancel": HIDDEN,
    "POST /fal/run/{owner}/{model}": Strangers(200, BRIEF),
    "POST /fal/run/{owner}/{model}/{task}": Strangers(200, BRIEF),
    "POST /fal/run/{owner}/{model}/stream": Strangers(200, BRIEF),
    "POST /fal/run/{owner}/{model}/{task}/stream": Strangers(200, BRIEF),
    "POST /fal/rest/storage/upload/initiate": Strangers(200, {}),
    "POST /fal/rest/storage/upload/initiate-multipart": Strangers(413),
    "PUT /fal/rest/storage/upload/{name}": UNSIGNED,
    "POST /fal/rest/storage/auth/token": SAME,
    "POST /fal/rest/files/upload": Strangers(200, upload="body"),
    "GET /fal/files/{name}": HIDDEN,
    "GET /fal/files/{name}/{file}": HIDDEN,
    **{f"{method} /fal/proxy": HIDDEN for method in ("GET", "POST", "PUT")},
    # AUTOMATIC1111
    "POST /sdapi/v1/txt2img": Strangers(200, {"prompt": "a cup", "steps": 1}),
    "POST /sdapi/v1/img2img": Strangers(200, {"steps": 1, "init_images": [TEXT]}),
    "GET /sdapi/v1/progress": SAME,
    "POST /internal/progress": Strangers(200, {"id_task": THEIR_TASK}),
    "POST /sdapi/v1/interrupt": Strangers(200, {"force_task_id": THEIR_TASK}),
    "POST /sdapi/v1/skip": SAME,
    "GET /sdapi/v1/options": SAME,
    "POST /sdapi/v1/options": Strangers(200, {"samples_format": "webp"}),
    "POST /sdapi/v1/png-info": Strangers(200, {"image": TEXT}),
    "POST /controlnet/txt2img": Strangers(200, {"prompt": "a cup", "steps": 1}),
    "POST /controlnet/img2img": Strangers(200, {"steps": 1, "init_images": [TEXT]}),
    "POST /controlnet/detect": Strangers(200, {"controlnet_input_images": [TEXT]}),
    **{
        f"GET {path}": SAME
        for path in (
            *("/queue/status", "/internal/pending-tasks", "/internal/ping"),
            *("/controlnet/model_list", "/controlnet/module_list", "/controlnet/control_types"),
            *("/controlnet/settings", "/controlnet/version"),
            *("/sdapi/v1/sd-models", "/sdapi/v1/samplers", "/sdapi/v1/schedulers"),
            *("/sdapi/v1/loras", "/sdapi/v1/embeddings", "/sdapi/v1/upscalers"),
            *("/sdapi/v1/latent-upscale-modes", "/sdapi/v1/scripts", "/sdapi/v1/cmd-flags"),
            *("/sdapi/v1/prompt-styles", "/sdapi/v1/realesrgan-models", "/sdapi/v1/sd-vae"),
            *("/sdapi/v1/face-restorers", "/sdapi/v1/hypernetworks", "/sdapi/v1/extensions"),
            *("/sdapi/v1/script-info", "/sdapi/v1/memory"),
        )
    },
    "POST /sdapi/v1/refresh-checkpoints": SAME,
    "POST /sdapi/v1/refresh-loras": SAME,
    "POST /sdapi/v1/refresh-embeddings": SAME,
    "POST /sdapi/v1/refresh-vae": SAME,
    "POST /sdapi/v1/reload-checkpoint": SAME,
    "POST /sdapi/v1/unload-checkpoint": SAME,
    # Health and descriptions
    "GET /metrics": OTHER_KEY,
    "GET /healthz": SAME,
    "GET /readyz": SAME,
    "GET /openapi.json": SAME,
    "GET /docs": SAME,
    "GET /docs/{asset}": SAME,
}

NAMES = {
    "prediction_id": "name",
    "deployment": "model",
    "app": "model",
    "version_id": "version",
    "file_name": "file",
}
"""What parameters of paths are called in `ROUTES`, where they are not called alike."""


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


OWNER, STRANGER = bearer("owner"), bearer("stranger")


@dataclass(frozen=True)
class Owned:
    """What the owner has: jobs by the dialect that they came by, one ended, an upload."""

    client: TestClient
    jobs: dict[str, str]
    ended: str
    file: str
    upload: str

    @property
    def service(self) -> Service:
        app: Any = self.client.app
        return app.state.service

    def told(self) -> list[str]:
        """What only the owner may read."""
        return [SECRET, WEBHOOK, THEIR_TASK, hash_key("owner"), self.ended, *self.jobs.values()]

    def states(self) -> dict[str, tuple[str, bool]]:
        """Where the owner's jobs are, and whether somebody asked for their end."""
        found = {name: self.service.jobs.get(name) for name in (*self.jobs.values(), self.ended)}
        return {name: (job.state, job.canceling) for name, job in found.items() if job}


@pytest.fixture(scope="module")
def owned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Owned]:
    with client_of(tmp_path_factory.mktemp("data"), 0.2, api_keys=("owner", "stranger")) as client:

        def post(path: str, body: Any, **headers: str) -> Any:
            answer = client.post(path, json=body, headers=OWNER | headers)
            assert answer.status_code < 300, answer.text
            return answer.json()

        until(lambda: client.get("/readyz").status_code == 200)
        client.post("/sdapi/v1/options", json={"samples_format": "jpg"}, headers=OWNER)
        hooked = {"request": {"prompt": SECRET, "num_inference_steps": 1}, "webhook": WEBHOOK}
        ended = post("/api/jobs?wait=60", hooked)
        queue = "/fal/queue/fal-ai/m"
        jobs = {
            "native": post("/api/jobs", {"request": LONG}, **TOKEN)["id"],
            "replicate": post("/v1/predictions", {"version": "o/m", "input": _fit(LONG)})["id"],
            "fal": post(queue, LONG)["request_id"],
        }
        named = {"id": THEIR_ID, "input": _fit(LONG)}
        post("/predictions", named, prefer="respond-async")
        jobs["cog"] = client.get("/api/jobs?limit=1", headers=OWNER).json()["jobs"][0]["id"]
        jobs["a1111"] = submit_task(client)
        file = client.post("/api/files", content=PICTURE, headers=OWNER).json()["file"]
        owned = Owned(client, jobs, ended["id"], ended["results"][0]["name"], file)
        until(lambda: "queued" not in {state for state, _ in owned.states().values()})
        yield owned


def submit_task(client: TestClient) -> str:
    """Submit the owner's job of AUTOMATIC1111's dialect, whose route would wait for its end."""
    app: Any = client.app
    service: Service = app.state.service
    origin = A1111Origin(parameters={}, task=THEIR_TASK)
    assert client.portal
    request = Request.model_validate(LONG)
    submit = partial(service.submit, request, key=hash_key("owner"), origin=origin)
    return client.portal.call(submit).id


def _fit(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields as Replicate's inputs, which have 500 steps at most."""
    return fields | {"num_inference_steps": 500}


def walked(routes: Any) -> Iterator[str]:
    """Every route, as `ROUTES` writes it, also those that the API's description leaves out."""
    for context in iter_route_contexts(routes):
        route: Any = context
        path = route.path
        for theirs, ours in NAMES.items():
            path = path.replace(f"{{{theirs}}}", f"{{{ours}}}")
        if path.startswith(("/v1/models/", "/v1/deployments/")):
            path = path.replace("{name}", "{model}")
        if path in ("/api/files/{name}", "/v1/files/{name}"):
            path = path.replace("{name}", "{hash}")
        for method in sorted(route.methods - {"HEAD"}):
            yield f"{method} {path}".replace("PUT /predictions/{name}", "PUT /predictions/{own}")


def test_every_route_has_an_isolation_rule(owned: Owned) -> None:
    app: Any = owned.client.app
    assert sorted(walked(app.routes)) == sorted(name for name in ROUTES if "?" not in name)


@pytest.mark.parametrize("route", ROUTES)
def test_other_key_is_answered_by_the_isolation_rule(owned: Owned, route: str) -> None:
    rule, before = ROUTES[route], owned.states()
    method, path = route.split()
    names = [*owned.jobs.values(), owned.ended] if "{name}" in path else [""]
    if path == "/predictions/{name}/cancel":
        names.append(THEIR_ID)
    for name in names:
        places = {"name": name, "file": owned.file, "event": "completed", "hash": owned.upload}
        places |= {"owner": "fal-ai", "model": "m", "version": "0" * 64, "own": "another"}
        places |= {"expires": 1, "signature": "x"}
        places["asset"] = "swagger-ui.css"
        asked = path.format(**places, task="text-to-image")
        answer = owned.client.request(method, asked, headers=STRANGER | rule.headers, **sent(rule))
        assert answer.status_code == rule.status, answer.text
        for secret in owned.told():
            assert secret == name or secret not in answer.text
    assert owned.states() == before


def sent(rule: Strangers) -> dict[str, Any]:
    """What is sent, as the client takes it."""
    match rule.upload:
        case "":
            return {} if rule.body is None else {"json": rule.body}
        case "body":
            return {"content": PICTURE}
        case name:
            return {"files": {name: ("house.png", PICTURE)}, "data": rule.body}


def test_owner_key_finds_its_jobs(owned: Owned) -> None:
    # As a stranger is answered 404, so the same calls answer their owner.
    for name in (*owned.jobs.values(), owned.ended):
        assert owned.client.get(f"/api/jobs/{name}", headers=OWNER).status_code == 200
    assert owned.file in owned.client.get(f"/api/jobs/{owned.ended}", headers=OWNER).text
    for headers, mine in ((OWNER, True), (STRANGER, False)):
        shown = owned.client.get("/sdapi/v1/progress", headers=headers).json()
        assert (shown["state"]["job"] == owned.jobs["a1111"]) == mine
        pending = owned.client.get("/internal/pending-tasks", headers=headers).json()["tasks"]
        assert (pending == [THEIR_TASK]) == mine
        named = {"id_task": THEIR_TASK}
        answer = owned.client.post("/internal/progress", json=named, headers=headers).json()
        assert answer["active"] == mine


def test_result_needs_the_owner_key_or_a_signed_link(owned: Owned) -> None:
    for path in (
        f"/api/jobs/{owned.ended}/results/{owned.file}",
        f"/v1/predictions/{owned.ended}/output/{owned.file}",
    ):
        link = f"{path}?{owned.service.links.sign_query(owned.ended, owned.file)}"
        assert owned.client.get(path).status_code == 401
        assert owned.client.get(path, headers=OWNER).status_code == 200
        assert owned.client.get(link, headers=STRANGER).status_code == 200
        assert owned.client.get(f"{link}x", headers=STRANGER).status_code == 403


def test_idempotency_keys_are_separate_per_key(owned: Owned) -> None:
    for headers, mine in ((OWNER, True), (STRANGER, False)):
        again = owned.client.post(
            "/api/jobs", json={"request": LONG if mine else BRIEF}, headers=headers | TOKEN
        )
        assert (again.json()["id"] == owned.jobs["native"]) == mine
    shown = owned.client.put(f"/predictions/{THEIR_ID}", json={"input": BRIEF}, headers=STRANGER)
    assert shown.json()["input"]["prompt"] == BRIEF["prompt"]


def test_options_and_webhook_secrets_are_separate_per_key(owned: Owned) -> None:
    own = [owned.client.get("/sdapi/v1/options", headers=h).json() for h in (OWNER, STRANGER)]
    assert own[0]["samples_format"] == "jpg" != own[1]["samples_format"]
    for path in ("/api/webhooks/secret", "/v1/webhooks/default/secret"):
        secrets = {owned.client.get(path, headers=h).json()["key"] for h in (OWNER, STRANGER)}
        assert len(secrets) == 2


def test_job_list_contains_only_own_jobs(owned: Owned) -> None:
    for path in ("/api/jobs?limit=100", "/v1/predictions"):
        listed = [owned.client.get(path, headers=h).json() for h in (OWNER, STRANGER)]
        names = [{job["id"] for job in page.get("jobs", page.get("results"))} for page in listed]
        assert {owned.ended, *owned.jobs.values()} <= names[0]
        assert not names[0] & names[1]


def test_missing_key_opens_only_health_and_descriptions(owned: Owned) -> None:
    open_ones = {"/", "/health-check", "/healthz", "/readyz"}
    open_ones |= {"/openapi.json", "/docs", "/docs/{asset}"}
    for route, rule in ROUTES.items():
        method, path = route.split()
        places = {"name": owned.ended, "file": owned.file, "event": "start", "hash": owned.upload}
        places |= {"owner": "fal-ai", "model": "m", "version": "0" * 64, "own": "another"}
        places |= {"expires": 1, "signature": "x"}
        places["asset"] = "swagger-ui.css"
        asked = path.format(**places, task="text-to-image")
        answer = owned.client.request(method, asked, **sent(rule))
        status = 403 if rule is UNSIGNED else 200 if path in open_ones else 401
        assert answer.status_code == status, route


def test_upload_is_found_by_its_hash_without_its_content(owned: Owned) -> None:
    # Only who has, or had, the picture can name it; and is told its size, not its bytes.
    assert owned.upload == hashlib.sha256(PICTURE).hexdigest()
    for path in ("/api/files/", "/v1/files/"):
        answer = owned.client.get(path + owned.upload, headers=STRANGER)
        assert answer.json()["size"] == len(PICTURE)
        assert PICTURE not in answer.content


def test_uploads_are_separate_per_key(owned: Owned) -> None:
    files = {"content": ("a.png", b"the owner's", "image/png")}
    made = owned.client.post("/v1/files", files=files, headers=OWNER).json()["id"]
    path = f"/v1/files/{made}"
    listed = owned.client.get("/v1/files", headers=STRANGER).json()["results"]
    assert made not in {file["id"] for file in listed}
    assert owned.client.get(f"/v1/files?cursor={made}", headers=STRANGER).status_code == 404
    assert owned.client.delete(path, headers=STRANGER).status_code == 404
    assert owned.client.delete(path, headers=OWNER).status_code == 204
