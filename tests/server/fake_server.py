"""A server that paints nothing: `python -m tests.server.fake_server FOLDER PORT [STORE]`."""

from __future__ import annotations

import sys
from pathlib import Path

import uvicorn

from overpaint.server.app import create_app
from overpaint.server.service import Settings
from overpaint.server.supervisor import Pace
from tests.server.fake import Fake

SECONDS = 0.03  # of a tick


def main() -> None:
    folder, port, *store = sys.argv[1:]
    settings = Settings(
        Path(folder),
        ("m",),
        Fake,
        (SECONDS,),
        store[0] if store else None,
        pace=Pace(lease=3.0, look=0.2),
        grace=0.0,
    )
    uvicorn.run(create_app(settings), port=int(port), log_level="error")


if __name__ == "__main__":
    main()
