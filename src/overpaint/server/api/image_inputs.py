"""Pictures in requests: uploads, base64, data: URIs, and URLs that the server has fetched."""

import re
from collections.abc import Generator, Mapping
from typing import Any

from overpaint.errors import MAX_NAME_CHARS, RequestError, quote_value
from overpaint.imaging import codec
from overpaint.picture import Picture
from overpaint.server.api.fields import decode_base64, decode_data_uri
from overpaint.server.http.request_budget import count_bytes
from overpaint.server.outbound.image_fetch import ImageSources
from overpaint.server.store.files import Files

UPLOAD_URL = re.compile(r"(?:https?://[^/]{1,300})?/v1/files/([0-9a-f]{64})")
"""The URL of an upload."""

REMOTE_URL = re.compile(r"https?://", re.IGNORECASE)
"""The beginning of a URL that the server fetches."""

MAX_NESTING = 8
"""Largest depth of nested lists and objects; `controls[].image` has a depth of four."""

FieldPath = tuple[str | int, ...]
"""The place of a value in a request: names of fields and indices of lists."""


def load_upload(files: Files, name: str) -> bytes:
    """Read an upload that the current request names, and count its bytes for the request.

    Raises:
        PictureError: there is no such upload, or the server's disk lost it.
        HTTPException: 503, the memory for requests is used up.
    """
    count_bytes(files.get_size(name))
    return files.get(name)


# Pictures that are one string


def find_remote_urls(texts: Mapping[str, str | None]) -> dict[str, str]:
    """Return the fields that contain a URL that the server must fetch."""
    return {
        name: text
        for name, text in texts.items()
        if text and REMOTE_URL.match(text) and not UPLOAD_URL.fullmatch(text)
    }


def load_image(field: str, text: str, sources: ImageSources) -> Picture:
    """Load the picture that a string names.

    Args:
        field: the field that contains the string.
        text: a data: URI, the URL of an upload, or a fetched URL.
        sources: uploads and fetched pictures.

    Raises:
        RequestError: the string is of another kind.
        PictureError: there is no such upload, or its content is not a picture.
    """
    return codec.receive_picture(_read_source(field, text, sources), field)


def _read_source(field: str, text: str, sources: ImageSources) -> bytes:
    if text in sources.fetched:
        return sources.fetched[text]
    if found := UPLOAD_URL.fullmatch(text):
        return load_upload(sources.files, found[1])
    if not text.startswith("data:"):
        raise RequestError(
            field,
            f"{quote_value(text)} is neither a data: URI, nor an upload to /v1/files, nor a URL.",
        )
    return decode_data_uri(field, text)


# Pictures that are objects


def find_nested_urls(fields: Any) -> dict[str, str]:
    """Find the URLs in a request that the server must fetch, by the fields that contain them."""
    return {_field_name(*place): url for place, url in _walk_urls(fields, ())}


def _walk_urls(value: Any, path: FieldPath) -> Generator[tuple[FieldPath, str]]:
    if len(path) > MAX_NESTING:
        return  # `load_nested_images` refuses the request.
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
    """Return fields of a request with references to pictures replaced by their content.

    Args:
        fields: a part of the request's JSON.
        sources: uploads and fetched pictures.
        path: the place of that part in the request.

    Raises:
        RequestError: data is not base64, the request is nested too deeply, or its uploads exceed
            `ImageSources.max_bytes` together.
        PictureError: there is no such upload, or a file is not a supported picture.
    """
    uploads: dict[str, bytes] = {}  # Each upload counts once, even if several fields name it.
    checked = set[bytes]()  # A picture is checked once, even if several fields hold it.

    def upload(name: str, path: FieldPath) -> bytes:
        if name not in uploads:
            uploads[name] = load_upload(sources.files, name)
            if sum(map(len, uploads.values())) > sources.max_bytes:
                message = f"The uploads have more than {sources.max_bytes:,} bytes together."
                raise RequestError(_field_name(*path), message)
        return uploads[name]

    def check(data: bytes, path: FieldPath) -> dict[str, bytes]:
        if data not in checked and not _is_keypoints(data, path):
            codec.receive_picture(data, _field_name(*path))
            checked.add(data)
        return {"data": data}

    def at(value: Any, path: FieldPath) -> Any:
        if len(path) > MAX_NESTING:
            raise RequestError("request", "The request is nested too deeply.")
        match value:
            case {"file": str(name)} if len(value) == 1:
                return check(upload(name, path), path)
            case {"data": str(text)} if len(value) == 1:
                return check(decode_base64(_field_name(*path, "data"), text), path)
            case {"url": str(url)} if len(value) == 1 and url in sources.fetched:
                return check(sources.fetched[url], path)
            case Mapping():
                return {name: at(inner, (*path, name)) for name, inner in value.items()}
            case list():
                return [at(inner, (*path, place)) for place, inner in enumerate(value)]
            case _:
                return value

    return at(fields, path)


def _is_keypoints(data: bytes, path: FieldPath) -> bool:
    """Return whether the data is JSON in a control, where it can be the keypoints of a pose."""
    return path[:1] == ("controls",) and data.lstrip()[:1] in (b"{", b"[")


def _field_name(*path: str | int) -> str:
    """Format a path for messages. Clients choose the names: long ones, or invalid Unicode."""
    name = ".".join(str(part)[:MAX_NAME_CHARS] for part in path)
    return name.encode(errors="replace").decode()
