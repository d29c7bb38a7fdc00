"""A server for tests: `overpaint serve` with options that no user needs.

`python -m tests.server.fake_server FOLDER PORT` runs the scripted engine unless there is --engine.
"""

from __future__ import annotations

import argparse
import signal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from overpaint.engine.counters import Counters
from overpaint.engine.worker import make_engine
from overpaint.testing import ScriptedEngine
from tests.server.watched import watched

if TYPE_CHECKING:
    from overpaint.engine.worker import EngineFactory, JobRunner
    from overpaint.server.settings import ServerSettings

ENGINES = ("fake", "sized", "miniature", "watched")


def main() -> None:
    # A worker's process imports this module too, and none of these.
    from overpaint.server.app import run
    from overpaint.server.settings import (
        FetchPolicy,
        HttpSettings,
        Limits,
        ServerSettings,
        WorkerSettings,
    )
    from tests.server.faults import install

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("port", type=int)
    parser.add_argument("--engine", choices=ENGINES, default="fake")
    parser.add_argument("--seconds", type=float, default=0.03, help="of a tick of the fake")
    parser.add_argument("--profile", type=Path, help="what steps of the miniature take")
    parser.add_argument("--store", help="by default SQLite in the folder")
    parser.add_argument("--lease", type=float, default=3.0)
    parser.add_argument("--look", type=float, default=0.2)
    parser.add_argument("--room", type=int, default=WorkerSettings().max_jobs)
    parser.add_argument("--grace", type=float, default=0.0)
    parser.add_argument("--queue", type=int, default=Limits().queued_jobs)
    parser.add_argument("--fetch", choices=get_args(FetchPolicy), default="public")
    parser.add_argument("--patience", type=float, help="with clients that stand still")
    parser.add_argument("--faults", action="store_true", help="fail as FOLDER/faults.json says")
    given = parser.parse_args()
    for number in (signal.SIGHUP, signal.SIGQUIT):  # which `nohup` and shells let tests ignore
        signal.signal(number, signal.SIG_DFL)

    http = HttpSettings()
    if given.patience:
        http = HttpSettings(
            request_head_timeout_s=given.patience,
            request_body_timeout_s=given.patience,
            response_timeout_s=given.patience,
        )
    settings = ServerSettings(
        data=given.folder,
        port=given.port,
        store=given.store,
        device="cpu",
        dtype="fp32",
        home=given.folder / "home",
        profile=given.profile,
        fetch=given.fetch,
        grace_s=given.grace,
        http=http,
        limits=Limits(queued_jobs=given.queue),
        worker=WorkerSettings(lease_s=given.lease, poll_interval_s=given.look, max_jobs=given.room),
    )
    engine_factory = engine_factory_of(given.engine, given.seconds, settings)
    if given.faults:
        engine_factory = partial(faulty, given.folder, engine_factory)
        install(given.folder, "server")
    run(settings, engine_factory)


def engine_factory_of(name: str, seconds: float, settings: ServerSettings) -> EngineFactory:
    match name:
        case "fake":
            return partial(ScriptedEngine, seconds)
        case "sized":
            return partial(ScriptedEngine, seconds, Counters(resident={"miniature": 128}))
        case "miniature":
            return partial(make_engine, settings.engine_config())
        case _:
            return partial(watched, settings.data / "ticks.jsonl", settings.engine_config())


def faulty(folder: Path, engine_factory: EngineFactory) -> JobRunner:
    """Make an engine in a worker whose calls fail as `FOLDER/faults.json` describes."""
    from tests.server.faults import install

    install(folder, "worker")
    return engine_factory()


if __name__ == "__main__":
    main()
