"""The memory that this process may use."""

from pathlib import Path

from overpaint.system.memory import read_total_memory
from tests.system.proc_files import write


def test_total_memory_follows_the_cgroup_and_its_parents(tmp_path: Path) -> None:
    machine = read_total_memory(tmp_path)
    assert machine > 2**26
    write(tmp_path / "proc/self/cgroup", "0::/a/b\n")
    write(tmp_path / "sys/fs/cgroup/a/b/memory.max", "max\n")
    assert read_total_memory(tmp_path) == machine
    write(tmp_path / "sys/fs/cgroup/a/memory.max", f"{2**26}\n")
    assert read_total_memory(tmp_path) == 2**26


def test_total_memory_follows_a_cgroup_of_version_1(tmp_path: Path) -> None:
    write(tmp_path / "proc/self/cgroup", "5:cpu,memory:/a\n0::/\n")
    write(tmp_path / "sys/fs/cgroup/memory/memory.limit_in_bytes", f"{2**63 - 4096}\n")
    write(tmp_path / "sys/fs/cgroup/memory/a/memory.limit_in_bytes", f"{2**26}\n")
    assert read_total_memory(tmp_path) == 2**26
