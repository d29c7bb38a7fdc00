r"""Translate prompts in ComfyUI's syntax, which Fooocus has too, into Overpaint's.

| ComfyUI | Overpaint |
|---|---|
| `(words:1.2)`, `(words)`, `\(` | the same |
| `embedding:name`, `embedding:folder/name.pt` | `<embedding:name>` |
| `[words]`, `\` | `\[words\]`, `\\` |
"""

import re

from overpaint.provenance.importers.collector import strip_file_name

_TOKEN = re.compile(
    r"""
      (?P<escaped> \\[()] )
    | (?P<literal> [\[\]\\] )
    | (?<![\w<]) embedding: (?P<embedding> [^\s,()\[\]:<>]++ )
    """,
    re.VERBOSE,
)


def translate_comfyui_prompt(text: str) -> str:
    """Return a prompt in Overpaint's syntax."""
    return _TOKEN.sub(_translate_token, text)


def _translate_token(token: re.Match[str]) -> str:
    if token["escaped"]:
        return token[0]
    if token["literal"]:
        return f"\\{token[0]}"
    name = strip_file_name(token["embedding"])
    return f"<embedding:{name}>" if name else token[0]
