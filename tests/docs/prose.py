"""Find phrases that the style guide forbids, in documentation, `--help`, OpenAPI and source.

    python -m tests.docs.prose                # every source of text, with a total for each kind
    python -m tests.docs.prose src/overpaint/engine README.md
    python -m tests.docs.prose --lower        # lower the ceilings in prose_budget.json

`CONTRIBUTING.md` has the style guide. `test_prose.py` compares the totals with the ceilings.
"""

from __future__ import annotations

import ast
import io
import json
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "overpaint"
BUDGET = Path(__file__).with_name("prose_budget.json")
MAX_SENTENCE_WORDS = 25

FORBIDDEN: tuple[tuple[str, str], ...] = (
    (r"\bWho(ever)? \w+s\b", "name the actor"),
    (r"\b(whoever|whomever|[Ww]hom)\b", "name the actor"),
    (r"\b([Ff]or|[Oo]f|[Bb]y|[Tt]o|[Ff]rom|[Ww]ith) who\b", "name the actor"),
    (r"\b[Ll]ikewise\b", "repeat the words"),
    (r"\b[Oo]urs?\b", "write 'Overpaint', 'the server' or a name"),
    (r"\b[Tt]heirs\b", "name the owner"),
    (r"\b[Ww]hatever\b", "name the thing"),
    (r"\bis none\b", "write 'there is no X' or 'no X'"),
    (r"\bso many\b", "name the number"),
    (r"\b(is|are|be|was|were) told\b|\b[Tt]old\b", "write 'receives', 'reports' or 'sends'"),
    (r"\b[Tt]hat which\b", "name the thing"),
    (r"\b[Ww]hat (is|are|was|were|it|they|has|may|stands|came|comes|goes)\b", "name the thing"),
    (r"\b[Nn]obody('s| else)\b", "name the actor"),
    (r"(?<![Tt]here) (is|are) no (?!longer\b)\w+", "write 'is not a …'"),
    (r"\bof (its|their) own\b", "write 'own' before the noun, or 'separate'"),
    (r"\b(its|their|his) kin\b", "name the members"),
    (r"\b[Oo]therwise than\b", "write 'Unlike X, …'"),
    (r"\b(anew|whilst|amongst|thereof|therein|hereby|heeds?|heeded|meanwhile)\b", "plain word"),
    (r"\bmeans? nothing\b", "write 'has no effect'"),
    (r"\bsays? (so|the same)\b", "write the message"),
    (r"\bstrange (page|file|name)s?\b", "write 'other origin', 'unknown file' …"),
    (r"\b\w*[Cc]olour\w*", "American spelling: color"),
    (r"\b[Gg]rey(s|scale)?\b", "American spelling: gray"),
    (r"\b[Ll]icences?\b", "American spelling: license"),
    (r"\b[Cc]atalogues?\b", "American spelling: catalog"),
    (r"\b([Hh]arbour|[Hh]onour|[Ff]avour|[Bb]ehaviour|[Nn]eighbour)\w*", "American spelling: -or"),
    (r"\b([Cc]entre|[Mm]etre|[Tt]heatre|[Ff]ibre)s?\b", "American spelling: -er"),
    (
        r"\b([Oo]ptim|[Nn]ormal|[Rr]ecogn|[Ii]nitial|[Ss]erial|[Mm]inim|[Mm]axim|[Qq]uant|"
        r"[Ss]ynchron|[Cc]ustom|[Aa]uthor|[Oo]rgan|[Ss]ummar|[Vv]isual|[Uu]til)is"
        r"(e|ed|es|ing|ation)\b",
        "American spelling: -ize",
    ),
    (r"\b([Cc]ancel|[Ll]abel|[Mm]odel|[Ss]ignal|[Tt]ravel)l(ed|ing)\b", "American spelling: one l"),
    (r"\b([Ll]earnt|[Aa]rtefacts?|[Dd]efence|[Jj]udgement)\b", "American spelling"),
)
"""Patterns and their remedies; a space stands for any white space."""

DOCSTRING_STARTS: tuple[tuple[str, str], ...] = (
    (r"\AAs ", "start with the verb or the noun"),
    (r"\AOf ", "start with the verb or the noun"),
    (r"\AThe same\b", "repeat the words"),
    (r"\ADoes it\b", "name the action"),
    (r"\A(What|Who|Whether)\b", "start with the noun: 'Return whether …', 'Names of …'"),
)
"""Patterns for the first words of docstrings, beside `FORBIDDEN`."""


def _compiled(rules: Iterable[tuple[str, str]]) -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple((re.compile(pattern.replace(" ", r"\s+")), advice) for pattern, advice in rules)


_RULES = _compiled(FORBIDDEN)
_STARTS = _compiled(DOCSTRING_STARTS)
_CODE = re.compile(r"(`+)(?:.|\n)+?\1")
_TARGET = re.compile(r"\]\([^)\s]+\)|<https?://[^>]+>|https?://\S+")


@dataclass(frozen=True)
class Text:
    """A piece of prose and the place it came from.

    Attributes:
        kind: docs, help, openapi, messages or code.
        place: a path, a command or a path in the OpenAPI document.
        line: the number of its first line, from 1; 0 where the place has no lines.
        text: the prose.
        docstring: whether the rules for the first words of docstrings hold.
    """

    kind: str
    place: str
    line: int
    text: str
    docstring: bool = False


@dataclass(frozen=True)
class Finding:
    """A forbidden phrase."""

    kind: str
    place: str
    phrase: str
    advice: str

    def __str__(self) -> str:
        return f"{self.place}: {' '.join(self.phrase.split())!r}: {self.advice}"


def _blank(match: re.Match[str]) -> str:
    return re.sub(r"\S", "x", match[0])


def find_phrases(text: Text) -> Iterator[Finding]:
    """Yield every forbidden phrase of a text; quoted code is skipped."""
    prose = _TARGET.sub(_blank, _CODE.sub(_blank, text.text))
    for pattern, advice in (*_RULES, *(_STARTS if text.docstring else ())):
        for match in pattern.finditer(prose):
            line = text.line + prose.count("\n", 0, match.start())
            place = f"{text.place}:{line}" if text.line else text.place
            yield Finding(text.kind, place, match[0], advice)


def find_long_sentences(text: Text) -> Iterator[Finding]:
    """Yield every sentence of a Markdown text that is longer than the style guide allows."""
    prose = re.sub(r"\[([^\]]*)\]\([^)\s]+\)", r"\1", _CODE.sub("code", text.text))
    for sentence in re.split(r"(?<=[.!?])[)\"*_]*\s+", prose):
        words = re.findall(r"[^\s|]*\w[^\s|]*", sentence)
        if len(words) > MAX_SENTENCE_WORDS:
            yield Finding(
                text.kind, f"{text.place}:{text.line}", " ".join(words[:8]), f"{len(words)} words"
            )


def read_markdown(path: Path, place: str) -> Iterator[Text]:
    """Yield the paragraphs, list items and table cells of a Markdown file, without its code."""
    block: list[str] = []
    first, fence = 1, ""

    def whole() -> Iterator[Text]:
        if block:
            yield Text("docs", place, first, "\n".join(block))
            block.clear()

    text = re.sub(
        r"<!--.*?-->", lambda m: re.sub(r"[^\n]", " ", m[0]), path.read_text(), flags=re.S
    )
    for number, line in enumerate(text.splitlines(), 1):
        mark = re.match(r"\s*(`{3,}|~{3,}|:{3,})", line)
        if fence and not (mark and mark[1].startswith(fence)):
            continue
        if mark and not mark[1].startswith(":"):
            yield from whole()
            fence = "" if fence else mark[1]
            continue
        if mark or not line.strip() or (line.startswith("    ") and not block):
            yield from whole()
        elif line.lstrip().startswith("|"):
            yield from whole()
            for cell in re.split(r"(?<!\\)\|", line):
                yield Text("docs", place, number, cell.strip())
        elif line.startswith("#"):
            yield from whole()
            yield Text("docs", place, number, line.lstrip("# "))
        else:
            if re.match(r"\s*([-*+]|\d+\.)\s", line):
                yield from whole()
            if not block:
                first = number
            block.append(line)
    yield from whole()


def _strings(node: ast.AST) -> Iterator[ast.Constant | ast.JoinedStr]:
    """Yield the string literals below a node; an f-string is one."""
    if isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str)
    ):
        yield node
        return
    for child in ast.iter_child_nodes(node):
        yield from _strings(child)


def _literal(node: ast.Constant | ast.JoinedStr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    return "".join(str(v.value) if isinstance(v, ast.Constant) else "`x`" for v in node.values)


def read_python(path: Path, place: str) -> Iterator[Text]:
    """Yield docstrings, comments, error messages, and help texts of a Python file."""
    source = path.read_text()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Expr(value=ast.Constant(value=str() as text)):
                yield Text("code", place, node.lineno, text, docstring=True)
            case ast.Raise(exc=ast.expr() as exc):
                for each in _strings(exc):
                    if " " in (message := _literal(each)):
                        yield Text("messages", place, each.lineno, message)
            case ast.keyword(arg="help" | "description" | "summary" as name, value=value):
                for each in _strings(value):
                    kind = "help" if name == "help" else "openapi"
                    yield Text(kind, place, each.lineno, _literal(each))
            case _:
                pass
    block: list[str] = []
    last = first = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT or re.match(r"#\s*(pyright|type|noqa|fmt)", token.string):
            continue
        row = token.start[0]
        if row != last + 1:
            if block:
                yield Text("code", place, first, "\n".join(block))
            block, first = [], row
        block.append(token.string.lstrip("# "))
        last = row
    if block:
        yield Text("code", place, first, "\n".join(block))


def read_help() -> Iterator[Text]:
    """Yield the help texts of every command and option, as `--help` shows them."""
    from typer.main import get_command

    from overpaint.cli.main import app

    def walk(command: Any, name: str) -> Iterator[Text]:
        yield Text("help", name, 0, command.help or "")
        for parameter in command.params:
            if parameter.hidden:
                continue
            yield Text("help", f"{name} {parameter.name}", 0, getattr(parameter, "help", "") or "")
            default = getattr(parameter, "show_default", None)
            if isinstance(default, str):
                yield Text("help", f"{name} {parameter.name}", 0, default)
        for sub in getattr(command, "commands", {}).values():
            yield from walk(sub, f"{name} {sub.name}")

    yield from walk(get_command(app), "overpaint")


def read_openapi() -> Iterator[Text]:
    """Yield the titles, summaries and descriptions of the HTTP API's OpenAPI document."""
    from docs.generate import openapi_document

    def walk(value: Any, path: str) -> Iterator[Text]:
        if isinstance(value, dict):
            for name, inner in value.items():
                if name in ("description", "summary") and isinstance(inner, str):
                    yield Text("openapi", path, 0, inner)
                else:
                    yield from walk(inner, f"{path}/{name}")
        elif isinstance(value, list):
            for index, inner in enumerate(value):
                yield from walk(inner, f"{path}/{index}")

    yield from walk(openapi_document(), "")


def public_pages() -> list[Path]:
    """Return the Markdown files that the style guide holds for, except generated ones.

    The texts of generated pages are checked where they come from.
    """
    from docs.generate import PAGES, REFERENCE

    top = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    found = [*top, ROOT / "miniature" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    generated = {REFERENCE / name for name in PAGES}
    return [path for path in found if path.exists() and path not in generated]


def texts_of(paths: Iterable[Path]) -> Iterator[Text]:
    """Yield the texts of files, and of the Python and Markdown files in folders."""
    for path in paths:
        if path.is_dir():
            inside = (p for p in sorted(path.rglob("*")) if p.suffix in (".py", ".md"))
            yield from texts_of(inside)
            continue
        whole = path.resolve()
        place = str(whole.relative_to(ROOT) if whole.is_relative_to(ROOT) else path)
        yield from read_markdown(path, place) if path.suffix == ".md" else read_python(path, place)


def all_findings() -> list[Finding]:
    """Return every finding in every kind of text. Help texts and API descriptions count once."""
    texts = [*texts_of(public_pages()), *read_help(), *read_openapi()]
    texts += [text for text in texts_of([SOURCE]) if text.kind in ("code", "messages")]
    return [finding for text in texts for finding in findings_of(text)]


def findings_of(text: Text) -> Iterator[Finding]:
    """Yield the findings of one text."""
    yield from find_phrases(text)
    if text.kind == "docs":
        yield from find_long_sentences(text)


def counts_of(findings: Iterable[Finding]) -> dict[str, int]:
    """Return the number of findings for each kind of text."""
    counts: dict[str, int] = dict.fromkeys(("docs", "help", "openapi", "messages", "code"), 0)
    for finding in findings:
        counts[finding.kind] += 1
    return counts


def main(arguments: list[str]) -> int:
    """Print findings; return 1 if there are any."""
    paths = [Path(each) for each in arguments if not each.startswith("-")]
    if paths:
        findings = [f for text in texts_of(paths) for f in findings_of(text)]
    else:
        findings = all_findings()
    counts = counts_of(findings)
    if "--lower" in arguments:
        ceilings: dict[str, int] = json.loads(BUDGET.read_text())
        lowered = {kind: min(count, ceilings.get(kind, count)) for kind, count in counts.items()}
        BUDGET.write_text(json.dumps(lowered, indent=2) + "\n")
    for finding in findings:
        print(f"[{finding.kind}] {finding}")
    print(", ".join(f"{kind}: {count}" for kind, count in counts.items()))
    return 1 if findings else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
