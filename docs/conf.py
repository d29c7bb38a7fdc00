"""Sphinx configuration: `make docs` builds the site into `build/docs`."""

import sys
from importlib.metadata import version as installed_version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from docs.generate import write_pages  # noqa: E402

write_pages()

project = "Overpaint"
author = "Overpaint's authors"
release = version = installed_version("overpaint")

extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}

myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
nitpicky = True

html_theme = "furo"
html_title = "Overpaint"
html_show_copyright = False  # The license is on the page "Licenses".
