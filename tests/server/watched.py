"""The engine that paints, and a file that says which jobs each of its ticks stepped, and when."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from overpaint.engine.worker import make_engine
from overpaint.events import Step

if TYPE_CHECKING:
    from overpaint.engine.config import EngineConfig
    from overpaint.engine.worker import JobRunner
    from overpaint.request import Request
    from overpaint.testing import EngineEvent


@dataclass(frozen=True)
class Tick:
    """Jobs that one tick stepped, by the clock that all processes of a machine share."""

    began: float
    ended: float
    stepped: list[str]


class Watched:
    """Notes what an engine does."""

    def __init__(self, engine: JobRunner, path: Path):
        self._engine = engine
        self._file = path.open("w")

    @property
    def busy(self) -> bool:
        return self._engine.busy

    def submit(
        self,
        name: str,
        request: Request,
        model: str,
        *,
        key: str,
        priority: int,
        preview_every: int,
    ) -> None:
        self._engine.submit(
            name, request, model, key=key, priority=priority, preview_every=preview_every
        )

    def cancel(self, name: str) -> None:
        self._engine.cancel(name)

    def release(self, name: str) -> None:
        self._engine.release(name)

    def tick(self) -> Sequence[tuple[str, EngineEvent]]:
        began = time.monotonic()
        events = self._engine.tick()
        # A job is known to the worker by its attempt, "JOB.1".
        stepped = [name.partition(".")[0] for name, event in events if isinstance(event, Step)]
        if stepped:
            self._file.write(json.dumps(asdict(Tick(began, time.monotonic(), stepped))) + "\n")
            self._file.flush()
        return events


def watched(path: Path, config: EngineConfig) -> JobRunner:
    return Watched(make_engine(config), path)


def ticks(path: Path) -> list[Tick]:
    """All that were noted until now."""
    return [Tick(**json.loads(line)) for line in path.read_text().splitlines()]
