"""A server that cannot start says why in one sentence, and ends with the code of the error."""

from __future__ import annotations

import shutil
import signal
import socket
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from overpaint.cli.main import main
from overpaint.engine.worker import JobRunner
from overpaint.errors import (
    DeviceError,
    ModelNotFoundError,
    OverpaintError,
    RequestError,
    StoreError,
)
from overpaint.server.app import Server, create_app, uvicorn_config
from overpaint.server.http.listening import bind_sockets
from overpaint.server.jobs.store_access import lock_folder
from overpaint.server.store.database import Database
from overpaint.testing import ScriptedEngine
from tests.server.live import settings_for

MINIATURE = Path(sys.modules["overpaint"].__path__[0]) / "data" / "miniature"


def fail() -> JobRunner:
    raise DeviceError("there is no device 'cuda:7' here")


@pytest.fixture
def serve(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Run `overpaint serve`, which must fail before it listens; return its code and sentence."""

    def listening(*_: Any, **__: Any) -> None:
        raise AssertionError("the server started")

    monkeypatch.setattr("overpaint.server.app.run", listening)

    def run(*options: str) -> tuple[int, str]:
        given = options if "--port" in options else (*options, "--port", "0")
        with pytest.raises(SystemExit) as ended:
            main(["serve", *given])
        (line,) = capfd.readouterr().err.splitlines()
        return int(ended.value.code or 0), line

    return run


Serve = Callable[..., tuple[int, str]]


@pytest.mark.parametrize("second", ["nosuch", "./nosuch", "nosuch.safetensors", "a/b/c"])
def test_serve_with_an_unknown_model_ends_before_it_has_a_store(
    tmp_path: Path, serve: Serve, second: str
) -> None:
    code, line = serve("--model", "miniature", "--model", second, "--data", str(tmp_path / "d"))
    assert code == ModelNotFoundError.exit_code
    assert second in line
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("part", ["unet/config.json", "model_index.json", "vae/config.json"])
def test_serve_with_a_damaged_model_names_the_file(tmp_path: Path, serve: Serve, part: str) -> None:
    shutil.copytree(MINIATURE, tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors"))
    (tmp_path / "m" / part).write_text("{")
    code, line = serve("--model", str(tmp_path / "m"), "--data", str(tmp_path / "d"))
    assert code == ModelNotFoundError.exit_code
    assert part in line


def make_file(folder: Path) -> list[str]:
    (folder / "file").write_bytes(b"")
    return ["--data", str(folder / "file")]


def make_damaged_store(folder: Path) -> list[str]:
    (folder / "jobs.db").write_bytes(b"SQLite format 3" + bytes(range(256)) * 40)
    return ["--data", str(folder)]


def make_foreign_store(folder: Path) -> list[str]:
    with closing(sqlite3.connect(folder / "jobs.db")) as store:
        store.execute("CREATE TABLE invoices (number INTEGER)")
    return ["--data", str(folder)]


def make_store_with_a_text_as_version(folder: Path) -> list[str]:
    with closing(sqlite3.connect(folder / "jobs.db")) as store, store:
        store.execute("CREATE TABLE about (version TEXT)")
        store.execute("INSERT INTO about VALUES ('2.0 beta')")
    return ["--data", str(folder)]


def make_incomplete_store(folder: Path) -> list[str]:
    Database(f"sqlite:///{folder / 'jobs.db'}").close()
    with closing(sqlite3.connect(folder / "jobs.db")) as store:
        store.execute("DROP TABLE uploads")
    return ["--data", str(folder)]


def make_foreign_lock(folder: Path) -> list[str]:
    (folder / "server.lock").write_bytes(b"of another program" * 100)
    return ["--data", str(folder)]


@pytest.mark.parametrize(
    ("make", "cause"),
    [
        (make_file, "cannot be used: File exists"),
        (make_damaged_store, "cannot be opened"),
        (make_foreign_store, "belongs to another program: it has a table 'invoices'"),
        (make_store_with_a_text_as_version, "belongs to another program"),
        (make_incomplete_store, "is damaged: it has no table 'uploads'"),
        (make_foreign_lock, "cannot be locked"),
    ],
)
def test_serve_with_an_unusable_folder_names_the_cause(
    tmp_path: Path, serve: Serve, make: Callable[[Path], list[str]], cause: str
) -> None:
    code, line = serve(*make(tmp_path))
    assert code == StoreError.exit_code
    assert cause in line
    assert str(tmp_path) in line


def test_serve_in_the_folder_of_another_server_names_it(tmp_path: Path, serve: Serve) -> None:
    with closing(lock_folder(tmp_path)):
        code, line = serve("--data", str(tmp_path))
    assert code == StoreError.exit_code
    assert f"Another server has the folder {tmp_path}" in line


@pytest.mark.parametrize(
    ("url", "cause"),
    [
        ("postgresql+psycopg://me:secret@127.0.0.1:1/jobs", "cannot be opened"),
        ("postgres://me:secret@127.0.0.1:1/jobs", "cannot be opened"),
        ("mysql://me:secret@127.0.0.1/jobs", "is not the URL of a job store"),
        ("nonsense", "'nonsense' is not the URL of a job store"),
    ],
)
def test_serve_with_an_unusable_store_names_the_cause(
    tmp_path: Path, serve: Serve, url: str, cause: str
) -> None:
    code, line = serve("--data", str(tmp_path), "--store", url)
    assert code == StoreError.exit_code
    assert cause in line
    assert "secret" not in line


def test_serve_without_the_driver_of_postgres_names_the_extra(
    tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    code, line = serve("--data", str(tmp_path), "--store", "postgresql+psycopg://127.0.0.1:1/x")
    assert code == StoreError.exit_code
    assert "pip install 'overpaint[postgres]'" in line


def test_serve_on_a_port_in_use_names_it(tmp_path: Path, serve: Serve) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        code, line = serve("--data", str(tmp_path), "--port", port)
    assert code == RequestError.exit_code
    assert line.startswith(f"overpaint: --port: The server cannot listen on port {port}")


def test_serve_on_a_host_without_an_address_names_it(tmp_path: Path, serve: Serve) -> None:
    code, line = serve("--data", str(tmp_path), "--host", "192.0.2.1", "--key", "k")
    assert code == RequestError.exit_code
    assert line.startswith("overpaint: --host: The server cannot listen on 192.0.2.1")


def test_serve_with_a_file_as_folder_of_models_names_it(tmp_path: Path, serve: Serve) -> None:
    (tmp_path / "models.txt").write_text("")
    code, line = serve("--models-dir", str(tmp_path / "models.txt"), "--data", str(tmp_path))
    assert code == ModelNotFoundError.exit_code
    assert "models.txt cannot be read: Not a directory" in line


def test_sockets_of_a_free_port_share_it() -> None:
    sockets = bind_sockets("localhost", 0)
    assert len({each.getsockname()[1] for each in sockets}) == 1
    for each in sockets:
        each.close()


def run_server(folder: Path, engine_factory: Callable[[], JobRunner]) -> Server:
    settings = settings_for(folder)
    server = Server(uvicorn_config(create_app(settings, engine_factory), settings))
    server.run(bind_sockets("127.0.0.1", 0))
    return server


def test_server_whose_first_worker_cannot_start_ends(tmp_path: Path) -> None:
    server = run_server(tmp_path, fail)
    assert server.service
    error = server.service.supervisor.start_error
    assert isinstance(error, DeviceError)
    assert str(error) == "there is no device 'cuda:7' here"


def test_server_that_loses_the_race_for_its_folder_raises_one_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(lock_folder(tmp_path)), pytest.raises(StoreError, match="Another server has"):
        run_server(tmp_path, partial(ScriptedEngine, 0.0))
    assert "Traceback" not in caplog.text


def test_server_handles_every_stop_signal_except_ignored_ones(tmp_path: Path) -> None:
    """`nohup` starts programs that ignore SIGHUP."""
    settings = settings_for(tmp_path)
    server = Server(uvicorn_config(create_app(settings, ScriptedEngine), settings))
    given = {signal.SIGHUP: signal.SIG_IGN, signal.SIGQUIT: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in given.items()}
    try:
        with server.capture_signals():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGQUIT) == server.handle_exit
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize(
    "error", [RequestError("device", "none"), DeviceError("none"), StoreError("none")]
)
def test_errors_cross_processes_unchanged(error: OverpaintError) -> None:
    import pickle

    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))
