"""Send different requests to a busy server, then each alone; the pictures must be equal.

`python -m tests.stress.company REQUESTS` prints the report as JSON.
"""

from __future__ import annotations

import base64
import io
import itertools
import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from overpaint.registry import SAMPLERS, SCHEDULES
from tests.server.processes import ROOT, Server

HOUSE = (ROOT / "examples" / "house.png").read_bytes()
PROMPTS = ("a red cup", "a blue car", "a green fish", "a yellow house", "a purple star")
LORAS = ("miniature-comic", "miniature-sticker", "miniature-bird")


@dataclass
class Report:
    """Differences between pictures made alone and together.

    Attributes:
        together: largest number of requests that ran at once.
        gap: largest difference of a value, in levels of 255.
        differing: share of values that differ.
    """

    requests: int
    together: int
    gap: int
    differing: float

    @property
    def passed(self) -> bool:
        return self.gap <= 1 and self.together >= min(self.requests, 8)


def unlike(count: int) -> list[dict[str, Any]]:
    """Return requests of one size that differ in everything else that one step allows."""
    image = {"data": base64.b64encode(HOUSE).decode()}
    samplers = itertools.cycle(SAMPLERS)
    schedules = itertools.cycle(SCHEDULES)
    requests: list[dict[str, Any]] = []
    for number in range(count):
        fields: dict[str, Any] = {
            "prompt": PROMPTS[number % len(PROMPTS)],
            "num_inference_steps": 8 + 5 * number % 23,
            "guidance_scale": 1 + number % 7,
            "sampler": next(samplers),
            "schedule": next(schedules),
            "width": 128,
            "height": 128,
            "seed": number,
        }
        if number % 3:
            fields |= {"image": image, "strength": (4 + number % 6) / 10}
        if number % 3 == 2:
            fields |= {"mask_from": f"box:{64 * (number % 5)},0,480,512", "crop": "off"}
        if number % 4 < 3:
            fields["loras"] = [{"name": LORAS[number % 3], "scale": (2 + number % 4) / 4}]
        requests.append(fields)
    return requests


def run(server: Server, count: int) -> Report:
    """Send all requests at once, then one after another."""
    requests = unlike(count)
    names = [server.submit(**fields) for fields in requests]
    together, waited = 0, list(names)
    while waited:
        jobs = [server.job(name) for name in waited]
        together = max(together, sum(bool(job["done"]) for job in jobs))
        waited = [job["id"] for job in jobs if job["state"] in ("queued", "running")]
    busy = [painted(server, name) for name in names]
    alone = [painted(server, server.submit(**fields)) for fields in requests]
    gaps = [np.abs(one - other) for one, other in zip(busy, alone, strict=True)]
    differing = float(np.mean([(gap > 0).mean() for gap in gaps]))
    return Report(count, together, max(int(gap.max()) for gap in gaps), round(differing, 6))


def painted(server: Server, name: str) -> np.ndarray[Any, np.dtype[np.int16]]:
    """Return the picture of a job after it has ended."""
    (made,) = server.ended(name)["results"]
    data = server.client.get(made["url"]).raise_for_status().content
    return np.asarray(Image.open(io.BytesIO(data))).astype(np.int16)


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        Server(Path(folder), "--engine", "miniature") as s,
    ):
        report = run(s.until_ready(), int(sys.argv[1]))
    print(json.dumps(asdict(report) | {"passed": report.passed}))
    raise SystemExit(not report.passed)


if __name__ == "__main__":
    main()
