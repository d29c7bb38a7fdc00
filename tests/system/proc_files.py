"""Files as those in /proc and /sys, for tests of what a process may use."""

from pathlib import Path


def write(path: Path, text: str) -> None:
    """Write a file, and make its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
