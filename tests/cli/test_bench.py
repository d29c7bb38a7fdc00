"""`overpaint bench` with the miniature, and who reads what it writes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest

from overpaint.cli.main import main
from overpaint.engine import calibrate
from overpaint.engine.profile import Profile


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """As few calls as may be."""
    quick = partial(calibrate.calls, min_calls=1, min_seconds=0.0)
    monkeypatch.setattr(calibrate, "calls", quick)


def code(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0)


SMALL: Sequence[str] = ("--size", "64", "--size", "96x64", "--device", "cpu", "--dtype", "fp32")


def test_bench_output_is_a_profile_that_serve_accepts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code("bench", *SMALL, "-o", str(tmp_path / "profile.json")) == 0
    profile = Profile.read(tmp_path / "profile.json")
    assert (profile.model, profile.dtype, profile.device) == ("miniature", "float32", "cpu")
    assert list(profile.measured) == [(8, 8), (8, 12)]
    assert all(list(times)[:2] == [1, 2] for times in profile.measured.values())
    shown = capsys.readouterr()
    assert shown.out.startswith("miniature in float32 on cpu\n64x64: steps of up to ")
    assert f"96x64: steps of up to {profile.cap(8, 12)} rows" in shown.out
    for (height, width), times in profile.measured.items():
        for rows in times:
            assert f"{8 * width}x{8 * height}, {rows} rows: " in shown.err
    seconds = profile.measured[8, 8][2]
    row = rf"^ +2 +{seconds:.4f} +{seconds / 2:.4f}$"
    assert re.search(row, shown.out, re.MULTILINE)


def test_bench_out_of_memory_reports_the_size(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def found(*_: object) -> Iterator[calibrate.Call]:
        yield calibrate.Call((8, 8), 1, 0.5)
        yield calibrate.Call((8, 8), 2, None)

    monkeypatch.setattr(calibrate, "calls", found)
    assert code("bench", *SMALL[:2]) == 0
    assert "64x64, 2 rows: out of memory" in capsys.readouterr().err


@pytest.mark.parametrize("size", ["small", "64x", "x64", "100"])
def test_bench_with_an_invalid_size_is_rejected(
    size: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code("bench", "--size", size) == 2
    assert "overpaint: --size: " in capsys.readouterr().err


def test_serve_with_a_profile_of_another_model_is_rejected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "profile.json"
    Profile("cpu", {}, "sdxl", "float32").write(path)
    assert code("serve", "--model", "miniature", "--profile", str(path)) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"overpaint: --profile: {path} was measured with 'sdxl'")
