"""Bytes, steps and the time that is left on a terminal."""

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from overpaint.cli.progress import Bar, describe_bytes, describe_seconds, show_loading
from overpaint.events import Step
from overpaint.models.files.digests import compute_sha256
from overpaint.models.files.safetensors_io import open_weights
from overpaint.nn.blocks import ResnetBlock
from overpaint.nn.forward_progress import watch_calls
from overpaint.system.progress import ByteCount, Estimate, add_bytes, expect_bytes, watch_bytes


class Clock:
    """Seconds that a test sets."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=120, force_interactive=True)


def shown_on(console: Console) -> str:
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_estimate_counts_down_between_updates(clock: Clock) -> None:
    estimate = Estimate(clock)
    assert estimate.seconds_left is None
    clock.now += 10
    estimate.update(0)
    assert estimate.seconds_left is None
    estimate.update(0.25)
    assert estimate.seconds_left == pytest.approx(30)
    clock.now += 12
    assert estimate.seconds_left == pytest.approx(18)
    clock.now += 100
    assert estimate.seconds_left == 0


def test_bar_has_an_estimate_within_the_first_step(clock: Clock, console: Console) -> None:
    bar = Bar(console, 1, disable=False, clock=clock)
    with bar.painting(0, 20):
        clock.now += 3
        bar.show_calls(0.5)
    assert ", 0:01:57 left" in shown_on(console)  # 20 steps of 6 seconds, less 3


def test_bar_estimates_the_time_of_all_pictures(clock: Clock, console: Console) -> None:
    bar = Bar(console, 3, disable=False, clock=clock)
    with bar.painting(0, 4):
        clock.now += 8
        bar.show(Step(2, 2, 1.0))
        bar.show_calls(0.1)  # the first step is done, so the count of steps decides
    with bar.painting(1, 2):
        clock.now += 8
        bar.show(Step(2, 2, 1.0))
    shown = shown_on(console)
    assert "painting picture 1 of 3:" in shown
    assert ", 0:00:08 left" in shown


def test_bar_that_is_disabled_shows_nothing(clock: Clock, console: Console) -> None:
    bar = Bar(console, 1, disable=True, clock=clock)
    with bar.painting(0, 4):
        bar.show(Step(1, 4, 1.0))
    assert not bar.visible
    assert shown_on(console) == ""


def test_loading_shows_bytes_and_the_time_that_is_left(clock: Clock, console: Console) -> None:
    with show_loading(console, "loading [b]sdxl[/b]", clock):
        clock.now += 50  # imports
        expect_bytes(6_900_000_000)
        clock.now += 4
        add_bytes(2_300_000_000)
    shown = shown_on(console)
    assert "loading [b]sdxl[/b] 2.3 GB of 6.9 GB" in shown
    assert ", 0:00:08 left" in shown


def test_descriptions_of_unknown_amounts_are_empty() -> None:
    assert describe_seconds(None) == ""
    assert describe_bytes(ByteCount()) == ""
    assert describe_bytes(ByteCount(2000)) == "2.0 kB"
    assert describe_bytes(ByteCount(3000, 2000)) == "2.0 kB of 2.0 kB"


def test_readers_report_their_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.ones(10, 10), "b": torch.ones(3, dtype=torch.float16)}, path)
    seen: list[int] = []
    with watch_bytes(lambda count: seen.append(count.done)):
        tensors = open_weights(path).tensors
        for tensor in tensors.values():
            tensor.read()
        assert seen[-1] == sum(tensor.file_bytes for tensor in tensors.values()) == 406
        compute_sha256((path,))
    assert seen[-1] == 406 + path.stat().st_size
    tensors["a"].read()  # nobody watches
    assert len(seen) == 4


def test_calls_of_a_network_are_counted_by_blocks() -> None:
    class Block(ResnetBlock):
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)

        def forward(self, x: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
            return x + temb

    network = torch.nn.ModuleList([Block(), Block()])
    seen: list[float] = []
    one = torch.ones(1)
    with watch_calls(network, seen.append):
        for block in network:
            block(one, one)
    network[0](one, one)
    assert seen == [0.5, 1.0]
