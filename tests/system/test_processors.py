"""The number of threads that compute."""

import os
from pathlib import Path

import pytest

from overpaint.system.processors import count_usable_cores, set_threads
from tests.system.proc_files import write


def test_cores_follow_the_quota_of_the_cgroup_and_its_parents(tmp_path: Path) -> None:
    free = count_usable_cores(tmp_path)
    assert 1 <= free <= (os.cpu_count() or 1)
    write(tmp_path / "proc/self/cgroup", "0::/a/b\n")
    write(tmp_path / "sys/fs/cgroup/a/b/cpu.max", "max 100000\n")
    assert count_usable_cores(tmp_path) == free
    write(tmp_path / "sys/fs/cgroup/a/cpu.max", "150000 100000\n")
    assert count_usable_cores(tmp_path) == 1
    write(tmp_path / "sys/fs/cgroup/a/cpu.max", "50000 100000\n")
    assert count_usable_cores(tmp_path) == 1


def test_cores_follow_the_quota_of_a_cgroup_of_version_1(tmp_path: Path) -> None:
    write(tmp_path / "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "100000\n")
    write(tmp_path / "sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n")
    assert count_usable_cores(tmp_path) == 1
    write(tmp_path / "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n")
    assert count_usable_cores(tmp_path) == count_usable_cores(tmp_path / "none")
    write(tmp_path / "proc/self/cgroup", "4:cpu,cpuacct:/a\n")
    write(tmp_path / "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us", "50000\n")
    write(tmp_path / "sys/fs/cgroup/cpu/a/cpu.cfs_period_us", "100000\n")
    assert count_usable_cores(tmp_path) == 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs processor affinity")
def test_cores_follow_the_affinity_of_the_process(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert count_usable_cores(tmp_path) == 1
    finally:
        os.sched_setaffinity(0, before)


def test_threads_sleep_while_they_wait_and_keep_settings_of_the_environment() -> None:
    environment: dict[str, str] = {}
    set_threads(environment=environment)
    assert environment == {
        "OMP_WAIT_POLICY": "passive",
        "OMP_NUM_THREADS": str(count_usable_cores()),
    }
    own = {"OMP_WAIT_POLICY": "active", "OMP_NUM_THREADS": "7"}
    set_threads(environment=own)
    assert own == {"OMP_WAIT_POLICY": "active", "OMP_NUM_THREADS": "7"}


def test_threads_of_an_option_replace_those_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch = pytest.importorskip("torch")
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    environment = {"OMP_NUM_THREADS": "7"}
    set_threads(3, environment)
    assert environment["OMP_NUM_THREADS"] == "3"
    assert asked == [3]
