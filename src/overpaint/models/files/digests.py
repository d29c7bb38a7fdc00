"""The sha256 of weight files, remembered, since gigabytes take many seconds."""

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

MIN_REMEMBERED_BYTES = 256 * 1024**2
"""Files smaller than this many bytes are hashed anew each time."""


def compute_sha256(paths: Sequence[Path], memory: Path | None = None) -> str:
    """The digest of one file, or of several: then of their hex digests joined in that order.

    Args:
        paths: at least one.
        memory: a JSON file of digests of large files, by path, size and time of change; by
            default `~/.cache/overpaint/sha256.json`. That it cannot be written is no error.
    """
    digests = [_digest(path.resolve(), memory) for path in paths]
    return (
        digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    )


def compute_tensors_sha256(path: Path, metadata: Mapping[str, str]) -> str:
    """The digest of a safetensors file without its header, by which A1111 and Civitai know LoRAs.

    kohya's scripts leave it in the metadata, as `sshs_model_hash`.
    """
    if known := metadata.get("sshs_model_hash"):
        return known
    with path.open("rb") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        digest = hashlib.sha256()
        while block := file.read(2**20):
            digest.update(block)
        return digest.hexdigest()


def _digest(path: Path, memory: Path | None) -> str:
    status = path.stat()
    if status.st_size < MIN_REMEMBERED_BYTES:
        return _compute(path)
    try:
        memory = memory or Path.home() / ".cache" / "overpaint" / "sha256.json"
    except RuntimeError:  # this user has no home
        return _compute(path)
    key = f"{path}|{status.st_size}|{status.st_mtime_ns}"
    known = _recall(memory)
    if key not in known:
        known[key] = _compute(path)
        _remember(memory, known)
    return known[key]


def _compute(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
