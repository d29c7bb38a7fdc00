"""Weights on a device within a number of bytes: blocks of networks come when they run.

The weights of all networks are in the host's memory. Before a block runs, its weights are copied to
the device, and those of other blocks leave if there is no room. The arithmetic does not change, so
neither does the picture.

Blocks of networks that do not run now leave first, the one that ran longest ago before the others.
A network runs its blocks in the same order at each step. So of the network that runs, the block
that ran last leaves, since it is needed last: with room for k of n blocks, n - k are copied.
"""

import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, count
from typing import Literal

import torch
from torch import Tensor, nn

MAX_BLOCK_BYTES = 2**26
"""Bytes of a block, at most, unless a single layer has more: one block of SDXL's transformers."""

MIN_BLOCK_BYTES = 2**20
"""Bytes of a block, at least; smaller ones, such as norms, stay on the device."""

Weight = tuple[nn.Module, str, Tensor]
"""The owner, the name and the tensor in the host's memory of a weight."""

Work = Literal["encode", "step", "decode"]
"""The work of a network: to encode prompts, to take a step, or to encode and decode pictures."""


@dataclass(frozen=True)
class MemoryLimit:
    """A limit on the memory of a device.

    Attributes:
        max_bytes: the bytes of weights and of all else.
        encode_bytes: the bytes beside weights while prompts are encoded.
        step_bytes: the bytes beside weights in a step.
        decode_bytes: the bytes beside weights while a picture is decoded.
    """

    max_bytes: int
    encode_bytes: int = 0
    step_bytes: int = 0
    decode_bytes: int = 0

    def room(self, work: Work) -> int:
        """Return the bytes of weights that have room during a kind of work."""
        beside = {
            "encode": self.encode_bytes,
            "step": self.step_bytes,
            "decode": self.decode_bytes,
        }
        return self.max_bytes - beside[work]


@dataclass(eq=False)
class _Block:
    """A module whose weights come and leave together.

    Attributes:
        network: the network that it belongs to.
        weights: its weights.
        bytes: of all of them.
        users: calls that run the block now.
        last_used: the number of its latest call.
        present: whether the weights are on the device.
    """

    network: "_Network"
    weights: list[Weight]
    bytes: int
    users: int = 0
    last_used: int = 0
    present: bool = False


@dataclass(eq=False)
class _Network:
    """The blocks of a network, and the bytes of weights that have room while it runs."""

    room: int
    blocks: list[_Block] = field(default_factory=list[_Block])
    staying_bytes: int = 0


class DeviceMemory:
    """Keeps the weights of networks on a device within a number of bytes. Threads can share it.

    Attributes:
        device: the device.
        bytes: the bytes of weights that are on the device now.
        copies: how many blocks were copied to the device.
    """

    def __init__(
        self,
        device: torch.device,
        limit: MemoryLimit,
        *,
        max_block_bytes: int = MAX_BLOCK_BYTES,
        min_block_bytes: int = MIN_BLOCK_BYTES,
    ):
        """Keep weights on a device.

        Args:
            device: the device.
            limit: the bytes. A block that has no room beside the blocks in use comes all the same.
            max_block_bytes: bytes of a block, at most, unless a single layer has more.
            min_block_bytes: bytes of a block, at least; smaller ones stay on the device.
        """
        self.device = device
        self.bytes = self.copies = 0
        self._limit = limit
        self._max_block_bytes = max_block_bytes
        self._min_block_bytes = min_block_bytes
        self._networks = weakref.WeakKeyDictionary[nn.Module, _Network]()
        self._calls = count(1)
        self._lock = threading.RLock()

    def hold(self, network: nn.Module, work: Work) -> None:
        """Take charge of the weights of a network, which are in the host's memory.

        Args:
            network: its submodules are called as modules, and not by their methods.
            work: the work of the network.
        """
        held = self._networks[network] = _Network(self._limit.room(work))
        weakref.finalize(network, self._forget, held)
        for module, weights in self._split(network):
            if self.device.type == "cuda":
                weights = [_pin(*weight) for weight in weights]
            block = _Block(held, weights, sum(own.nbytes for *_, own in weights))
            if module is None or block.bytes < self._min_block_bytes:
                self._bring(block)
                held.staying_bytes += block.bytes  # no reference to its owner, the network itself
                continue
            held.blocks.append(block)
            # A weak reference, so that a network that is gone is free at once.
            found = weakref.ref(block)
            module.register_forward_pre_hook(partial(_call, self._enter, found))
            module.register_forward_hook(partial(_call, self._leave, found), always_call=True)

    def _split(self, module: nn.Module) -> Iterator[tuple[nn.Module | None, list[Weight]]]:
        """Yield the parts of a module that come and leave as a whole, with their weights.

        The part is None for weights that a module has beside those of its submodules.
        """
        if own := list(_list_weights(module, recurse=False)):
            yield None, own
        for child in module.children():
            weights = list(_list_weights(child))
            # A list of modules is not called, so nothing would bring its weights.
            is_whole = not isinstance(child, nn.ModuleList | nn.ModuleDict)
            if is_whole and (
                sum(own.nbytes for *_, own in weights) <= self._max_block_bytes
                or not any(child.children())
            ):
                yield child, weights
            else:
                yield from self._split(child)

    @property
    def held_bytes(self) -> int:
        """The bytes of all weights, on the device or not, that come and leave."""
        return sum(block.bytes for own in self._networks.values() for block in own.blocks)

    def describe(self) -> str:
        """Return a message for users: how many bytes of weights have room in a step."""
        room = max(0, self._limit.room("step"))
        return (
            f"the device has room for {room / 1e9:.1f} GB of {self.held_bytes / 1e9:.1f} GB of "
            "weights; blocks of them are copied to it when they run."
        )

    def send_home(self, network: nn.Module) -> None:
        """Remove the weights of a network from the device, for example before they change."""
        with self._lock:
            if held := self._networks.get(network):
                for block in held.blocks:
                    self._send_home(block)

    def _forget(self, held: _Network) -> None:
        """Stop counting the weights of a network that is gone."""
        with self._lock:
            present = sum(block.bytes for block in held.blocks if block.present)
            self.bytes -= held.staying_bytes + present

    def _enter(self, block: _Block) -> None:
        with self._lock:
            block.users += 1
            block.last_used = next(self._calls)
            if not block.present:
                self._make_room(block)
                self._bring(block)

    def _leave(self, block: _Block) -> None:
        with self._lock:
            block.users -= 1

    def _make_room(self, coming: _Block) -> None:
        for block in self._list_in_order_of_leaving(coming.network):
            if self.bytes + coming.bytes <= coming.network.room:
                return
            self._send_home(block)

    def _list_in_order_of_leaving(self, running: _Network) -> list[_Block]:
        held = chain.from_iterable(own.blocks for own in self._networks.values())
        present = [block for block in held if block.present and not block.users]
        others = [block for block in present if block.network is not running]
        own = [block for block in present if block.network is running]
        return [
            *sorted(others, key=lambda block: block.last_used),
            *sorted(own, key=lambda block: -block.last_used),
        ]

    def _bring(self, block: _Block) -> None:
        for owner, leaf, tensor in block.weights:
            copy = tensor.detach().to(self.device, copy=True, non_blocking=True)
            _set(owner, leaf, copy)
        block.present = True
        self.bytes += block.bytes
        self.copies += 1

    def _send_home(self, block: _Block) -> None:
        if block.present:
            for owner, leaf, tensor in block.weights:
                _set(owner, leaf, tensor)
            block.present = False
            self.bytes -= block.bytes


def _call(function: Callable[[_Block], None], found: "weakref.ref[_Block]", *_: object) -> None:
    """Call a function from a hook, which passes the inputs of the module too."""
    if block := found():
        function(block)


def _list_weights(module: nn.Module, *, recurse: bool = True) -> Iterator[Weight]:
    for owner in module.modules() if recurse else (module,):
        for leaf, own in owner.named_parameters(recurse=False):
            yield owner, leaf, own
        for leaf, own in owner.named_buffers(recurse=False):
            yield owner, leaf, own


def _set(owner: nn.Module, leaf: str, tensor: Tensor) -> None:
    if isinstance(getattr(owner, leaf), nn.Parameter) and not isinstance(tensor, nn.Parameter):
        tensor = nn.Parameter(tensor, requires_grad=False)
    setattr(owner, leaf, tensor)


def _pin(owner: nn.Module, leaf: str, tensor: Tensor) -> Weight:
    """Move a weight to memory from which a GPU copies without the CPU, and return it."""
    _set(owner, leaf, tensor.detach().pin_memory())
    return owner, leaf, getattr(owner, leaf)
