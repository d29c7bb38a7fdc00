"""Keep packages that Overpaint does not use out of the processes that it starts.

diffusers and transformers import these packages wherever they are installed. That takes seconds,
and one of a wrong version makes the import of diffusers fail.
"""

import sys
from typing import Any

UNUSED_PACKAGES = ("bitsandbytes", "peft", "scipy", "sklearn", "xformers")


def hide_unused_packages() -> None:
    """Let imports of these packages fail in this process, as if they were not installed.

    The commands and the workers of a server call it. A program that imports Overpaint as a library
    keeps its packages.
    """
    modules: dict[str, Any] = sys.modules
    for name in UNUSED_PACKAGES:
        modules.setdefault(name, None)  # https://docs.python.org/3/reference/import.html
