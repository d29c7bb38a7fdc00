"""The limits that control groups (cgroups) set for this process, of version 2 and version 1.

A limit of a group holds for the groups inside it too. See "Control Group v2" and "Control Groups
version 1" in the documentation of the Linux kernel.
"""

from collections.abc import Iterator
from pathlib import Path


def read_group_files(root: Path, file: str, controller: str = "") -> Iterator[str]:
    """Yield the text of a file in each group of this process, from its own group to the top.

    Args:
        root: the folder with `proc` and `sys`.
        file: the file's name, such as `memory.max`.
        controller: the controller of version 1, such as `memory`; "" for version 2.

    Yields:
        The text, or "" for a group without the file.
    """
    top = root / "sys/fs/cgroup" / controller
    group = top / _find_group(root, controller).lstrip("/")
    for folder in (group, *group.parents):
        if folder.is_relative_to(top):
            yield _read(folder / file)


def _find_group(root: Path, controller: str) -> str:
    """Return the path of this process's group, or "" without one."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, controllers_and_path = line.partition(":")  # "4:cpu,cpuacct:/path", or "0::/path"
        controllers, _, path = controllers_and_path.partition(":")
        if controller in controllers.split(","):
            return path
    return ""


def _read(path: Path) -> str:
    try:
        return path.read_text("ascii")
    except (OSError, ValueError):
        return ""
