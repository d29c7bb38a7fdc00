"""Files inside JSON responses, streamed as base64.

A response with eight pictures of 4096 x 4096 is half a gigabyte. So a dialect puts a placeholder
into its JSON, and the route class replaces each placeholder while it sends the response.
"""

import asyncio
import base64
import re
import secrets
from collections.abc import AsyncGenerator, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from fastapi import HTTPException, Response
from fastapi.responses import StreamingResponse

CHUNK_BYTES = 3 * 2**18
"""Bytes of a file that are encoded at once: a multiple of three, so that base64 has no padding."""

PLACEHOLDER = re.compile(rb"overpaint-inline-file-[0-9a-f]{32}-(\d+)")


@dataclass
class _Collected:
    """The files of one response, and the start of their placeholders, which nobody can guess."""

    paths: list[Path] = field(default_factory=list[Path])
    prefix: str = field(default_factory=lambda: f"overpaint-inline-file-{secrets.token_hex(16)}-")


_collected: ContextVar[_Collected | None] = ContextVar("inline_files", default=None)


@contextmanager
def collect_inline_files() -> Generator[_Collected]:
    """Make `encode_file` return placeholders within the `with` block."""
    collected = _Collected()
    token = _collected.set(collected)
    try:
        yield collected
    finally:
        _collected.reset(token)


def encode_file(path: Path) -> str:
    """Return a result file as base64, or within `collect_inline_files` a placeholder for it.

    Raises:
        HTTPException: 410, the file is deleted.
        OSError: the file cannot be read.
    """
    collected = _collected.get()
    if collected is None:
        return base64.b64encode(read_result_file(path)).decode()
    with _deleted_is_gone(path):
        path.stat()
    collected.paths.append(path)
    return f"{collected.prefix}{len(collected.paths) - 1}"


def read_result_file(path: Path) -> bytes:
    """Return the content of a result file.

    Raises:
        HTTPException: 410, the file is deleted.
        OSError: the file cannot be read.
    """
    with _deleted_is_gone(path):
        return path.read_bytes()


@contextmanager
def _deleted_is_gone(path: Path) -> Generator[None]:
    """Answer 410 for a missing file: an operator may delete results before their jobs expire."""
    try:
        yield
    except FileNotFoundError as error:
        raise HTTPException(410, f"Result {path.name} of the job is deleted.") from error


def stream_inline_files(response: Response, collected: _Collected) -> Response:
    """Return a response that streams the files in place of their placeholders."""
    body = bytes(getattr(response, "body", b""))
    parts = _split_at_files(body, collected)
    if len(parts) == 1:
        return response
    streamed = StreamingResponse(_stream(parts), response.status_code)
    streamed.raw_headers = [
        pair for pair in response.raw_headers if pair[0].lower() != b"content-length"
    ]
    streamed.headers["content-length"] = str(sum(map(_count_bytes, parts)))
    streamed.background = response.background
    return streamed


def stream_body(body: bytes, collected: _Collected) -> AsyncGenerator[bytes]:
    """Stream JSON, or an event with JSON, with the files in place of their placeholders."""
    return _stream(_split_at_files(body, collected))


def _split_at_files(body: bytes, collected: _Collected) -> list[bytes | Path]:
    prefix = collected.prefix.encode()
    parts: list[bytes | Path] = []
    end = 0
    for found in PLACEHOLDER.finditer(body) if collected.paths else ():
        if found[0].startswith(prefix):
            parts += [body[end : found.start()], collected.paths[int(found[1])]]
            end = found.end()
    return [*parts, body[end:]]


def _count_bytes(part: bytes | Path) -> int:
    return len(part) if isinstance(part, bytes) else -(-part.stat().st_size // 3) * 4


async def _stream(parts: list[bytes | Path]) -> AsyncGenerator[bytes]:
    for part in parts:
        if isinstance(part, bytes):
            yield part
            continue
        with await asyncio.to_thread(part.open, "rb") as file:
            while data := await asyncio.to_thread(file.read, CHUNK_BYTES):
                yield await asyncio.to_thread(base64.b64encode, data)
