"""Uploads of fal's clients: they receive the link of a file before they send its content.

| Route | Effect |
|---|---|
| `POST /fal/rest/storage/upload/initiate` | return the link of a file, and a link for its content |
| `PUT /fal/rest/storage/upload/ID` | receive the content; a signature replaces the key |
| `POST /fal/rest/storage/auth/token` | return a token for the next route: the client's own key |
| `POST /fal/rest/files/upload` | receive a file in one request |
| `GET /fal/files/ID/NAME` | download a file |
| `/fal/proxy` | redirect a request that the header `x-fal-target-url` sends to fal |
"""

import asyncio
import re
import secrets
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated
from urllib.parse import quote, urlsplit

from fastapi import APIRouter, Header, HTTPException, Query
from fastapi import Request as Incoming
from fastapi.responses import FileResponse, RedirectResponse
from pydantic import ConfigDict, Field

from overpaint.errors import RequestError
from overpaint.server.api.deps import ServiceDep, count_request, get_base_url
from overpaint.server.api.fal.protocol import ERROR_SCHEMA, error_response
from overpaint.server.api.fields import NO_NUL, measure_upload_or_404, read_upload
from overpaint.server.api.ignored_fields import (
    TolerantModel,
    report_ignored,
    report_ignored_fields,
)
from overpaint.server.api.image_inputs import load_upload
from overpaint.server.api.results import MEDIA_TYPES
from overpaint.server.api.route import make_route_class
from overpaint.server.http.auth import KeyDep
from overpaint.server.http.problems import error_responses
from overpaint.server.http.threads import (
    current_key,
    run_in_picture_thread,
    run_in_write_thread,
)
from overpaint.server.jobs.service import Service
from overpaint.server.store.files import hash_content
from overpaint.server.store.uploads import NewUpload
from overpaint.server.telemetry.logs import KEY_LABEL_CHARS

FILE_URL = re.compile(r"https?://[^/]{1,300}/fal/files/([0-9a-f]{32})(?:/[^?#]*)?")
"""The link of a file."""

LINK_SCOPE = "fal-upload"
"""Stands for a job in the signature of a link for content; no job has this id."""

TOKEN_LIFETIME_S = 3600

PATH_BY_HOST = {
    "fal.run": "/fal/run",
    "queue.fal.run": "/fal/queue",
    "rest.fal.ai": "/fal/rest",
    "rest.alpha.fal.ai": "/fal/rest",
}
"""Path of this server for each host of fal's API."""

OCTET_STREAM = "application/octet-stream"

router = APIRouter(
    prefix="/fal",
    tags=["fal"],
    route_class=make_route_class(error_response),
    responses=error_responses(ERROR_SCHEMA),
)


class NewFile(TolerantModel):
    """A file that the client is about to send."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    file_name: str = Field(default="", max_length=1000, pattern=NO_NUL)
    """Name of the file."""
    content_type: str = Field(default=OCTET_STREAM, max_length=200, pattern=NO_NUL)
    """Media type of the file."""


def load_stored_files(service: Service, key: str, urls: Mapping[str, str]) -> dict[str, bytes]:
    """Read the files of an API key that a request names by their links, and count their bytes.

    Args:
        service: the running server.
        key: digest of the API key.
        urls: links by the fields that contain them; other links are skipped.

    Returns:
        The content by link.

    Raises:
        RequestError: there is no such file, or all files together are too large.
        PictureError: the server's disk lost a file.
        HTTPException: 503, the memory for requests is used up.
    """
    contents: dict[str, bytes] = {}
    limit = service.settings.limits.body_bytes
    for field, url in urls.items():
        if url in contents or not (found := FILE_URL.fullmatch(url)):
            continue
        upload = service.uploads.get(key, found[1])
        if upload is None or upload.file is None or upload.deleted:
            raise RequestError(field, "There is no such file; upload it again.")
        contents[url] = load_upload(service.files, upload.file)
        if sum(map(len, contents.values())) > limit:
            raise RequestError(field, f"The files have more than {limit:,} bytes together.")
    return contents


def record_file(
    service: Service, key: str, given: NewFile, file: str | None = None, size: int = 0
) -> str:
    """Record a file; returns its id. Without the name of its content, that follows later."""
    name = secrets.token_hex(16)
    service.uploads.record(
        NewUpload(
            key=key,
            id=name,
            file=file,
            size=size,
            name=given.file_name,
            content_type=given.content_type,
        )
    )
    return name


def file_link(base_url: str, name: str, given: NewFile) -> str:
    """Return the link of a file; it ends with the name of the file, as fal's links do."""
    file_name = re.split(r"[/\\]", given.file_name)[-1]
    return f"{base_url}/fal/files/{name}/{quote(file_name, errors='replace') or 'file'}"


@router.post("/rest/storage/upload/initiate")
async def initiate_upload(
    given: NewFile,
    incoming: Incoming,
    service: ServiceDep,
    key: KeyDep,
    x_fal_object_lifecycle: Annotated[str | None, Header()] = None,
) -> dict[str, str]:
    """Return the link of a file, and the link that receives its content."""
    report_ignored_fields(given)
    if x_fal_object_lifecycle is not None:
        report_ignored("X-Fal-Object-Lifecycle")
    name = await run_in_write_thread(record_file, service, key, given)
    base_url = get_base_url(incoming)
    query = service.links.sign_query(LINK_SCOPE, name)
    return {
        "file_url": file_link(base_url, name, given),
        "upload_url": f"{base_url}/fal/rest/storage/upload/{name}?{query}",
    }


@router.post("/rest/storage/upload/initiate-multipart")
async def initiate_multipart_upload(service: ServiceDep, key: KeyDep) -> None:
    """Refuse an upload in parts; clients send only large files that way.

    Raises:
        HTTPException: 413.
    """
    limit = service.settings.limits.upload_bytes
    raise HTTPException(413, f"Files must not be larger than {limit:,} bytes.")


@router.put("/rest/storage/upload/{name}")
async def receive_content(
    name: str,
    incoming: Incoming,
    service: ServiceDep,
    expires: Annotated[int, Query()] = 0,
    signature: Annotated[str, Query()] = "",
) -> dict[str, str]:
    """Receive the content of a file. The link is signed, because clients send no key here.

    The request counts for the API key that owns the file.

    Raises:
        HTTPException: 403, the link is not valid; 404, there is no such file, or it has other
            content already; 413, the content is too large.
    """
    if not service.links.verify(LINK_SCOPE, name, expires, signature):
        raise HTTPException(403, "The signed link is not valid or has expired. Upload again.")
    missing = HTTPException(404, "There is no such file, or it has other content already.")
    upload = await asyncio.to_thread(service.uploads.find, name)
    if upload is None:
        raise missing
    current_key.set(upload.key[:KEY_LABEL_CHARS])
    with count_request(incoming) as receive:
        data = await read_upload(Incoming(incoming.scope, receive))
        if upload.file not in (None, await run_in_picture_thread(hash_content, data)):
            raise missing
        if not await service.put_upload(
            data, lambda file: service.uploads.complete(name, file, len(data))
        ):
            raise missing
    return {"status": "uploaded"}


@router.post("/rest/storage/auth/token")
async def create_upload_token(incoming: Incoming, key: KeyDep) -> dict[str, str]:
    """Return a token for `/fal/rest/files/upload`: the key with which the client came."""
    kind, _, token = incoming.headers.get("authorization", "").partition(" ")
    expires_at = datetime.fromtimestamp(time.time() + TOKEN_LIFETIME_S, UTC)
    return {
        "token": token or "none",
        "token_type": kind or "Key",
        "base_url": f"{get_base_url(incoming)}/fal/rest",
        "expires_at": expires_at.isoformat(),
    }


@router.post("/rest/files/upload")
async def upload_file(
    incoming: Incoming,
    service: ServiceDep,
    key: KeyDep,
    x_fal_file_name: Annotated[str, Header(max_length=1000)] = "",
    content_type: Annotated[str, Header(max_length=200)] = OCTET_STREAM,
) -> dict[str, str]:
    """Upload a file in one request."""
    data = await read_upload(incoming)
    given = NewFile(file_name=x_fal_file_name, content_type=content_type)
    name = await service.put_upload(
        data, lambda file: record_file(service, key, given, file, len(data))
    )
    return {"access_url": file_link(get_base_url(incoming), name, given)}


@router.get("/files/{name}", response_class=FileResponse)
@router.get("/files/{name}/{file_name}", response_class=FileResponse)
async def download_file(name: str, service: ServiceDep, key: KeyDep) -> FileResponse:
    """Download a file of this API key."""
    upload = await asyncio.to_thread(service.uploads.get, key, name)
    if upload is None or upload.file is None or upload.deleted:
        raise HTTPException(404, f"There is no file {name}.")
    await measure_upload_or_404(service, upload.file)
    known = upload.content_type in MEDIA_TYPES.values()
    return FileResponse(
        service.files.get_path(upload.file),
        media_type=upload.content_type if known else OCTET_STREAM,
    )


@router.api_route("/proxy", methods=["GET", "POST", "PUT"], include_in_schema=False)
async def redirect_to_route(
    incoming: Incoming,
    key: KeyDep,
    x_fal_target_url: Annotated[str, Header(max_length=4096)] = "",
) -> RedirectResponse:
    """Redirect a request for fal to this server, for clients with a `proxyUrl`.

    Raises:
        HTTPException: 404, the target is not a host of fal's API.
    """
    target = urlsplit(x_fal_target_url)
    path = PATH_BY_HOST.get(target.hostname or "")
    if path is None or "\\" in target.path or ".." in target.path:
        raise HTTPException(404, "The target URL belongs to no API of fal that this server has.")
    query = f"?{target.query}" if target.query else ""
    location = f"{get_base_url(incoming)}{path}/{quote(target.path.lstrip('/'))}{query}"
    return RedirectResponse(location, 307)
