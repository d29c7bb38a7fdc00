"""The parts of the benchmark on a GPU: each result is kept, and a run can be continued."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Parts that were measured; "memory" fails."""
    names: list[str] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        name = command[-1]
        names.append(name)
        if name == "memory":
            raise subprocess.CalledProcessError(1, command)
        return subprocess.CompletedProcess(command, 0, f'a line\n{{"ratio": {len(names)}}}\n')

    monkeypatch.setattr(subprocess, "run", run)
    return names


def test_results_before_a_failure_are_kept_and_not_measured_again(
    tmp_path: Path, measured: list[str]
) -> None:
    path = tmp_path / "results" / "gpu.json"
    with pytest.raises(subprocess.CalledProcessError):
        gpu.run_parts(["eager", "memory", "compiled"], path, again=False)
    assert json.loads(path.read_text())["eager"]["ratio"] == 1
    result = gpu.run_parts(["eager", "compiled"], path, again=False)
    assert measured == ["eager", "memory", "compiled"]
    assert result.keys() == {"eager", "compiled"}
    assert "torch" in result["eager"]["versions"]


def test_part_can_be_measured_again(tmp_path: Path, measured: list[str]) -> None:
    path = tmp_path / "gpu.json"
    gpu.run_parts(["eager"], path, again=False)
    assert gpu.run_parts(["eager"], path, again=True)["eager"]["ratio"] == 2
    assert measured == ["eager", "eager"]
