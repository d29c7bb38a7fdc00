"""Messages of errors are sentences: each begins with a capital letter, a name or a value."""

import ast
from collections.abc import Iterator

from overpaint import errors
from tests.docs.blocks import ROOT

KINDS = {name for name in vars(errors) if name.endswith("Error")}
NAMES = ("keypoints: ", "scheduler_config.json: ", "model_index.json: ")
"""First words that are names, and not of a sentence."""


def list_messages() -> Iterator[tuple[str, str]]:
    """Yield the place and the beginning of each message in the source."""
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
                continue
            if node.func.id not in KINDS or not node.args:
                continue
            message = node.args[-1]
            if isinstance(message, ast.JoinedStr):
                message = message.values[0]
            if isinstance(message, ast.Constant) and isinstance(message.value, str):
                yield f"{path.relative_to(ROOT)}:{node.lineno}", message.value


def test_error_messages_begin_as_sentences() -> None:
    messages = list(list_messages())
    assert len(messages) > 100
    assert [
        (place, text)
        for place, text in messages
        if text[:1].islower() and not text.startswith(NAMES)
    ] == []
