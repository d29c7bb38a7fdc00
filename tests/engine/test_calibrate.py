"""What steps take, measured on networks whose times are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from overpaint.diffusion.conditioning import Row
from overpaint.diffusion.unet import get_network
from overpaint.engine.calibrate import FEWEST, Call, calls
from overpaint.engine.profile import Profile
from overpaint.errors import DeviceError, ModelError, RequestError
from overpaint.models.model import Model
from tests.tiny import tiny_model, tiny_refiner


@dataclass
class Timed:
    """A network whose calls take as long as they are to, on a clock of its own.

    Attributes:
        seconds: of a call of so many rows, the n-th one of them.
        most: rows that there is memory for.
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


def measured(monkeypatch: pytest.MonkeyPatch, model: Model, timed: Timed) -> list[Call]:
    monkeypatch.setattr(get_network(model), "predict", timed.predict)
    return list(calls(model, 128, 64, timed.clock))


def profiled(found: list[Call]) -> Profile:
    return Profile("cpu", {(8, 16): {call.rows: call.seconds for call in found if call.seconds}})


def test_rows_that_share_much(monkeypatch: pytest.MonkeyPatch, model: Model) -> None:
    found = measured(monkeypatch, model, Timed(lambda rows, _: 1.0 + rows / 16))
    assert [call.rows for call in found] == [1, 2, 4, 8, 16, 32]
    assert [call.seconds for call in found] == [1 + call.rows / 16 for call in found]
    assert {call.shape for call in found} == {(8, 16)}
    assert profiled(found).cap(8, 16) == 32


def test_it_ends_where_more_rows_bring_too_little(
    monkeypatch: pytest.MonkeyPatch, model: Model
) -> None:
    found = measured(monkeypatch, model, Timed(lambda rows, _: max(1.0, rows / 4)))
    assert [call.rows for call in found] == [1, 2, 4, 8]
    assert profiled(found).cap(8, 16) == 4


def test_a_picture_has_two_rows_anyway(monkeypatch: pytest.MonkeyPatch, model: Model) -> None:
    found = measured(monkeypatch, model, Timed(lambda rows, _: 0.4 if rows == 1 else 1.0))
    assert [call.rows for call in found] == [1, 2, 4, 8, 16, 32]
    assert profiled(found).cap(8, 16) == 32
    found = measured(monkeypatch, model, Timed(lambda rows, _: float(rows)))
    assert [call.rows for call in found] == [1, 2, 4]
    assert profiled(found).cap(8, 16) == 2


def test_it_ends_where_memory_does(monkeypatch: pytest.MonkeyPatch, model: Model) -> None:
    found = measured(monkeypatch, model, Timed(lambda rows, _: 1.0, most=4))
    assert [(call.rows, call.seconds) for call in found] == [(1, 1), (2, 1), (4, 1), (8, None)]
    assert profiled(found).cap(8, 16) == 4


def test_too_little_for_one_row(monkeypatch: pytest.MonkeyPatch, model: Model) -> None:
    with pytest.raises(DeviceError, match=r"128x64.* smaller"):
        measured(monkeypatch, model, Timed(lambda rows, _: 1.0, most=0))


def test_the_first_call_and_outliers_do_not_count(
    monkeypatch: pytest.MonkeyPatch, model: Model
) -> None:
    timed = Timed(lambda rows, number: {0: 60.0, 2: 9.0}.get(number, 1.0))
    found = measured(monkeypatch, model, timed)
    assert {call.seconds for call in found} == {1.0}
    assert timed.calls.count(1) == 1 + FEWEST


def test_short_calls_are_made_more_often(monkeypatch: pytest.MonkeyPatch, model: Model) -> None:
    timed = Timed(lambda rows, _: rows / 128)
    measured(monkeypatch, model, timed)
    assert timed.calls.count(1) == 1 + 128
    assert timed.calls.count(2) == 1 + 64


def test_what_cannot_be_measured(model: Model) -> None:
    with pytest.raises(RequestError, match="width"):
        list(calls(model, 100, 64))
    with pytest.raises(ModelError, match="cannot paint by itself"):
        list(calls(tiny_refiner(), 64, 64))


def test_the_real_network_is_called(model: Model) -> None:
    first = next(iter(calls(model, 64, 64)))
    assert (first.shape, first.rows) == ((8, 8), 1)
    assert first.seconds
    assert first.seconds > 0
