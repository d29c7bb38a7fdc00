"""Follow the links of a ComfyUI graph: {id: {class_type, inputs}}; a link is [id, slot]."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from overpaint.provenance.importers.collector import parse_json_object
from overpaint.request.fields import MAX_PROMPT_CHARS

MAX_DEPTH = 100
"""Nodes that are followed one after another to a text, or looked at for a value."""

_JOINS = re.compile(r"(?i)concat|join|append|combine|merge|StringFunction")
"""Classes of nodes that join texts, of ComfyUI and of its extensions."""

_DELIMITERS = ("delimiter", "separator", "seperator", "delim")
_PART = re.compile(r"(?i)(text|string|str|prompt|input|part)[ _]?([a-z]|\d+)?|[a-h]")
"""Names of inputs that a joining node joins, in the order of their letters and numbers."""

_HELD = ("populated_text", "value", "text", "string", "prompt", "seed", "int", "float", "number")
"""Names of inputs whose value a node passes on."""


@dataclass
class Node:
    """A node of a graph."""

    id: str
    class_type: str
    inputs: dict[str, Any]


@dataclass
class Graph:
    """A graph, and the nodes of it that were translated."""

    nodes: dict[str, Node]
    translated: set[str] = field(default_factory=set[str])
    _texts: dict[str, str | None] = field(default_factory=dict[str, str | None])

    @classmethod
    def parse(cls, text: str) -> "Graph":
        """Read a graph from JSON, and leave out other parts."""
        data = parse_json_object(text) or {}
        nodes: dict[str, Node] = {}
        for key, value in data.items():
            match value:
                case {"class_type": str(class_type), "inputs": {**inputs}}:
                    nodes[key] = Node(key, class_type, inputs)
                case _:
                    pass
        return cls(nodes)

    def get_source(self, link: Any) -> Node | None:
        """Return the node at the start of a link, or None for other values."""
        return self.nodes.get(link[0]) if is_link(link) else None

    def walk_upstream(self, *starts: str) -> Iterator[Node]:
        """Yield nodes and all nodes that feed them, each once.

        The nearest to the first node come first, then the nearest to the second that do not feed
        the first, and so on.
        """
        seen: set[str] = set()
        for start in starts:
            queue = [] if start in seen else [start]
            seen.add(start)
            for key in queue:
                if key not in self.nodes:
                    continue
                yield self.nodes[key]
                for value in self.nodes[key].inputs.values():
                    if is_link(value) and value[0] not in seen:
                        seen.add(value[0])
                        queue.append(value[0])

    def find_nearest(self, link: Any, class_pattern: str) -> Node | None:
        """Return the nearest node upstream of a link whose class starts with a pattern."""
        for node in self.walk_upstream(link[0]) if is_link(link) else ():
            if re.match(class_pattern, node.class_type):
                return node
        return None

    def read_value(self, value: Any) -> Any:
        """Return a value, or through a link the value that the nearest node holds."""
        if not is_link(value):
            return value
        for node in islice(self.walk_upstream(value[0]), MAX_DEPTH):
            for key in _HELD:
                if key in node.inputs and not is_link(node.inputs[key]):
                    self.translated.add(node.id)
                    return node.inputs[key]
        return None

    def read_text(self, value: Any, depth: int = 0) -> str | None:
        """Return a text, or through links the text that nodes hold and join."""
        if isinstance(value, str):
            return value
        node = self.get_source(value)
        if node is None or depth == MAX_DEPTH:
            return None
        if node.id not in self._texts:
            self._texts[node.id] = None  # for a link back to this node
            self._texts[node.id] = self._read_node(node, depth + 1)
        return self._texts[node.id]

    def _read_node(self, node: Node, depth: int) -> str | None:
        if _JOINS.search(node.class_type) and node.inputs.get("action", "append") == "append":
            self.translated.add(node.id)
            return self._join_parts(node, depth)
        held = [node.inputs[key] for key in _HELD if key in node.inputs]
        links = [each for each in node.inputs.values() if is_link(each)]
        texts = (self.read_text(each, depth) for each in [*held, *links])
        text = next((text for text in texts if text is not None), None)
        # A node with further texts, such as a search and a replacement, changes the text.
        if sum(isinstance(each, str) for each in node.inputs.values()) <= 1:
            self.translated.add(node.id)
        return text

    def _join_parts(self, node: Node, depth: int) -> str | None:
        names = sorted(
            (key for key in node.inputs if _PART.fullmatch(key)),
            key=lambda key: (len(key), key),  # text_2 is before text_10
        )
        given = (node.inputs[key] for key in _DELIMITERS if isinstance(node.inputs.get(key), str))
        delimiter = next(given, ", ")[:MAX_PROMPT_CHARS].replace("\\n", "\n")
        return join_bounded((self.read_text(node.inputs[name], depth) for name in names), delimiter)


def join_bounded(texts: Iterable[str | None], delimiter: str) -> str | None:
    """Join texts that are not empty until they fill a prompt; None without any.

    A link is a few bytes, and can name a long text any number of times.
    """
    parts: list[str] = []
    room = MAX_PROMPT_CHARS
    for text in texts:
        if text and room > 0:
            parts.append(text)
            room -= len(text) + len(delimiter)
    return delimiter.join(parts) if parts else None


def is_link(value: Any) -> bool:
    """Return True for [id, slot]."""
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)
