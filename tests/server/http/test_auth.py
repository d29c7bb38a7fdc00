"""Authentication: what the OpenAPI document declares, and what the server accepts."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.server.http.test_guard import client_of

KEY = "correct horse"
ACCEPTED = {
    "Bearer": {"authorization": f"Bearer {KEY}"},
    "Token": {"authorization": f"Token {KEY}"},
    "Key": {"authorization": f"Key {KEY}"},
    "Basic": {"authorization": f"Basic {base64.b64encode(f'anyone:{KEY}'.encode()).decode()}"},
    "x-api-key": {"x-api-key": KEY},
    "api-key": {"api-key": KEY},
}
"""Headers that carry the key, by the scheme's name in the OpenAPI document."""

SIGNED = {
    "/v1/predictions/{name}/output/{expires}/{signature}/{file}",
    "/fal/rest/storage/upload/{name}",
}
"""Paths of links whose signature replaces the key."""

WITHOUT_KEY = {"/", "/health-check", "/healthz", "/readyz", *SIGNED}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with client_of(tmp_path_factory.mktemp("data"), api_keys=(KEY,)) as client:
        yield client


@pytest.fixture(scope="module")
def document(client: TestClient) -> dict[str, Any]:
    return client.get("/openapi.json").json()


def test_openapi_document_declares_every_accepted_scheme(document: dict[str, Any]) -> None:
    assert document["components"]["securitySchemes"].keys() == ACCEPTED.keys()


def test_openapi_document_requires_one_scheme_on_every_route_with_a_key(
    document: dict[str, Any],
) -> None:
    one_of_them = [{name: []} for name in ACCEPTED]
    for path, operations in document["paths"].items():
        for operation in operations.values():
            expected = None if path in WITHOUT_KEY else one_of_them
            assert operation.get("security") == expected, path


@pytest.mark.parametrize("scheme", ACCEPTED)
def test_key_in_a_declared_scheme_is_accepted(client: TestClient, scheme: str) -> None:
    assert client.get("/api/models", headers=ACCEPTED[scheme]).status_code == 200
    wrong = {name: value.replace(KEY, "wrong") for name, value in ACCEPTED[scheme].items()}
    if scheme == "Basic":
        wrong = {"authorization": "Basic " + base64.b64encode(b"anyone:wrong").decode()}
    assert client.get("/api/models", headers=wrong).status_code == 401


def test_docs_page_offers_the_openapi_document(client: TestClient) -> None:
    page = client.get("/docs")
    assert page.status_code == 200
    assert "/openapi.json" in page.text
    assert "SwaggerUIBundle" in page.text
