"""Authentication: how clients send an API key, and how the server checks it."""

import asyncio
import base64
import hmac
from typing import Annotated

from fastapi import Depends, HTTPException
from fastapi import Request as Incoming
from fastapi.openapi.models import APIKey, APIKeyIn, HTTPBase, HTTPBearer, SecurityBase
from fastapi.security.base import SecurityBase as SecurityDependency

from overpaint.server.http.threads import current_key
from overpaint.server.store.api_keys import ApiKeys, hash_key
from overpaint.server.telemetry.logs import KEY_LABEL_CHARS

AUTHORIZATION_SCHEMES = ("bearer", "token", "key", "basic")
"""Schemes of the `Authorization` header that may carry a key."""


class DeclaredScheme(SecurityDependency):
    """Declares one way to send a key in the OpenAPI document; `/docs` then offers *Authorize*.

    `authenticate` reads the headers itself, because `fastapi.security.HTTPBasic` refuses
    passwords beyond ASCII, and because route classes check keys before they read a body.
    """

    def __init__(self, name: str, model: SecurityBase):
        self.scheme_name = name
        self.model = model

    async def __call__(self) -> None:
        """Do nothing."""


BEARER = DeclaredScheme("Bearer", HTTPBearer(description="`Authorization: Bearer KEY`."))
TOKEN = DeclaredScheme(
    "Token",
    APIKey.model_validate(
        {
            "in": APIKeyIn.header,
            "name": "Authorization",
            "description": "`Authorization: Token KEY`, as Replicate's clients send it. "
            "Enter `Token KEY`.",
        }
    ),
)
KEY = DeclaredScheme(
    "Key",
    APIKey.model_validate(
        {
            "in": APIKeyIn.header,
            "name": "Authorization",
            "description": "`Authorization: Key KEY`, as fal's clients send it. Enter `Key KEY`.",
        }
    ),
)
BASIC = DeclaredScheme(
    "Basic",
    HTTPBase(
        scheme="basic",
        description="HTTP Basic authentication, as AUTOMATIC1111's clients send it. The password "
        "is the key; the server ignores the user name.",
    ),
)
X_API_KEY = DeclaredScheme(
    "x-api-key",
    APIKey.model_validate(
        {
            "in": APIKeyIn.header,
            "name": "x-api-key",
            "description": "`x-api-key: KEY`, as Synexa's client sends it.",
        }
    ),
)


API_KEY = DeclaredScheme(
    "api-key",
    APIKey.model_validate(
        {
            "in": APIKeyIn.header,
            "name": "api-key",
            "description": "`api-key: KEY`, as OpenAI's client for Azure sends it.",
        }
    ),
)

KEY_HEADERS = ("x-api-key", "api-key")
"""Headers that have a key as their value, for requests without `Authorization`."""


async def declare_schemes(
    bearer: Annotated[None, Depends(BEARER)],
    token: Annotated[None, Depends(TOKEN)],
    key: Annotated[None, Depends(KEY)],
    basic: Annotated[None, Depends(BASIC)],
    x_api_key: Annotated[None, Depends(X_API_KEY)],
    api_key: Annotated[None, Depends(API_KEY)],
) -> None:
    """Declare that a route accepts a key in any one of these ways."""


SchemesDep = Annotated[None, Depends(declare_schemes)]
"""Declares the schemes of a route in the OpenAPI document."""


async def authenticate(incoming: Incoming, schemes: SchemesDep = None) -> str:
    """Check the request's API key once, and make it the key for which threads work.

    Returns:
        The key's digest, which identifies the account; "" if the server requires no keys.

    Raises:
        HTTPException: 401, the key is missing or unknown.
        SQLAlchemyError: the job store, which holds the keys, is out of order.
    """
    state = incoming.state
    digest: str | None = getattr(state, "digest", None)
    if digest is None:
        if incoming.app.state.keys.are_cached():
            digest = _check_key(incoming)
        else:
            digest = await asyncio.to_thread(_check_key, incoming)
        state.digest = digest
    if digest:
        state.key = digest[:KEY_LABEL_CHARS]
    current_key.set(digest[:KEY_LABEL_CHARS])
    return digest


def _check_key(incoming: Incoming) -> str:
    """Return the digest of the request's API key; for the errors see `authenticate`."""
    keys: ApiKeys = incoming.app.state.keys
    if not keys.are_required():
        return ""
    digest = hash_key(_read_key(incoming))
    if not keys.accepts(digest):
        raise _make_key_error("API key")
    return digest


def authorize_metrics(incoming: Incoming, schemes: SchemesDep = None) -> None:
    """Check that the client may read the totals of all API keys.

    Raises:
        HTTPException: 401, the metrics key is missing or unknown; 403, the server has API keys and
            no metrics key.
        SQLAlchemyError: the job store, which holds the keys, is out of order.
    """
    metrics_key: str | None = incoming.app.state.settings.metrics_key
    if metrics_key:
        if not hmac.compare_digest(hash_key(_read_key(incoming)), hash_key(metrics_key)):
            raise _make_key_error("metrics key")
    elif incoming.app.state.keys.are_required():
        raise HTTPException(
            403,
            "Metrics show what all API keys do, so no API key can read them. Start the server with "
            "--metrics-key, and send that key.",
        )


def _read_key(incoming: Incoming) -> str:
    """Return the key in a request's headers; "" without one."""
    given_keys = (key for name in KEY_HEADERS if (key := incoming.headers.get(name)))
    default = f"key {next(given_keys, '')}"
    scheme, _, given = incoming.headers.get("authorization", default).partition(" ")
    if scheme.lower() not in AUTHORIZATION_SCHEMES:
        return ""
    return (_basic_password(given) if scheme.lower() == "basic" else given).strip()


def _make_key_error(name: str) -> HTTPException:
    return HTTPException(
        401,
        f"The {name} is missing or unknown. Send a valid key: `Authorization: Bearer KEY`.",
        {"WWW-Authenticate": "Bearer"},
    )


def _basic_password(credentials: str) -> str:
    """Decode the password of HTTP Basic credentials; "" if they are malformed."""
    try:
        return base64.b64decode(credentials, validate=True).decode().partition(":")[2]
    except ValueError:
        return ""


KeyDep = Annotated[str, Depends(authenticate)]
"""The digest of the client's API key; see `authenticate`."""

MetricsAccessDep = Annotated[None, Depends(authorize_metrics)]
"""Checks that the client may read the totals of all API keys; see `authorize_metrics`."""
