"""Safety checks: the operator's checker flags pictures that must not be published.

No checker runs unless one is configured: a network (`models/safety_checker.py`) or a function of
the operator.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from overpaint.errors import SafetyError

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Verdict:
    """A checker's answer for one picture.

    Attributes:
        flagged: the picture must not be published.
        concepts: names of the concepts that the checker saw, if it names any.
    """

    flagged: bool
    concepts: tuple[str, ...] = ()


class Checker(Protocol):
    """Decides for RGB pictures whether they may be published."""

    def __call__(self, images: "Sequence[Image]", /) -> Sequence[Verdict | bool]:
        """Return one verdict per picture, in order; True means flagged."""
        ...


@dataclass(frozen=True)
class Flag:
    """A flagged picture.

    Attributes:
        index: number of the picture in the request, from 0.
        seed: seed of the picture.
        concepts: names of the concepts that the checker saw, if it names any.
    """

    index: int
    seed: int
    concepts: tuple[str, ...] = ()

    def __str__(self) -> str:
        seen = f": {', '.join(self.concepts)}" if self.concepts else ""
        return f"picture {self.index} (seed {self.seed}{seen})"


def check_images(
    checker: Checker, images: "Sequence[Image]", seeds: Sequence[int]
) -> tuple[Flag, ...]:
    """Ask a checker about pictures, and return those that it flags.

    Args:
        checker: the operator's checker.
        images: RGB pictures, all of one request.
        seeds: the seed of each picture.

    Raises:
        SafetyError: the checker failed, or did not answer one verdict per picture.
    """
    try:
        said: list[Any] = list(checker(images))
    except Exception as error:  # the operator's code may raise any type
        raise SafetyError(
            f"The safety checker failed, so nothing is published: {type(error).__name__}: {error}."
        ) from error
    verdicts = [Verdict(one) if isinstance(one, bool) else one for one in said]
    if len(said) != len(images) or not all(isinstance(one, Verdict) for one in verdicts):
        raise SafetyError(
            "The safety checker must answer a Verdict or a bool for each picture; nothing is "
            f"published, since for {len(images)} it answered {said!r}."
        )
    return tuple(
        Flag(index, seed, tuple(map(str, verdict.concepts)))
        for index, (seed, verdict) in enumerate(zip(seeds, verdicts, strict=True))
        if verdict.flagged
    )
