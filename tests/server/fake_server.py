"""A server for proofs, as `overpaint serve` starts it, but for choices that no user has.

`python -m tests.server.fake_server FOLDER PORT` paints nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from overpaint.engine.worker import paints
from tests.server.fake import Fake, Sized
from tests.server.watched import watched

if TYPE_CHECKING:
    from overpaint.engine.worker import Runs

ENGINES = {"fake": Fake, "sized": Sized, "miniature": paints, "watched": watched}


def main() -> None:
    # A worker's process imports this module too, and none of these.
    from overpaint.engine.profile import Profile
    from overpaint.server.app import run
    from overpaint.server.http import connection
    from overpaint.server.jobs.service import Settings
    from overpaint.server.jobs.supervisor import Pace
    from overpaint.server.outbound.image_fetch import FetchPolicy
    from overpaint.server.store.jobs import Limits
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
    parser.add_argument("--room", type=int, default=Pace().room)
    parser.add_argument("--grace", type=float, default=0.0)
    parser.add_argument("--queue", type=int, default=Limits().queued)
    parser.add_argument("--fetch", choices=get_args(FetchPolicy), default="public")
    parser.add_argument("--patience", type=float, help="with clients that stand still")
    parser.add_argument("--faults", action="store_true", help="fail as FOLDER/faults.json says")
    given = parser.parse_args()

    if given.patience:
        connection.CLIENT_TIMEOUT_S = given.patience
    profile = Profile.read(given.profile) if given.profile else None
    names = ("miniature",)
    arguments: tuple[Any, ...] = (given.seconds,)
    if given.engine not in ("fake", "sized"):
        arguments = (names, "cpu", "fp32", given.folder / "home", float("inf"), profile)
    if given.engine == "watched":
        arguments = (given.folder / "ticks.jsonl", *arguments)
    make: Any = ENGINES[given.engine]
    if given.faults:
        arguments = (given.folder, make, arguments)
        make = faulty
        install(given.folder, "server")
    settings = Settings(
        given.folder,
        names,
        make,
        arguments,
        given.store,
        limits=Limits(queued=given.queue),
        pace=Pace(lease=given.lease, look=given.look, room=given.room),
        profile=profile or Profile(),
        native=128,
        fetch=given.fetch,
        grace=given.grace,
    )
    run(settings, host="127.0.0.1", port=given.port)


def faulty(folder: Path, make: Any, arguments: tuple[Any, ...]) -> Runs:
    """An engine in a worker whose calls fail as they are told to."""
    from tests.server.faults import install

    install(folder, "worker")
    return make(*arguments)


if __name__ == "__main__":
    main()
