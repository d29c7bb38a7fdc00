"""Make the README's links absolute in the package's metadata: a registry has no files beside it."""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

RELATIVE_LINK = re.compile(r"(?P<image>!?)(?P<label>\[[^\]]*\])\((?P<path>(?!https?:|#)[^)\s]+)\)")


class ReadmeHook(MetadataHookInterface):
    """Fills in `readme` from README.md, and `urls` must name the repository as "Source"."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set the README of the metadata."""
        text = Path(self.root, "README.md").read_text("utf-8")
        made = make_links_absolute(text, metadata["urls"]["Source"])
        metadata["readme"] = {"content-type": "text/markdown", "text": made}


def make_links_absolute(text: str, repository: str) -> str:
    """Return Markdown whose links lead to the files of a repository.

    Args:
        text: the Markdown.
        repository: the address of the repository, in GitHub's form.
    """

    def link(found: re.Match[str]) -> str:
        kind = "raw" if found["image"] else "blob"
        return f"{found['image']}{found['label']}({repository}/{kind}/HEAD/{found['path']})"

    return RELATIVE_LINK.sub(link, text)
