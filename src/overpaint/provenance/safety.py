"""Pictures that are not to be published: what says so is the operator's choice.

There is no checker unless one is configured: a network (`models/safety_checker.py`), or a function
of the operator's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from overpaint.errors import SafetyError

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Verdict:
    """Of a checker on a picture.

    Attributes:
        flagged: it is not to be published.
        concepts: what was seen in it, as far as the checker names that.
    """

    flagged: bool
    concepts: tuple[str, ...] = ()


class Checker(Protocol):
    """Says of RGB pictures whether they may be published."""

    def __call__(self, images: "Sequence[Image]", /) -> Sequence[Verdict | bool]:
        """One verdict for each picture, in order; True is one that is flagged."""
        ...


@dataclass(frozen=True)
class Flag:
    """A picture that was flagged.

    Attributes:
        index: which picture of the request, from 0.
        seed: that it was painted with.
        concepts: what was seen in it, as far as the checker names that.
    """

    index: int
    seed: int
    concepts: tuple[str, ...] = ()

    def __str__(self) -> str:
        seen = f": {', '.join(self.concepts)}" if self.concepts else ""
        return f"picture {self.index} (seed {self.seed}{seen})"


def flags(checker: Checker, images: "Sequence[Image]", seeds: Sequence[int]) -> tuple[Flag, ...]:
    """The pictures that a checker flags.

    Args:
        checker: to ask.
        images: RGB, all of one request.
        seeds: of each.

    Raises:
        SafetyError: it failed, or answered what is not a verdict for each picture.
    """
    try:
        said: list[Any] = list(checker(images))
    except Exception as error:  # whatever the operator's own code raises
        raise SafetyError(
            f"the safety checker failed, so nothing is published: {type(error).__name__}: {error}."
        ) from error
    verdicts = [Verdict(one) if isinstance(one, bool) else one for one in said]
    if len(said) != len(images) or not all(isinstance(one, Verdict) for one in verdicts):
        raise SafetyError(
            "the safety checker must answer a Verdict or a bool for each picture; nothing is "
            f"published, since for {len(images)} it answered {said!r}."
        )
    return tuple(
        Flag(index, seed, tuple(map(str, verdict.concepts)))
        for index, (seed, verdict) in enumerate(zip(seeds, verdicts, strict=True))
        if verdict.flagged
    )
