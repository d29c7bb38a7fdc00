"""The Postgres of the server's tests, for the stress tests."""

from __future__ import annotations

from tests.server.conftest import postgres

__all__ = ["postgres"]
