"""Public text follows the style guide; other text has a ceiling that may only fall."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .prose import (
    BUDGET,
    Text,
    all_findings,
    counts_of,
    find_long_sentences,
    find_phrases,
    read_markdown,
    read_python,
)


def phrases(text: str, docstring: bool = False) -> list[str]:
    return [f.phrase for f in find_phrases(Text("code", "x", 1, text, docstring))]


def test_findings_of_every_kind_stay_below_the_ceiling() -> None:
    findings = all_findings()
    ceilings: dict[str, int] = json.loads(BUDGET.read_text())
    over = {
        kind: [str(finding) for finding in findings if finding.kind == kind]
        for kind, count in counts_of(findings).items()
        if count > ceilings[kind]
    }
    assert not over, "see `python -m tests.docs.prose`"


@pytest.mark.parametrize(
    "text",
    [
        "Who stands still is not waited for.",
        "The same, likewise.",
        "a name of ours",
        "there is none of it, and it is none",
        "by so many\npixels",
        "is told the size",
        "the colour and the grey",
        "a licence in the catalogue",
    ],
)
def test_find_phrases_in_a_forbidden_phrase_reports_it(text: str) -> None:
    assert phrases(text)


@pytest.mark.parametrize(
    "text",
    [
        "The server closes slow connections.",
        "`match_colours` is an alias, and so is ``grey``.",
        "There is no such file.",
        "[a link](licence.md) to https://example.org/colour",
    ],
)
def test_find_phrases_in_plain_text_and_code_reports_nothing(text: str) -> None:
    assert phrases(text) == []


def test_find_phrases_at_the_start_of_a_docstring_reports_as_and_of() -> None:
    assert phrases("As `edit`.", docstring=True)
    assert phrases("Of the first picture.", docstring=True)
    assert phrases("Use it as a base of the first picture.", docstring=True) == []


def test_find_long_sentences_above_the_limit_reports_the_sentence() -> None:
    assert list(find_long_sentences(Text("docs", "x", 1, "word " * 26 + ".")))
    assert not list(find_long_sentences(Text("docs", "x", 1, "word " * 20 + ". " + "word " * 20)))


def test_read_markdown_skips_code_and_keeps_lines(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# Title\n\nText.\n\n```python\ncolour\n```\n\n| a | b |\n\n    colour\n\nEnd.\n"
    )
    found = [(text.line, text.text) for text in read_markdown(page, "page.md") if text.text]
    assert found == [(1, "Title"), (3, "Text."), (9, "a"), (9, "b"), (13, "End.")]


def test_read_python_yields_docstrings_comments_and_messages(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text(
        '"""Docstring."""\n# A comment.\nraise ValueError(f"the value {1} is wrong")\n'
        'x = f(help="a text")\n'
    )
    found = {(text.kind, text.line, text.text) for text in read_python(module, "module.py")}
    assert found == {
        ("code", 1, "Docstring."),
        ("code", 2, "A comment."),
        ("messages", 3, "the value `x` is wrong"),
        ("help", 4, "a text"),
    }
