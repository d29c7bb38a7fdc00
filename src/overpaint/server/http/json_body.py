"""Json body."""

import asyncio
import json
from collections import Counter
from typing import Any

from fastapi import HTTPException
from fastapi import Request as Incoming

MOST_SAID = 100_000
"""Brackets and commas in JSON: what is between them takes dozens of times the memory that it came
in. Prompts may have tens of thousands; base64, which is most of a large body, has none."""


LARGE = 2**18
"""Bytes of JSON from which on it is read beside the loop, which all others wait for."""


class Strict(Incoming):
    """A request whose JSON must say each thing once: else all but the last would be dropped."""

    async def json(self) -> Any:
        """What the body says.

        Raises:
            HTTPException: 400, a name comes twice, or it says more than `MOST_SAID` things.
            ValueError, RecursionError: it is no JSON, or none that is read.
        """
        body = await self.body()
        if len(body) < LARGE:
            return from_json(body)
        return await asyncio.to_thread(from_json, body)


def from_json(text: str | bytes) -> Any:
    """What JSON says, each thing once.

    Raises:
        HTTPException: 400, a name comes twice, or it says more than `MOST_SAID` things.
        ValueError, RecursionError: it is no JSON, or none that is read.
    """
    check_said(text)
    return json.loads(text, object_pairs_hook=_once)


def check_said(*texts: str | bytes) -> None:
    """Make sure that JSON, in one request, says no more than `MOST_SAID` things.

    Raises:
        HTTPException: 400, it says more.
    """
    parts = [text.encode(errors="replace") if isinstance(text, str) else text for text in texts]
    if sum(part.count(sign) for part in parts for sign in (b"{", b"[", b",")) > MOST_SAID:
        raise HTTPException(400, f"JSON has {MOST_SAID:,} brackets and commas at most.")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, count in Counter(n for n, _ in pairs).items() if count > 1)
        raise HTTPException(400, f"{twice[:100]!r} comes twice in one object; give it once.")
    return found
