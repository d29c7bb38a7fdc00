"""Safety checkers of an operator's own, for a worker to import."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL.Image import Image

from overpaint.provenance.safety import Verdict


def second(images: Sequence[Image]) -> list[Verdict]:
    """Flags the second of several."""
    return [Verdict(i == 1, ("oddness",) * (i == 1)) for i in range(len(images))]


def everything(images: Sequence[Image]) -> list[bool]:
    return [True] * len(images)


def nothing(images: Sequence[Image]) -> list[bool]:
    return [False] * len(images)


def too_few(images: Sequence[Image]) -> list[bool]:
    return [False] * (len(images) - 1)


def strange(images: Sequence[Image]) -> list[Any]:
    return ["yes"] * len(images)


def broken(images: Sequence[Image]) -> list[bool]:
    raise ZeroDivisionError("no luck")


def leaving(images: Sequence[Image]) -> list[bool]:
    raise SystemExit


def unusual(images: Sequence[Image]) -> list[Any]:
    """Names concepts by a value that cannot be pickled."""
    return [Verdict(True, {"oddness": 1}.keys()) for _ in images]  # type: ignore[arg-type]
