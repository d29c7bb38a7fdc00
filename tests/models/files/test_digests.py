import hashlib
import json
from pathlib import Path

from overpaint.models.files.digests import compute_sha256


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_digest_of_one_file_and_of_several(tmp_path: Path):
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_bytes(b"1")
    second.write_bytes(b"2")
    memory = tmp_path / "memory.json"
    assert compute_sha256([first], memory) == sha(b"1")
    assert compute_sha256([first, second], memory) == sha((sha(b"1") + sha(b"2")).encode())
    assert not memory.exists()


def test_digest_of_large_file_is_cached_until_change(tmp_path: Path):
    path, memory = tmp_path / "a", tmp_path / "cache" / "memory.json"
    path.write_bytes(b"1")
    assert compute_sha256([path], memory, 1) == sha(b"1")
    known = json.loads(memory.read_text())
    memory.write_text(json.dumps(dict.fromkeys(known, "remembered")))
    assert compute_sha256([path], memory, 1) == "remembered"
    path.write_bytes(b"12")
    assert compute_sha256([path], memory, 1) == sha(b"12")


def test_unusable_digest_cache_is_ignored(tmp_path: Path):
    path, memory = tmp_path / "a", tmp_path / "memory.json"
    path.write_bytes(b"1")
    memory.write_text("[5")
    assert compute_sha256([path], memory, 1) == sha(b"1")
    assert compute_sha256([path], path / "memory.json", 1) == sha(b"1")
