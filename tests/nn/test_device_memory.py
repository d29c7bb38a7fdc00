"""Weights come to a device in blocks, and the results stay the same."""

import threading

import pytest
import torch
from torch import Tensor, nn

from overpaint.nn.device_memory import DeviceMemory, MemoryLimit
from overpaint.nn.memory_meter import MemoryMeter
from overpaint.nn.weight_blocks import Fetch

CPU = torch.device("cpu")
LAYER_BYTES = 4 * (64 * 64 + 64)


class Tower(nn.Module):
    """Layers in a list, and one small weight beside them."""

    def __init__(self, layers: int = 6):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x)) * self.scale
        return x


def make_tower() -> Tower:
    return Tower().requires_grad_(False).eval()


def hold(network: nn.Module, layers: float, beside: int = 0) -> DeviceMemory:
    """Keep a number of the network's layers on the device."""
    limit = MemoryLimit(int(layers * LAYER_BYTES) + 4, step_bytes=beside)
    memory = DeviceMemory(CPU, limit, min_block_bytes=16)
    memory.hold(network, "step")
    return memory


@pytest.mark.parametrize("layers", [1, 2.5, 6])
def test_result_is_the_same_with_few_layers_on_the_device(layers: float) -> None:
    tower, x = make_tower(), torch.randn(2, 64)
    expected = tower(x)
    memory = hold(tower, layers)
    for _ in range(3):
        assert torch.equal(tower(x), expected)
    assert memory.bytes <= layers * LAYER_BYTES + 4


def test_weights_on_the_device_stay_within_the_limit() -> None:
    tower, x = make_tower(), torch.randn(2, 64)
    with MemoryMeter(CPU) as meter:
        hold(tower, 2)
        tower(x)
    assert 2 * LAYER_BYTES <= meter.peak < 2.2 * LAYER_BYTES


def test_first_layers_stay_for_the_next_step() -> None:
    tower = make_tower()
    memory = hold(tower, 4)
    tower(torch.zeros(1, 64))
    first = memory.copies
    assert first == 7  # six layers and the weight beside them
    tower(torch.zeros(1, 64))
    # As few as possible: there is room for four of six.
    assert memory.copies - first == 2


def test_network_that_does_not_run_leaves_first() -> None:
    one, other = make_tower(), make_tower()
    memory = DeviceMemory(CPU, MemoryLimit(6 * LAYER_BYTES + 8), min_block_bytes=16)
    memory.hold(one, "encode")
    memory.hold(other, "decode")
    one(torch.zeros(1, 64))
    other(torch.zeros(1, 64))
    copies = memory.copies
    other(torch.zeros(1, 64))
    assert memory.copies == copies


def test_network_leaves_room_for_what_it_needs_beside_weights() -> None:
    tower = make_tower()
    memory = hold(tower, 6, beside=4 * LAYER_BYTES)
    tower(torch.zeros(1, 64))
    assert memory.bytes <= 2 * LAYER_BYTES + 4


def test_next_layer_comes_while_one_runs() -> None:
    tower = make_tower()
    memory = hold(tower, 2)
    tower(torch.zeros(1, 64))  # from now on their order is known
    began: list[bool] = []
    memory.fetcher = Spy(began)
    tower(torch.zeros(1, 64))
    # Only the first layer, for which nothing ran before, is not on its way.
    assert began.count(False) <= 1
    assert began.count(True) >= 5
    assert memory.bytes <= 2 * LAYER_BYTES + 4


class Spy:
    """Fetches at once, and notes whether that was ahead."""

    def __init__(self, began: list[bool]):
        self._began = began

    def begin(self, fetch: Fetch, *, ahead: bool) -> Fetch:
        self._began.append(ahead)
        made = fetch()
        return lambda: made


class Failing:
    """Fails once to fetch ahead."""

    def __init__(self) -> None:
        self.failed = False

    def begin(self, fetch: Fetch, *, ahead: bool) -> Fetch:
        if not ahead or self.failed:
            return fetch
        self.failed = True

        def fail() -> list[Tensor]:
            raise OSError("the disk failed")

        return fail


def test_layer_that_could_not_be_fetched_fails_one_call() -> None:
    tower, x = make_tower(), torch.randn(2, 64)
    expected = tower(x)
    memory = hold(tower, 2)
    tower(x)
    memory.fetcher = Failing()
    with pytest.raises(OSError, match="disk"):
        tower(x)
    assert torch.equal(tower(x), expected)
    assert memory.bytes <= 2 * LAYER_BYTES + 4


def test_weight_changes_when_it_comes_and_returns_to_what_it_was() -> None:
    tower, x = make_tower(), torch.randn(2, 64)
    expected = tower(x)
    memory = hold(tower, 3)
    tower(x)
    weights = [memory.find_weight(tower, layer, "weight") for layer in tower.layers]
    for own in weights:
        assert own
        own.set_change(torch.zeros_like)
    assert not torch.equal(tower(x), expected)
    for own in weights:
        assert own
        own.set_change(None)
    assert torch.equal(tower(x), expected)
    assert memory.find_weight(tower, tower, "scale") is None  # it is always on the device


def test_readers_return_weights_that_are_away_and_others() -> None:
    tower = make_tower()
    values = {name: own.clone() for name, own in tower.state_dict().items()}
    readers = hold(tower, 1).list_readers(tower)
    assert readers.keys() == values.keys()
    assert all(torch.equal(readers[name](), own) for name, own in values.items())


def test_changed_weights_come_after_they_were_sent_home() -> None:
    tower, x = make_tower(), torch.randn(1, 64)
    memory = hold(tower, 6)
    tower(x)
    memory.send_home(tower)
    assert memory.bytes == 4
    for layer in tower.layers:
        for weight in layer.parameters():
            weight.zero_()
    assert not tower(x).any()


def test_layer_that_another_thread_uses_stays() -> None:
    tower, x = make_tower(), torch.randn(2, 64)
    expected = tower(x)
    memory = hold(tower, 1)
    found: list[Tensor] = []
    threads = [threading.Thread(target=lambda: found.append(tower(x))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert all(torch.equal(own, expected) for own in found)
    tower(x)
    assert memory.bytes <= LAYER_BYTES + 4


def test_layer_that_fails_can_leave() -> None:
    tower = make_tower()
    memory = hold(tower, 1)
    with pytest.raises(RuntimeError, match="shapes"):
        tower(torch.zeros(1, 63))
    tower(torch.zeros(1, 64))
    assert memory.bytes <= LAYER_BYTES + 4


def test_network_that_is_gone_takes_no_room() -> None:
    memory = DeviceMemory(CPU, MemoryLimit(6 * LAYER_BYTES), min_block_bytes=16)
    tower = make_tower()
    memory.hold(tower, "step")
    tower(torch.zeros(1, 64))
    assert memory.bytes > 4
    del tower
    assert memory.bytes == 0
    assert memory.held_bytes == 0
