"""Blocks of weights that come to a device and leave it.

`device_memory` decides when they do.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

Work = Literal["encode", "step", "decode"]
"""The work of a network: to encode prompts, to take a step, or to encode and decode pictures."""

Change = Callable[[Tensor], Tensor]
"""Returns the changed value of a weight, such as one with a LoRA."""

Fetch = Callable[[], list[Tensor]]
"""Returns the weights of a block on the device."""


class Home(Protocol):
    """Where a weight is while it is not on the device."""

    @property
    def resting(self) -> Tensor:
        """The value in the module until it comes. It has the weight's shape and dtype."""
        ...

    def read(self) -> Tensor:
        """Return the value in the host's memory."""
        ...


class HostHome:
    """The host's memory."""

    def __init__(self, weight: Tensor, device: torch.device):
        """Keep a weight; for a GPU, in memory from which it copies without the CPU."""
        self.resting = weight
        if device.type == "cuda":
            home = weight.detach().cpu().pin_memory()
            is_parameter = isinstance(weight, nn.Parameter)
            self.resting = nn.Parameter(home, requires_grad=False) if is_parameter else home

    def read(self) -> Tensor:
        """Return the value itself."""
        return self.resting


@dataclass(eq=False)
class Weight:
    """A weight of a block.

    Attributes:
        owner: the module that has it.
        leaf: its name there.
        home: where it is while it is not on the device.
        change: changes it when it comes.
    """

    owner: nn.Module
    leaf: str
    home: Home
    change: Change | None = None

    def fetch(self, device: torch.device) -> Tensor:
        """Return the value on a device, as a separate copy."""
        value = self.home.read()
        is_kept = value is self.home.resting
        value = value.detach().to(device, copy=is_kept, non_blocking=True)
        return self.change(value) if self.change else value

    def set(self, value: Tensor) -> None:
        """Set the value in the module."""
        is_parameter = isinstance(getattr(self.owner, self.leaf), nn.Parameter)
        if is_parameter and not isinstance(value, nn.Parameter):
            value = nn.Parameter(value, requires_grad=False)
        setattr(self.owner, self.leaf, value)


@dataclass(eq=False)
class Block:
    """A module whose weights come and leave together.

    Attributes:
        network: the network that it belongs to.
        weights: its weights.
        users: calls that run the block now.
        last_used: the number of its latest call.
        present: whether the weights are on the device.
        coming: waits for weights that are on their way to the device.
        following: the block that ran after this one the last time.
        bytes: of all weights.
    """

    network: "Network"
    weights: list[Weight]
    users: int = 0
    last_used: int = 0
    present: bool = False
    coming: Fetch | None = None
    following: "Block | None" = None

    def __post_init__(self) -> None:
        self.bytes = sum(own.home.resting.nbytes for own in self.weights)

    @property
    def takes_room(self) -> bool:
        """True if the weights are on the device or on their way to it."""
        return self.present or self.coming is not None

    def fetch(self, device: torch.device) -> list[Tensor]:
        """Return the weights on a device."""
        return [own.fetch(device) for own in self.weights]

    def receive(self) -> None:
        """Wait for the weights that are coming, and set them in the module."""
        assert self.coming
        receive, self.coming = self.coming, None
        for own, value in zip(self.weights, receive(), strict=True):
            own.set(value)
        self.present = True

    def rest(self) -> None:
        """Leave the device."""
        if self.coming:  # nothing may still be written to memory that becomes free
            with suppress(Exception):
                self.receive()
        for own in self.weights:
            own.set(own.home.resting)
        self.present, self.coming = False, None


@dataclass(eq=False)
class Network:
    """The blocks of a network.

    Attributes:
        work: the work of the network.
        blocks: its blocks.
        places: the block of each weight, and the weight, by the id of its owner and its name there.
        staying_bytes: the bytes of its weights that are always on the device.
        latest: the block that ran last.
    """

    work: Work
    blocks: list[Block] = field(default_factory=list[Block])
    places: dict[tuple[int, str], tuple[Block, Weight]] = field(
        default_factory=dict[tuple[int, str], tuple[Block, Weight]]
    )
    staying_bytes: int = 0
    latest: Block | None = None


class Fetcher(Protocol):
    """Fetches weights while the device goes on."""

    def begin(self, fetch: Fetch, *, ahead: bool) -> Fetch:
        """Begin to fetch weights.

        Args:
            fetch: fetches them.
            ahead: whether they are not needed yet.

        Returns:
            A function that waits for the weights and returns them.
        """
        ...


class ThreadFetcher:
    """Fetches weights in a thread."""

    def __init__(self) -> None:
        """Start no thread yet."""
        self._executor = ThreadPoolExecutor(1, "weights")

    def begin(self, fetch: Fetch, *, ahead: bool) -> Fetch:
        """Begin to fetch weights, in the thread if they are not needed yet."""
        return self._executor.submit(fetch).result if ahead else fetch


class StreamFetcher:
    """Fetches weights on a stream of a GPU beside the main one.

    The memory of all weights comes from this stream, so that it is never mixed with that of
    activations.
    """

    def __init__(self, device: torch.device):
        """Make a stream."""
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def begin(self, fetch: Fetch, *, ahead: bool) -> Fetch:
        """Begin to fetch weights; see `Fetcher.begin`."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            made = fetch()
            done = self._stream.record_event()

        def receive() -> list[Tensor]:
            running = torch.cuda.current_stream(self._device)
            running.wait_event(done)
            for own in made:
                own.record_stream(running)
            return made

        return receive
