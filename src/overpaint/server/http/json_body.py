"""Strict JSON bodies: no repeated names, and a limit on their structure."""

import json
from collections import Counter
from typing import Any

from fastapi import HTTPException
from fastapi import Request as Incoming

from overpaint.server.http.threads import run_in_picture_thread
from overpaint.server.settings import Limits

THREADED_PARSE_BYTES = 2**18
"""Size in bytes from which a thread parses JSON, to keep the event loop free."""


class StrictRequest(Incoming):
    """A request whose JSON objects must not repeat a name: parsers keep only the last value."""

    async def json(self) -> Any:
        """Parse the body.

        Raises:
            HTTPException: 400, an object repeats a name, or there are more than
                `Limits.json_separators` brackets and commas.
            ValueError, RecursionError: the text is not valid JSON, or is nested too deeply.
        """
        body = await self.body()
        limits: Limits = self.app.state.settings.limits

        def parse() -> Any:
            check_json_size(limits, body)
            return parse_json(body)

        if len(body) < THREADED_PARSE_BYTES:
            return parse()
        return await run_in_picture_thread(parse)


def parse_json(text: str | bytes) -> Any:
    """Parse JSON whose objects repeat no name.

    Raises:
        HTTPException: 400, an object repeats a name.
        ValueError, RecursionError: the text is not valid JSON, or is nested too deeply.
    """
    return json.loads(text, object_pairs_hook=_unique_names)


def check_json_size(limits: Limits, *texts: str | bytes) -> None:
    """Check that the JSON texts of one request have at most `json_separators` brackets and commas.

    Raises:
        HTTPException: 400, they have more.
    """
    parts = [text.encode(errors="replace") if isinstance(text, str) else text for text in texts]
    found = sum(part.count(sign) for part in parts for sign in (b"{", b"[", b","))
    if found > limits.json_separators:
        raise HTTPException(
            400,
            f"The JSON has more than {limits.json_separators:,} brackets and commas. Send less.",
        )


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, count in Counter(n for n, _ in pairs).items() if count > 1)
        raise HTTPException(400, f"{twice[:100]!r} is repeated in one JSON object. Send it once.")
    return found
