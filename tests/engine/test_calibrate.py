"""Calibration with networks whose times are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from overpaint.diffusion.conditioning import Row
from overpaint.diffusion.unet import get_network
from overpaint.engine.calibrate import MIN_CALLS, Call, calls
from overpaint.engine.profile import Profile
from overpaint.errors import DeviceError, ModelError, RequestError
from overpaint.models.model import Model
from tests.tiny import tiny_model, tiny_refiner


@dataclass
class Timed:
    """A network with given times of its calls, on a separate clock.

    Attributes:
        seconds: returns the seconds of a call from its rows and its number.
        most: largest number of rows that fit into memory.
    """

    seconds: Callable[[int, int], float]
    most: int = 1000
    now: float = 0.0
    calls: list[int] = field(default_factory=list[int])

    def clock(self) -> float:
        return self.now

    def predict(self, rows: Sequence[Row]) -> Tensor:
        if len(rows) > self.most:
            raise torch.OutOfMemoryError("tried to allocate 2 GiB")
        self.now += self.seconds(len(rows), self.calls.count(len(rows)))
        self.calls.append(len(rows))
        return torch.cat([row.x for row in rows])


@pytest.fixture
def model() -> Model:
    return tiny_model()


def measure_calls(monkeypatch: pytest.MonkeyPatch, model: Model, timed: Timed) -> list[Call]:
    monkeypatch.setattr(get_network(model), "predict", timed.predict)
    return list(calls(model, 128, 64, timed.clock))


def make_profile(calls: list[Call]) -> Profile:
    return Profile("cpu", {(8, 16): {call.rows: call.seconds for call in calls if call.seconds}})


def test_calibrate_shared_costs_measures_all_row_counts(
    monkeypatch: pytest.MonkeyPatch, model: Model
) -> None:
    calls = measure_calls(monkeypatch, model, Timed(lambda rows, _: 1.0 + rows / 16))
    assert [call.rows for call in calls] == [1, 2, 4, 8, 16, 32]
    assert [call.seconds for call in calls] == [1 + call.rows / 16 for call in calls]
    assert {call.shape for call in calls} == {(8, 16)}
    assert make_profile(calls).cap(8, 16) == 32


def test_calibrate_small_gain_stops_early(monkeypatch: pytest.MonkeyPatch, model: Model) -> None:
    calls = measure_calls(monkeypatch, model, Timed(lambda rows, _: max(1.0, rows / 4)))
    assert [call.rows for call in calls] == [1, 2, 4, 8]
    assert make_profile(calls).cap(8, 16) == 4


def test_calibrate_no_gain_still_measures_two_rows(
    monkeypatch: pytest.MonkeyPatch, model: Model
) -> None:
    calls = measure_calls(monkeypatch, model, Timed(lambda rows, _: 0.4 if rows == 1 else 1.0))
    assert [call.rows for call in calls] == [1, 2, 4, 8, 16, 32]
    assert make_profile(calls).cap(8, 16) == 32
    calls = measure_calls(monkeypatch, model, Timed(lambda rows, _: float(rows)))
    assert [call.rows for call in calls] == [1, 2, 4]
    assert make_profile(calls).cap(8, 16) == 2


def test_calibrate_out_of_memory_stops(monkeypatch: pytest.MonkeyPatch, model: Model) -> None:
    calls = measure_calls(monkeypatch, model, Timed(lambda rows, _: 1.0, most=4))
    assert [(call.rows, call.seconds) for call in calls] == [(1, 1), (2, 1), (4, 1), (8, None)]
    assert make_profile(calls).cap(8, 16) == 4


def test_calibrate_no_memory_for_one_row_raises(
    monkeypatch: pytest.MonkeyPatch, model: Model
) -> None:
    with pytest.raises(DeviceError, match=r"128x64.* smaller"):
        measure_calls(monkeypatch, model, Timed(lambda rows, _: 1.0, most=0))


def test_calibrate_outliers_do_not_change_the_median(
    monkeypatch: pytest.MonkeyPatch, model: Model
) -> None:
    timed = Timed(lambda rows, number: {0: 60.0, 2: 9.0}.get(number, 1.0))
    calls = measure_calls(monkeypatch, model, timed)
    assert {call.seconds for call in calls} == {1.0}
    assert timed.calls.count(1) == 1 + MIN_CALLS


def test_calibrate_short_calls_are_repeated(monkeypatch: pytest.MonkeyPatch, model: Model) -> None:
    timed = Timed(lambda rows, _: rows / 128)
    measure_calls(monkeypatch, model, timed)
    assert timed.calls.count(1) == 1 + 128
    assert timed.calls.count(2) == 1 + 64


def test_calibrate_invalid_size_raises(model: Model) -> None:
    with pytest.raises(RequestError, match="width"):
        list(calls(model, 100, 64))
    with pytest.raises(ModelError, match="cannot paint by itself"):
        list(calls(tiny_refiner(), 64, 64))


def test_calibrate_calls_the_real_network(model: Model) -> None:
    first = next(iter(calls(model, 64, 64)))
    assert (first.shape, first.rows) == ((8, 8), 1)
    assert first.seconds
    assert first.seconds > 0
