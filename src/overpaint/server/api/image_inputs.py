"""How requests name pictures: by uploads, as data, or by URLs, which were fetched before."""

import re
from collections.abc import Generator, Mapping
from itertools import islice
from typing import Any

from overpaint.errors import MAX_NAME_CHARS, RequestError, quote_value
from overpaint.imaging import codec
from overpaint.picture import Picture
from overpaint.server.api.fields import decode_base64, decode_data_uri
from overpaint.server.http.body_limit import MAX_BODY_BYTES
from overpaint.server.outbound.image_fetch import MAX_URLS, ImageSources

UPLOAD_URL = re.compile(r"(?:https?://[^/]{1,300})?/v1/files/([0-9a-f]{64})")
"""A link to an upload."""

REMOTE_URL = re.compile(r"https?://", re.IGNORECASE)
"""What a URL begins with that is fetched."""

MAX_NESTING = 8
"""Levels of lists and objects in each other; `controls[].image` has four."""

FieldPath = tuple[str | int, ...]
"""Where something is in a request: names of fields, and numbers in lists."""


# As texts


def find_remote_urls(texts: Mapping[str, str | None]) -> dict[str, str]:
    """Those of some fields that are URLs to be fetched."""
    return {
        name: text
        for name, text in texts.items()
        if text and REMOTE_URL.match(text) and not UPLOAD_URL.fullmatch(text)
    }


def load_image(field: str, text: str, sources: ImageSources) -> Picture:
    """The picture that a text names.

    Args:
        field: whose it is.
        text: a data: URI, a link to an upload, or a URL that was fetched.
        sources: where uploads are, and what was fetched.

    Raises:
        RequestError: it is none of these.
        PictureError: there is no such upload, or it is no picture.
    """
    return codec.receive_picture(_read_source(field, text, sources), field)


def _read_source(field: str, text: str, sources: ImageSources) -> bytes:
    if text in sources.fetched:
        return sources.fetched[text]
    if found := UPLOAD_URL.fullmatch(text):
        return sources.files.get(found[1])
    if not text.startswith("data:"):
        raise RequestError(
            field, f"{quote_value(text)} is neither a data: URI, an upload to /v1/files, nor a URL."
        )
    return decode_data_uri(field, text)


# As objects


def find_nested_urls(fields: Any) -> dict[str, str]:
    """The URLs to be fetched that a request names, by where they are in it."""
    found = islice(_walk_urls(fields, ()), MAX_URLS + 1)  # more are refused
    return {_field_name(*place): url for place, url in found}


def _walk_urls(value: Any, path: FieldPath) -> Generator[tuple[FieldPath, str]]:
    if len(path) > MAX_NESTING:
        return  # which is refused when it is read
    match value:
        case {"url": str(url)} if len(value) == 1:
            yield path, url
        case Mapping():
            for name, inner in value.items():
                yield from _walk_urls(inner, (*path, name))
        case list():
            for place, inner in enumerate(value):
                yield from _walk_urls(inner, (*path, place))
        case _:
            pass


def load_nested_images(fields: Any, sources: ImageSources, *path: str | int) -> Any:
    """The fields of a request with their pictures in them.

    Args:
        fields: a part of what came.
        sources: where uploads are, and what was fetched.
        path: where in the request that part is.

    Raises:
        RequestError: data is not base64, something is in too many others, or uploads are more than
            `MAX_BODY_BYTES` together.
        PictureError: there is no such file, or it is no picture that is read here.
    """
    uploads: dict[str, bytes] = {}  # each once, however often it is named

    def upload(name: str, path: FieldPath) -> bytes:
        if name not in uploads:
            uploads[name] = sources.files.get(name)
            if sum(map(len, uploads.values())) > MAX_BODY_BYTES:
                message = f"uploads have {MAX_BODY_BYTES:,} bytes together at most."
                raise RequestError(_field_name(*path), message)
        return uploads[name]

    def at(value: Any, path: FieldPath) -> Any:
        if len(path) > MAX_NESTING:
            raise RequestError("request", "is nested deeper than any field of it.")
        match value:
            case {"file": str(name)} if len(value) == 1:
                return _checked_image(upload(name, path), path)
            case {"data": str(text)} if len(value) == 1:
                return _checked_image(decode_base64(_field_name(*path, "data"), text), path)
            case {"url": str(url)} if len(value) == 1 and url in sources.fetched:
                return _checked_image(sources.fetched[url], path)
            case Mapping():
                return {name: at(inner, (*path, name)) for name, inner in value.items()}
            case list():
                return [at(inner, (*path, place)) for place, inner in enumerate(value)]
            case _:
                return value

    return at(fields, path)


def _checked_image(data: bytes, path: FieldPath) -> dict[str, bytes]:
    """A picture; in the place of one that shows a pose, its keypoints, which are JSON."""
    if path[:1] != ("controls",) or data.lstrip()[:1] not in (b"{", b"["):
        codec.receive_picture(data, _field_name(*path))
    return {"data": data}


def _field_name(*path: str | int) -> str:
    """Where something is, for messages: names may be of any length, and no Unicode."""
    name = ".".join(str(part)[:MAX_NAME_CHARS] for part in path)
    return name.encode(errors="replace").decode()
