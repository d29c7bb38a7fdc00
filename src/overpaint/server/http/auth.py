"""Auth."""

import base64
from typing import Annotated

from fastapi import Depends, HTTPException
from fastapi import Request as Incoming

from overpaint.server.store.api_keys import Keys, digest_of
from overpaint.server.telemetry.logs import SHOWN


def authenticate(incoming: Incoming) -> str:
    """On whose account a request is: the digest of its key, or "" where none is asked for.

    Raises:
        HTTPException: 401, the key is missing or unknown.
        SQLAlchemyError: the store, which knows, is out of order.
    """
    keys: Keys = incoming.app.state.keys
    if not keys.demanded():
        return ""
    alone = incoming.headers.get("x-api-key")
    default = f"key {alone}" if alone else ""
    scheme, _, given = incoming.headers.get("authorization", default).partition(" ")
    if scheme.lower() == "basic":
        given = _basic_password(given)
    digest = digest_of(given.strip())
    if scheme.lower() in ("bearer", "token", "key", "basic") and keys.knows(digest):
        incoming.state.key = digest[:SHOWN]
        return digest
    raise HTTPException(
        401,
        "give a key of this server's: `Authorization: Bearer KEY`.",
        {"WWW-Authenticate": "Bearer"},
    )


def _basic_password(given: str) -> str:
    """Of HTTP's Basic credentials; "" where they are none."""
    try:
        return base64.b64decode(given, validate=True).decode().partition(":")[2]
    except ValueError:
        return ""


KeyDep = Annotated[str, Depends(authenticate)]
