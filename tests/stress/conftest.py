"""The Postgres of the server's tests, for the stress tests."""

from __future__ import annotations

import pytest

from tests.server.conftest import postgres
from tests.server.postgres import database

__all__ = ["postgres"]


@pytest.fixture
def empty_database(postgres: str) -> str:
    """The URL of an empty database on Postgres."""
    if not postgres:
        pytest.skip("no Postgres here: apt-get install postgresql")
    return database(postgres)
