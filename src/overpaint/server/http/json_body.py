"""Strict JSON bodies: no repeated names, no invalid Unicode, and a limit on their structure."""

import json
import re
from collections import Counter
from typing import Any

from fastapi import HTTPException
from fastapi import Request as Incoming

from overpaint.server.http.threads import run_in_picture_thread
from overpaint.server.settings import Limits

THREADED_PARSE_BYTES = 2**18
"""Size in bytes from which a thread parses JSON, to keep the event loop free."""


SURROGATE_PATTERN = re.compile("[\ud800-\udfff]")
"""A half of a UTF-16 pair. JSON can escape one alone, but UTF-8 cannot encode it."""


_Place = tuple["_Place | None", str | int]
"""A place in JSON: the place around it, and the name or the index in that."""


class InvalidTextError(HTTPException):
    """A text in JSON is not valid Unicode.

    Attributes:
        field: the path of the text in the body.
    """

    def __init__(self, *field: str | int):
        message = "The text has a lone surrogate, which is not a character. Send valid Unicode."
        super().__init__(422, message)
        self.field = field


class StrictRequest(Incoming):
    """A request whose JSON objects must not repeat a name: parsers keep only the last value."""

    async def json(self) -> Any:
        """Parse the body.

        Raises:
            HTTPException: 400, an object repeats a name, or there are more than
                `Limits.json_separators` brackets and commas; 422, see `parse_json`.
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


def parse_json(text: str | bytes, *field: str) -> Any:
    """Parse JSON whose objects repeat no name.

    Args:
        text: the JSON.
        field: the field of the body that holds it; without one it is the whole body.

    Raises:
        HTTPException: 400, an object repeats a name.
        InvalidTextError: a text or a name is not valid Unicode.
        ValueError, RecursionError: the text is not valid JSON, or is nested too deeply.
    """
    parsed = json.loads(text, object_pairs_hook=_unique_names)
    check_unicode(parsed, *field)
    return parsed


def check_unicode(parsed: Any, *field: str | int) -> None:
    """Check that all texts of parsed JSON are valid Unicode.

    Args:
        parsed: of any depth.
        field: the field of the body that holds it.

    Raises:
        InvalidTextError: a text or a name has a lone surrogate.
    """
    waiting: list[tuple[Any, _Place | None]] = [(parsed, None)]
    while waiting:
        value, place = waiting.pop()
        match value:
            case str() if not value.isascii() and SURROGATE_PATTERN.search(value):
                raise InvalidTextError(*field, *_unroll(place))
            case dict():
                for name, inner in value.items():  # pyright: ignore[reportUnknownVariableType]
                    waiting += [(name, (place, name)), (inner, (place, name))]
            case list():
                waiting += [(inner, (place, index)) for index, inner in enumerate(value)]  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
            case _:
                pass


def _unroll(place: "_Place | None") -> list[str | int]:
    """Return the names and indices that lead to a place, without invalid Unicode."""
    steps: list[str | int] = []
    while place:
        place, step = place
        steps.append(step if isinstance(step, int) else step.encode(errors="replace").decode())
    return steps[::-1]


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
