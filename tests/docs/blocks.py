"""Fenced code blocks of the documentation, and the annotations in front of them.

<!-- not run: needs SDXL weights -->     the block is not executed, for this reason
<!-- answer -->                          the block is the answer to the one before it
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


@dataclass(frozen=True)
class Block:
    """A fenced code block.

    Attributes:
        page: path of the page, relative to the repository.
        line: number of its first line of code, from 1.
        language: word behind the fence, such as `shell`; "" if there is none.
        text: the code.
        reason: why it is not executed; "" if it is.
        is_answer: whether it shows the answer to the block before it.
    """

    page: str
    line: int
    language: str
    text: str
    reason: str
    is_answer: bool


FENCE = re.compile(r"(?P<fence>`{3,})(?P<language>[\w-]*)$")
NOT_RUN = re.compile(r"<!-- not run: (?P<reason>[^>]+) -->$")


def blocks_of(path: Path) -> Iterator[Block]:
    """Yield the blocks of a page in order."""
    page = str(path.relative_to(ROOT))
    lines = path.read_text("utf-8").splitlines()
    reason, answer, fence, language, first = "", False, "", "", 0
    code: list[str] = []
    for number, line in enumerate(lines, 1):
        if fence:
            if line != fence:
                code.append(line)
                continue
            yield Block(page, first, language, "\n".join(code) + "\n", reason, answer)
            fence, reason, answer = "", "", False
        elif match := FENCE.match(line):
            fence, language, first, code = match["fence"], match["language"], number + 1, []
        elif match := NOT_RUN.match(line):
            reason = match["reason"]
        elif line == "<!-- answer -->":
            answer = True
        elif line:
            pending = reason or answer
            assert not pending, f"{page}:{number}: no block follows the annotation"


def first_block(page: str, language: str) -> str:
    """Return the code of a page's first block in a language.

    Args:
        page: below `docs`, such as `guides/clients/fal.md`.
        language: such as `python`.
    """
    return next(b.text for b in blocks_of(DOCS / page) if b.language == language)
