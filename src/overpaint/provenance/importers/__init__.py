"""Read the settings that other programs write into pictures.

A program's format is one module and one row of `READERS`.
"""

from collections.abc import Callable
from dataclasses import dataclass

from overpaint.provenance.importers.a1111 import read_a1111
from overpaint.provenance.importers.collector import ImportedSettings
from overpaint.provenance.importers.comfyui.reader import read_comfyui
from overpaint.provenance.importers.fooocus import read_fooocus
from overpaint.provenance.importers.invokeai import read_invokeai
from overpaint.provenance.importers.novelai import read_novelai
from overpaint.provenance.importers.swarmui import read_swarmui
from overpaint.provenance.picture_texts import GRAPH_KEYS, SETTINGS_KEYS, PictureTexts


@dataclass(frozen=True)
class TextReader:
    """A reader of one text of a picture."""

    read: Callable[[str], ImportedSettings | None]
    """Reads a text; returns None if it is in another format."""

    keys: tuple[str, ...]
    """Keys of the texts in which the program's settings can be."""

    def __call__(self, texts: PictureTexts) -> ImportedSettings | None:
        """Read the first text that is in the format."""
        given = (texts.by_key[key] for key in self.keys if key in texts.by_key)
        return next(filter(None, map(self.read, given)), None)


READERS: tuple[Callable[[PictureTexts], ImportedSettings | None], ...] = (
    TextReader(read_invokeai, ("invokeai_metadata",)),
    TextReader(read_swarmui, SETTINGS_KEYS),
    TextReader(read_fooocus, SETTINGS_KEYS),
    TextReader(read_a1111, SETTINGS_KEYS),
    TextReader(read_comfyui, GRAPH_KEYS),
    read_novelai,
)
"""The readers in their order. Nodes of ComfyUI that write A1111's text write the graph too."""
