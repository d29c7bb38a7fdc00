"""SHA-256 digests of weight files.

Digests of large files are cached on disk, because hashing gigabytes takes many seconds.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from overpaint.system.folders import find_cache_folder
from overpaint.system.progress import add_bytes, expect_bytes

HASH_BLOCK_BYTES = 2**20

MIN_REMEMBERED_BYTES = 256 * 1024**2
"""Smallest file, in bytes, whose digest is cached by default; others are hashed at each call."""


def compute_sha256(
    paths: Sequence[Path],
    memory: Path | None = None,
    min_remembered_bytes: int = MIN_REMEMBERED_BYTES,
) -> str:
    """Compute the SHA-256 of one file, or a combined digest of several files.

    The combined digest is the SHA-256 of the files' hex digests, joined in the given order.

    Args:
        paths: one file or more.
        memory: the JSON cache of digests, keyed by path, size and modification time. The default
            is `sha256.json` in `find_cache_folder()`. The function ignores an unwritable cache.
        min_remembered_bytes: the smallest file whose digest is cached.
    """
    digests = [_digest(path.resolve(), memory, min_remembered_bytes) for path in paths]
    return (
        digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    )


def compute_tensors_sha256(path: Path, metadata: Mapping[str, str]) -> str:
    """Compute the SHA-256 of a safetensors file without its header.

    A1111 and Civitai identify LoRAs by this digest. kohya's scripts store it in the metadata as
    `sshs_model_hash`; the function returns that value if present.
    """
    if known := metadata.get("sshs_model_hash"):
        return known
    with path.open("rb") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        digest = hashlib.sha256()
        while block := file.read(2**20):
            digest.update(block)
        return digest.hexdigest()


def _digest(path: Path, memory: Path | None, min_remembered_bytes: int) -> str:
    status = path.stat()
    if status.st_size < min_remembered_bytes:
        return _compute(path)
    try:
        memory = memory or find_cache_folder() / "sha256.json"
    except RuntimeError:  # the user has no home folder
        return _compute(path)
    key = f"{path}|{status.st_size}|{status.st_mtime_ns}"
    known = _recall(memory)
    if key not in known:
        known[key] = _compute(path)
        _remember(memory, known)
    return known[key]


def _compute(path: Path) -> str:
    expect_bytes(path.stat().st_size)
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(HASH_BLOCK_BYTES):
            digest.update(block)
            add_bytes(len(block))
    return digest.hexdigest()


def _recall(memory: Path) -> dict[str, str]:
    try:
        return dict(json.loads(memory.read_text()))
    except (OSError, TypeError, ValueError):
        return {}


def _remember(memory: Path, known: dict[str, str]) -> None:
    with contextlib.suppress(OSError):
        memory.parent.mkdir(parents=True, exist_ok=True)
        fresh = memory.with_suffix(f".{os.getpid()}")
        fresh.write_text(json.dumps(known, indent=1))
        fresh.replace(memory)
