"""The prompt syntax: AUTOMATIC1111's weights, `BREAK` and `<embedding:name>`.

`parse_prompt` reads a text into passages of weighted segments, as `modules/prompt_parser.py` of
AUTOMATIC1111's web UI does.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from overpaint.errors import RequestError
from overpaint.request.fields import BREAK_PATTERN, EMBEDDING_PATTERN

MAX_WEIGHT = 10.0
"""The largest magnitude of a weight. Larger ones destroy the picture."""

EMPHASIS_FACTOR = 1.1
"""A pair of round brackets multiplies a weight by this; a pair of square brackets divides by it."""


@dataclass(frozen=True)
class Segment:
    """A stretch of text with one weight."""

    text: str
    weight: float = 1.0


_MARK = re.compile(
    r"""
      \\ (?P<escaped> [()\[\]\\]? )
    | (?P<open> [(\[] )
    | : \s* (?P<weight> [+-]? (?: \d+ (?: \.\d* )? | \.\d+ ) ) \s* \)
    | (?P<close> [)\]] )
    | (?P<text> [^\\()\[\]:]+ | : )
    """,
    re.VERBOSE,
)


def parse_prompt(text: str, field: str = "prompt") -> list[list[Segment]]:
    r"""Parse A1111's prompt syntax.

    `(a)` has the weight 1.1, `((a))` 1.21, `[a]` 1/1.1 and `(a:1.2)` 1.2; nested weights multiply.
    `\(`, `\)`, `\[`, `\]` and `\\` give the literal character; any other backslash is dropped. An
    unclosed bracket acts to the end of the text. A closing bracket without an opening one is
    literal. Round and square brackets are paired independently, so they can cross. The word
    `BREAK` starts a new passage; unlike in A1111, also inside brackets.

    The function takes linear time: it looks up a bracket's factor before it reads the text inside,
    and does not multiply it into that text afterward.

    Args:
        text: the prompt.
        field: the request's field that contains the prompt, for errors.

    Returns:
        The passages that `BREAK` separates, at least one. Adjacent segments differ in weight, and
        no segment is empty.

    Raises:
        RequestError: a weight is outside -10 … 10.
    """
    marks = list(_MARK.finditer(text))
    pairs = _match_brackets(marks)
    closers = set(pairs.values())
    # For each open bracket: the exponent of EMPHASIS_FACTOR, and the product of written weights.
    # Integer exponents keep the weight of ([a]) exactly 1, and deep balanced nesting finite.
    inside: dict[str, list[tuple[int, float]]] = {"(": [(0, 1.0)], "[": [(0, 1.0)]}
    passages: list[list[tuple[float, str]]] = [[]]
    for number, mark in enumerate(marks):
        if bracket := mark["open"]:
            count, factor = inside[bracket][-1]
            written = marks[pairs[number]]["weight"] if number in pairs else None
            if written is None:
                inside[bracket].append((count + (1 if bracket == "(" else -1), factor))
            else:
                inside[bracket].append((count, factor * float(written)))
        elif number in closers:
            inside["[" if mark["close"] == "]" else "("].pop()
        else:
            weight = _compute_weight(inside["("][-1], inside["["][-1])
            literal = mark["escaped"] if mark["escaped"] is not None else mark[0]
            first, *others = _split_at_break(literal)
            passages[-1].append((weight, first))
            passages += [[(weight, other)] for other in others]
    return [_merge_segments(passage, field) for passage in passages]


def _match_brackets(marks: Sequence[re.Match[str]]) -> dict[int, int]:
    """Return the index of the closing mark for the index of each closed opening mark."""
    waiting: dict[str, list[int]] = {"(": [], "[": []}
    pairs: dict[int, int] = {}
    for number, mark in enumerate(marks):
        if mark["open"]:
            waiting[mark["open"]].append(number)
        elif mark["close"] or mark["weight"]:
            opened = waiting["[" if mark["close"] == "]" else "("]
            if opened:
                pairs[opened.pop()] = number
    return pairs


def _compute_weight(*brackets: tuple[int, float]) -> float:
    try:
        emphasis = EMPHASIS_FACTOR ** sum(count for count, _ in brackets)
    except OverflowError:
        emphasis = math.inf
    return emphasis * math.prod(factor for _, factor in brackets)


def _split_at_break(literal: str) -> list[str]:
    """Return the texts around each word BREAK, without the adjacent whitespace."""
    parts = BREAK_PATTERN.split(literal)
    parts[1:] = [part.lstrip() for part in parts[1:]]
    parts[:-1] = [part.rstrip() for part in parts[:-1]]
    return parts


def _merge_segments(passage: list[tuple[float, str]], field: str) -> list[Segment]:
    """Join adjacent pieces of equal weight, and check the weights."""
    full = [(weight, text) for weight, text in passage if text]
    for weight, text in full:
        if not abs(weight) <= MAX_WEIGHT:
            raise RequestError(
                field,
                f"The weight of {text[:40]!r} is {weight:.3g}; allowed is "
                f"-{MAX_WEIGHT:g} to {MAX_WEIGHT:g}. For a literal bracket, write a backslash "
                "before it.",
            )
    return [
        Segment("".join(text for _, text in run), weight)
        for weight, run in groupby(full, key=lambda piece: piece[0])
    ]


def list_embeddings(*texts: str | None) -> list[str]:
    """Return the names of the embeddings that prompts use, in order, each once."""
    return list(
        dict.fromkeys(name for text in texts for name in EMBEDDING_PATTERN.findall(text or ""))
    )
