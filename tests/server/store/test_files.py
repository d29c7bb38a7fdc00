"""Files of jobs: whole or not there, whatever fails."""

from __future__ import annotations

import errno
import hashlib
import os
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from overpaint.errors import PictureError, StoreError
from overpaint.imaging.codec import read_picture
from overpaint.request import Request
from overpaint.request.parts import Control, Lora
from overpaint.server.store.files import Files
from overpaint.system.atomic_files import write_file

HOUSE = Path(__file__).parents[3] / "examples" / "house.png"


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def list_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_put_file_is_found_by_its_hash_until_deleted(files: Files) -> None:
    name = files.put(b"abc")
    assert name == hashlib.sha256(b"abc").hexdigest() == files.put(b"abc")
    assert files.get(name) == b"abc"
    assert files.get_time(name) < float("inf")
    assert len(list_files(files.folder)) == 1
    files.delete(name)
    files.delete(name)
    assert files.get_time(name) == float("inf")
    with pytest.raises(PictureError, match="upload it again"):
        files.get(name)


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "A" * 64, "a" * 63, "a/" * 32, "é" * 64])
def test_file_name_that_is_no_hash_is_refused(files: Files, name: str) -> None:
    with pytest.raises(StoreError, match="hash"):
        files.get(name)


def test_changed_file_is_reported_as_damaged(files: Files) -> None:
    name = files.put(b"abc")
    (path,) = list_files(files.folder)
    path.write_bytes(b"abd")
    with pytest.raises(PictureError, match="damaged"):
        files.get(name)


def full_when_written(opens: Callable[..., Any]) -> Callable[..., Any]:
    """Opens files that nothing can be written to."""

    def opened(path: Path, mode: str) -> Any:
        file = opens(path, mode)
        wrapped = MagicMock(wraps=file)
        wrapped.__enter__.return_value = wrapped
        wrapped.__exit__.side_effect = lambda *_: file.close()  # pyright: ignore[reportUnknownLambdaType]
        wrapped.write.side_effect = OSError(errno.ENOSPC, "No space left on device")
        return wrapped

    return opened


@pytest.mark.parametrize("breaks", ["open", "write", "fsync", "replace"])
def test_failed_put_leaves_no_file(
    files: Files, monkeypatch: pytest.MonkeyPatch, breaks: str
) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        if breaks in ("fsync", "replace"):
            patch.setattr(os, breaks, full)
        elif breaks == "open":
            patch.setattr(Path, "open", full)
        else:
            patch.setattr(Path, "open", full_when_written(Path.open))
        with pytest.raises(OSError, match="No space"):
            files.put(b"abc")
    assert list_files(files.folder) == []
    assert files.get(files.put(b"abc")) == b"abc"


def test_failed_replacement_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_file(tmp_path / "a", b"old")

    def broken(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", broken)
        with pytest.raises(OSError, match="Input/output"):
            write_file(tmp_path / "a", b"new")
    assert list_files(tmp_path) == [tmp_path / "a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def test_partial_files_of_stopped_writes_are_deleted(files: Files) -> None:
    name = files.put(b"abc")
    files.get_results_folder("job").mkdir(parents=True)
    for folder in (files.folder / "files" / name[:2], files.get_results_folder("job")):
        (folder / "x.1234.partial").write_bytes(b"half")
    files.delete_partial_files(60)
    assert len(list_files(files.folder)) == 3  # another server may be writing them
    files.delete_partial_files()
    assert [path.name for path in list_files(files.folder)] == [name]
    files.delete_results("job")
    files.delete_results("job")
    assert not files.get_results_folder("job").exists()


def test_old_files_are_listed_and_deleted_unless_put_again(files: Files) -> None:
    name = files.put(b"abc")
    assert list(files.list_put_before(time.time() - 60)) == []
    (path,) = list_files(files.folder)
    os.utime(path, (1, 1))
    assert list(files.list_put_before(time.time() - 60)) == [name]
    files.delete(name, time.time() - 60)
    assert list_files(files.folder) == []
    files.put(b"abc")
    assert list(files.list_put_before(time.time() - 60)) == []
    files.delete(name, time.time() - 60)  # it was put again since it was found to be old
    assert files.get(name) == b"abc"
    assert list_files(files.folder) == [path]


def test_packed_request_unpacks_to_an_equal_one(files: Files) -> None:
    house = read_picture(HOUSE)
    request = Request(
        prompt="a cup",
        image=house,
        mask=read_picture(HOUSE),
        seed=2**62,
        controls=(Control(kind="canny", image=house, options={"low": 30.0}), Control(kind="depth")),
        loras=(Lora(name="x", blocks={"mid_block": 0.5}),),
        guidance_interval=(0.1, 0.9),
        extend=(8, 0, 0, 8),
    )
    stored, names = files.pack_request(request)
    assert set(names) == {house.sha256}
    assert len(list_files(files.folder)) == 1
    assert house.data not in repr(stored).encode()
    assert files.unpack_request(stored) == request
    files.delete(house.sha256)
    with pytest.raises(PictureError):
        files.unpack_request(stored)


def test_picture_used_many_times_is_stored_and_read_once(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = read_picture(HOUSE)
    controls = tuple(Control(kind="canny", hint=picture) for _ in range(16))
    put, names = MagicMock(wraps=files.put), set[str]()
    monkeypatch.setattr(files, "put", put)
    stored, named = files.pack_request(Request(image=picture, controls=controls))
    names |= set(named)
    assert (put.call_count, len(names)) == (1, 1)
    back = files.unpack_request(stored)
    assert back.image
    assert all(control.hint is back.image for control in back.controls)


def test_foreign_files_are_not_listed(tmp_path: Path) -> None:
    files = Files(tmp_path)
    name = files.put(b"a picture")
    strange = tmp_path / "files" / name[:2] / ".DS_Store"
    strange.write_bytes(b"")
    assert list(files.list_put_before(float("inf"))) == [name]


def test_search_for_old_files_needs_the_memory_of_one(files: Files) -> None:
    """A server searches a disk with millions of results again and again."""
    for number in range(3000):
        files.get_results_folder(f"{number:032x}").mkdir(parents=True)
    tracemalloc.start()
    try:
        assert sum(1 for _ in files.list_results_before(float("inf"))) == 3000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 50_000


@pytest.mark.parametrize("damaged", [b"", b"of another", b"of a picturf"])
def test_damaged_file_is_replaced_by_the_next_upload(files: Files, damaged: bytes) -> None:
    name = files.put(b"of a picture")
    (path,) = (files.folder / "files").glob("*/*")
    path.write_bytes(damaged)
    assert files.put(b"of a picture") == name
    assert files.get(name) == b"of a picture"
