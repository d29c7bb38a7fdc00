"""Find prompt syntax of other programs, which Overpaint takes as words.

A row in `FOREIGN_SYNTAX` describes one construct. The patterns take linear time: no two of their
repetitions can match the same text.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from overpaint.errors import quote_value

_ESCAPED = re.compile(r"\\.", re.DOTALL)
_WORD_BEFORE = re.compile(r"\(?[^\s(),]*+$")
_NUMBER = r"(?:\d+(?:\.\d*)?|\.\d+)"


@dataclass(frozen=True)
class ForeignSyntax:
    """A construct in the prompts of another program."""

    pattern: re.Pattern[str]
    """Matches one use in a prompt without escaped characters."""

    name: str
    """The construct and a program that has it."""


FOREIGN_SYNTAX = (
    ForeignSyntax(
        re.compile(rf"\[(?:[^\[\]:]*+:)++\s*+{_NUMBER}\s*+\]"),
        "prompt editing of AUTOMATIC1111",
    ),
    ForeignSyntax(re.compile(r"\[[^\[\]|]*+\|[^\[\]]*+\]"), "alternating words of AUTOMATIC1111"),
    ForeignSyntax(re.compile(r"\bAND\b"), "composable prompts of AUTOMATIC1111"),
    ForeignSyntax(re.compile(r"__[\w*/.~-]+?__"), "wildcards of Dynamic Prompts"),
    ForeignSyntax(re.compile(r"\{[^{}|]*+\|[^{}]*+\}"), "variants of Dynamic Prompts"),
    ForeignSyntax(re.compile(r"\{[^{}|]++\}"), "emphasis of NovelAI"),
    ForeignSyntax(re.compile(rf"(?<![\w.]){_NUMBER}::(?=[^:\s])"), "emphasis of NovelAI"),
    ForeignSyntax(
        re.compile(rf"[^\W\d_]\++(?![\w+-])|\w--+(?![\w+-])|\)(?:[+-]+|{_NUMBER})(?![\w+-])"),
        "weights of InvokeAI's Compel",
    ),
    ForeignSyntax(re.compile(r"[)\"']\.(?:and|blend|swap)\("), "functions of InvokeAI's Compel"),
    ForeignSyntax(re.compile(r"(?<![\w<])embedding:[^\s,()<>]+"), "embeddings of ComfyUI"),
    ForeignSyntax(
        re.compile(
            r"<(?:random|wildcard|wc|alternate|alt|fromto|repeat|segment|object|region|embed|break"
            r"|clear|preset|param|trigger|var|setvar|macro|setmacro|comment)\b[^<>]*+>"
        ),
        "tags of SwarmUI",
    ),
)


def describe_foreign_syntax(prompts: Iterable[str | None]) -> str | None:
    """Return a note about the constructs of other programs in prompts, or None.

    Args:
        prompts: all prompts of a request.
    """
    texts = [_ESCAPED.sub("", prompt) for prompt in prompts if prompt]
    found: dict[str, str] = {}
    for row in FOREIGN_SYNTAX:
        if use := next(filter(None, map(row.pattern.search, texts)), None):
            # A weight stands after a word, and only its end takes linear time to match.
            before = _WORD_BEFORE.search(use.string[max(use.start() - 40, 0) : use.start()])
            found.setdefault(row.name, (before[0] if before else "") + use[0])
    if not found:
        return None
    uses = ", ".join(f"{quote_value(text)} ({name})" for name, text in found.items())
    return f"Overpaint takes this prompt syntax of other programs as words: {uses}."
