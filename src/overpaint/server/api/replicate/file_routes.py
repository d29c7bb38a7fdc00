"""The routes of Replicate's files: upload, list, describe and delete."""

import asyncio
import re
from typing import Annotated, Any

from fastapi import APIRouter, Form, HTTPException, Query, UploadFile
from fastapi import Request as Incoming
from starlette.datastructures import FormData
from starlette.datastructures import UploadFile as FormFile

from overpaint.errors import RequestError
from overpaint.server.api.deps import ServiceDep, get_base_url
from overpaint.server.api.fields import NO_NUL, measure_upload_or_404
from overpaint.server.api.ignored_fields import report_ignored
from overpaint.server.api.replicate.protocol import file_view, make_page
from overpaint.server.api.route import make_route_class
from overpaint.server.http.auth import KeyDep
from overpaint.server.http.json_body import parse_json
from overpaint.server.http.problems import PROBLEM_RESPONSES, error_response
from overpaint.server.http.threads import run_in_write_thread
from overpaint.server.jobs.service import Service
from overpaint.server.store.files import HASH_PATTERN
from overpaint.server.store.uploads import NewUpload, Upload

FILE_FIELDS = ("content", "filename", "type", "metadata")

METADATA_FIELD = re.compile(r"metadata\[([^][]{1,100})\]")
"""A value of `metadata` as a separate form field, as Replicate's client 2.x sends it."""

MAX_METADATA_CHARS = 10_000

PAGE_SIZE = 100
"""Uploads in one page of the list."""

router = APIRouter(
    prefix="/v1",
    tags=["Replicate"],
    route_class=make_route_class(error_response),
    responses=PROBLEM_RESPONSES,
)


async def read_metadata(form: FormData) -> dict[str, Any]:
    """Return the metadata in a form: JSON in one field, or one field for each value.

    Raises:
        RequestError: the metadata is not a JSON object, or is too large.
    """
    details: dict[str, Any] = {}
    size = 0
    for name, value in form.multi_items():
        part = METADATA_FIELD.fullmatch(name)
        if name.partition("[")[0] != "metadata":
            continue
        if isinstance(value, FormFile):
            value = (await value.read(MAX_METADATA_CHARS + 1)).decode(errors="replace")
        size += len(value)
        if size > MAX_METADATA_CHARS:
            message = f"it has more than {MAX_METADATA_CHARS:,} characters; send less."
            raise RequestError("metadata", message)
        if part:
            details[part[1]] = value
        elif value.strip():
            details |= _parse_object(value)
        else:
            report_ignored(name)
    return details


def _parse_object(text: str) -> dict[str, Any]:
    try:
        found = parse_json(text, "metadata")
    except (ValueError, RecursionError):
        found = None
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise RequestError("metadata", "It is not a JSON object; send one, or leave it out.")
    return {str(name): value for name, value in found.items()}  # pyright: ignore


@router.post("/files", status_code=201)
async def create_file(
    content: UploadFile,
    incoming: Incoming,
    service: ServiceDep,
    key: KeyDep,
    filename: Annotated[str, Form(max_length=1000, pattern=NO_NUL)] = "",
    media_type: Annotated[str, Form(alias="type", max_length=200, pattern=NO_NUL)] = "",
) -> dict[str, Any]:
    """Upload an image."""
    form = await incoming.form()
    report_ignored(*(name for name in form if name.partition("[")[0] not in FILE_FIELDS))
    details = await read_metadata(form)
    name = filename or content.filename or ""
    kind = media_type or content.content_type or "application/octet-stream"
    if "\0" in name + kind:
        raise RequestError("content", "Its name or type has a NUL character; leave that out.")
    limit = service.settings.limits.upload_bytes
    data = await content.read(limit + 1)
    if len(data) > limit:
        raise HTTPException(413, f"The file is larger than {limit:,} bytes.")

    def record(file: str) -> Upload:
        return service.uploads.record(
            NewUpload(
                key=key,
                id=file,
                file=file,
                size=len(data),
                name=name or file,
                content_type=kind,
                details=details,
            )
        )

    return file_view(service, await service.put_upload(data, record), get_base_url(incoming))


@router.get("/files")
async def list_files(
    incoming: Incoming,
    service: ServiceDep,
    key: KeyDep,
    cursor: Annotated[str | None, Query(max_length=64)] = None,
) -> dict[str, Any]:
    """List the uploads of this API key, newest first, 100 per page."""

    def read() -> list[Upload]:
        last = service.uploads.get(key, cursor) if cursor else None
        if cursor and last is None:
            raise HTTPException(404, f"There is no file {cursor}.")
        return service.uploads.list_page(key, PAGE_SIZE, last)

    found = await asyncio.to_thread(read)
    base_url = get_base_url(incoming)
    is_full = len(found) == PAGE_SIZE
    return make_page(
        [file_view(service, upload, base_url) for upload in found],
        f"{base_url}/v1/files?cursor={found[-1].id}" if is_full else None,
    )


async def get_file_or_404(service: Service, key: str, name: str) -> Upload:
    """Look up an upload. Content without a record is a picture that came inside a request.

    Raises:
        HTTPException: 404, there is no such upload, or this API key deleted it.
    """
    upload = await asyncio.to_thread(service.uploads.get, key, name)
    if (upload and upload.deleted) or not HASH_PATTERN.fullmatch(name):
        raise HTTPException(404, f"There is no file {name}.")
    size = await measure_upload_or_404(service, name)
    created = await asyncio.to_thread(service.files.get_time, name)
    return upload or Upload(key=key, id=name, file=name, size=size, created=created)


@router.get("/files/{name}")
async def get_file(
    name: str, incoming: Incoming, service: ServiceDep, key: KeyDep
) -> dict[str, Any]:
    """Describe an upload."""
    upload = await get_file_or_404(service, key, name)
    return file_view(service, upload, get_base_url(incoming))


@router.delete("/files/{name}", status_code=204)
async def delete_file(name: str, service: ServiceDep, key: KeyDep) -> None:
    """Delete an upload of this API key. Jobs that use it still run.

    The server removes the content when uploads expire, because other keys may have sent it too.
    """
    if not await run_in_write_thread(service.uploads.delete, key, name):
        raise HTTPException(404, f"There is no file {name}.")
