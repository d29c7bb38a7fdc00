"""Json body."""

import asyncio
import json
from collections import Counter
from typing import Any

from fastapi import HTTPException
from fastapi import Request as Incoming

MAX_JSON_SEPARATORS = 100_000
"""Brackets and commas in JSON: what is between them takes dozens of times the memory that it came
in. Prompts may have tens of thousands; base64, which is most of a large body, has none."""


THREADED_PARSE_BYTES = 2**18
"""Bytes of JSON from which on it is read beside the loop, which all others wait for."""


class StrictRequest(Incoming):
    """A request whose JSON must say each thing once: else all but the last would be dropped."""

    async def json(self) -> Any:
        """What the body says.

        Raises:
            HTTPException: 400, a name comes twice, or there are more than `MAX_JSON_SEPARATORS`
                brackets and commas.
            ValueError, RecursionError: it is no JSON, or none that is read.
        """
        body = await self.body()
        if len(body) < THREADED_PARSE_BYTES:
            return parse_json(body)
        return await asyncio.to_thread(parse_json, body)


def parse_json(text: str | bytes) -> Any:
    """What JSON says, each thing once.

    Raises:
        HTTPException: 400, a name comes twice, or there are more than `MAX_JSON_SEPARATORS`
                brackets and commas.
        ValueError, RecursionError: it is no JSON, or none that is read.
    """
    check_json_size(text)
    return json.loads(text, object_pairs_hook=_unique_names)


def check_json_size(*texts: str | bytes) -> None:
    """Make sure that JSON, in one request, says no more than `MAX_JSON_SEPARATORS` things.

    Raises:
        HTTPException: 400, it says more.
    """
    parts = [text.encode(errors="replace") if isinstance(text, str) else text for text in texts]
    if sum(part.count(sign) for part in parts for sign in (b"{", b"[", b",")) > MAX_JSON_SEPARATORS:
        raise HTTPException(400, f"JSON has {MAX_JSON_SEPARATORS:,} brackets and commas at most.")


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, count in Counter(n for n, _ in pairs).items() if count > 1)
        raise HTTPException(400, f"{twice[:100]!r} comes twice in one object; give it once.")
    return found
