r"""Translate prompts in Compel's syntax, which InvokeAI has, into Overpaint's.

| Compel | Overpaint |
|---|---|
| `word++`, `word--` | `(word:1.21)`, `(word:0.81)` |
| `(some words)1.3`, `"some words"+` | `(some words:1.3)`, `(some words:1.1)` |
| `(some words)` | `some words` |
| `("a", "b").and()` | `a BREAK b` |
| `[words]` | `\[words\]` |
| `<name>` | `<embedding:name>` |
"""

import re
from itertools import zip_longest

from overpaint.provenance.importers.prompt_weights import format_weight, weigh

_WEIGHT = r"\++|-+|(?:\d++(?:\.\d*+)?+|\.\d++)(?!\w)"
_TOKEN = re.compile(
    rf"""
      (?P<open> \( )
    | (?P<close> \) ) (?P<close_weight> {_WEIGHT} )?
    | (?P<bracket> [\[\]] )
    | < (?P<embedding> [^<>:\s]++ ) >
    | " (?P<quoted> [^"\\]++ ) " (?P<quoted_weight> {_WEIGHT} )
    | (?P<word> [^\s()\[\]\\"<,+-]++ (?: [+-]++ [^\s()\[\]\\"<,+-]++ )* ) (?P<signs> \++ | -+ )?
    | \\? .
    """,
    re.VERBOSE | re.DOTALL,
)
_STRING = r'"(?:[^"\\]|\\.)*+"'
_AND = re.compile(
    rf"\s*\(\s*(?P<parts>{_STRING}(?:\s*,\s*{_STRING})*)\s*+(?:,\s*+)?\)\s*\.and\((?P<weights>[^()]*)\)\s*",
    re.DOTALL,
)
_FUNCTION = re.compile(r"\.(?:and|blend|swap)\([^()]*+\)")


def translate_compel(text: str) -> tuple[str, list[str]]:
    """Translate a prompt.

    Returns:
        The prompt in Overpaint's syntax, and the functions that remain in it as words.
    """
    call = _AND.fullmatch(text)
    if call is None:
        functions = _FUNCTION.findall(text)
        words = [function.replace("(", r"\(").replace(")", r"\)") for function in functions]
        between = map(_translate_weights, _FUNCTION.split(text))
        return "".join(map("".join, zip_longest(between, words, fillvalue=""))), functions
    parts = [part[1:-1].replace('\\"', '"') for part in re.findall(_STRING, call["parts"])]
    weights = [_read_number(number) for number in call["weights"].split(",") if number.strip()]
    weights += [1.0] * (len(parts) - len(weights))
    pairs = zip(map(_translate_weights, parts), weights, strict=False)
    return " BREAK ".join(weigh(part, weight) for part, weight in pairs), []


def _translate_weights(text: str) -> str:
    """Translate a prompt without functions, in linear time."""
    pieces: list[str] = []
    opened: list[int] = []
    for token in _TOKEN.finditer(text):
        if token["open"]:
            opened.append(len(pieces))
            pieces.append(r"\(")  # literal, unless a closing bracket follows
        elif token["close"] and opened:
            factor = _read_weight(token["close_weight"])
            pieces[opened.pop()] = "" if factor == 1 else "("
            pieces.append("" if factor == 1 else f":{format_weight(factor)})")
        elif token["close"] or token["bracket"]:
            pieces.append(f"\\{token[0]}")
        elif token["embedding"]:
            pieces.append(f"<embedding:{token['embedding']}>")
        elif token["quoted"]:
            pieces.append(weigh(token["quoted"], _read_weight(token["quoted_weight"])))
        elif token["word"]:
            pieces.append(weigh(token["word"], _read_weight(token["signs"])))
        else:
            pieces.append(token[0])
    return "".join(pieces)


def _read_weight(weight: str | None) -> float:
    """Return the factor of a weight: a number, or a row of plus or minus signs."""
    if not weight:
        return 1.0
    if weight[0] in "+-":
        return (1.1 if weight[0] == "+" else 0.9) ** min(len(weight), 1000)
    return float(weight)


def _read_number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 1.0
