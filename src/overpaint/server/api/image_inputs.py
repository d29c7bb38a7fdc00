"""How requests name pictures: by uploads, as data, or by URLs, which were fetched before."""

import re
from collections.abc import Generator, Mapping
from itertools import islice
from typing import Any

from overpaint.errors import LONGEST_NAME, RequestError, quote_value
from overpaint.imaging import images
from overpaint.picture import Picture
from overpaint.server.api.fields import from_base64, from_data_uri
from overpaint.server.http.body_limit import LARGEST_BODY
from overpaint.server.outbound.image_fetch import MOST, Sources

FILE = re.compile(r"(?:https?://[^/]{1,300})?/v1/files/([0-9a-f]{64})")
"""A link to an upload."""

URL = re.compile(r"https?://", re.IGNORECASE)
"""What a URL begins with that is fetched."""

DEEPEST = 8
"""Levels of lists and objects in each other; `controls[].image` has four."""

Place = tuple[str | int, ...]
"""Where something is in a request: names of fields, and numbers in lists."""


# As texts


def urls_of(texts: Mapping[str, str | None]) -> dict[str, str]:
    """Those of some fields that are URLs to be fetched."""
    return {
        name: text
        for name, text in texts.items()
        if text and URL.match(text) and not FILE.fullmatch(text)
    }


def picture(field: str, text: str, sources: Sources) -> Picture:
    """The picture that a text names.

    Args:
        field: whose it is.
        text: a data: URI, a link to an upload, or a URL that was fetched.
        sources: where uploads are, and what was fetched.

    Raises:
        RequestError: it is none of these.
        PictureError: there is no such upload, or it is no picture.
    """
    return images.received(_data(field, text, sources), field)


def _data(field: str, text: str, sources: Sources) -> bytes:
    if text in sources.fetched:
        return sources.fetched[text]
    if found := FILE.fullmatch(text):
        return sources.files.get(found[1])
    if not text.startswith("data:"):
        raise RequestError(
            field, f"{quote_value(text)} is neither a data: URI, an upload to /v1/files, nor a URL."
        )
    return from_data_uri(field, text)


# As objects


def urls_in(fields: Any) -> dict[str, str]:
    """The URLs to be fetched that a request names, by where they are in it."""
    found = islice(_urls(fields, ()), MOST + 1)  # more are refused
    return {_field(*place): url for place, url in found}


def _urls(value: Any, path: Place) -> Generator[tuple[Place, str]]:
    if len(path) > DEEPEST:
        return  # which is refused when it is read
    match value:
        case {"url": str(url)} if len(value) == 1:
            yield path, url
        case Mapping():
            for name, inner in value.items():
                yield from _urls(inner, (*path, name))
        case list():
            for place, inner in enumerate(value):
                yield from _urls(inner, (*path, place))
        case _:
            pass


def pictures_from(fields: Any, sources: Sources, *path: str | int) -> Any:
    """The fields of a request with their pictures in them.

    Args:
        fields: a part of what came.
        sources: where uploads are, and what was fetched.
        path: where in the request that part is.

    Raises:
        RequestError: data is not base64, something is in too many others, or uploads are more than
            `LARGEST_BODY` together.
        PictureError: there is no such file, or it is no picture that is read here.
    """
    uploads: dict[str, bytes] = {}  # each once, however often it is named

    def upload(name: str, path: Place) -> bytes:
        if name not in uploads:
            uploads[name] = sources.files.get(name)
            if sum(map(len, uploads.values())) > LARGEST_BODY:
                message = f"uploads have {LARGEST_BODY:,} bytes together at most."
                raise RequestError(_field(*path), message)
        return uploads[name]

    def at(value: Any, path: Place) -> Any:
        if len(path) > DEEPEST:
            raise RequestError("request", "is nested deeper than any field of it.")
        match value:
            case {"file": str(name)} if len(value) == 1:
                return _received(upload(name, path), path)
            case {"data": str(text)} if len(value) == 1:
                return _received(from_base64(_field(*path, "data"), text), path)
            case {"url": str(url)} if len(value) == 1 and url in sources.fetched:
                return _received(sources.fetched[url], path)
            case Mapping():
                return {name: at(inner, (*path, name)) for name, inner in value.items()}
            case list():
                return [at(inner, (*path, place)) for place, inner in enumerate(value)]
            case _:
                return value

    return at(fields, path)


def _received(data: bytes, path: Place) -> dict[str, bytes]:
    """A picture; in the place of one that shows a pose, its keypoints, which are JSON."""
    if path[:1] != ("controls",) or data.lstrip()[:1] not in (b"{", b"["):
        images.received(data, _field(*path))
    return {"data": data}


def _field(*path: str | int) -> str:
    """Where something is, for messages: names may be of any length, and no Unicode."""
    name = ".".join(str(part)[:LONGEST_NAME] for part in path)
    return name.encode(errors="replace").decode()
