"""Weights on a device within a number of bytes: blocks of networks come when they run.

The weights of all networks are in the host's memory or in their files. Before a block runs, its
weights come to the device, and those of other blocks leave if there is no room. The arithmetic does
not change, so neither does the picture.

Blocks of networks that do not run now leave first, the one that ran longest ago before the others.
A network runs its blocks in the same order at each step. So of the network that runs, the block
that ran last leaves, since it is needed last. While a block runs, the next one is on its way.
"""

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, count

import torch
from torch import Tensor, nn

from overpaint.nn.weight_blocks import (
    Block,
    Change,
    Fetcher,
    Home,
    HostHome,
    Network,
    StreamFetcher,
    ThreadFetcher,
    Weight,
    Work,
)
from overpaint.system.malloc import trim_heap

MAX_BLOCK_BYTES = 2**26
"""Bytes of a block, at most, unless a single layer has more: one block of SDXL's transformers."""

MIN_BLOCK_BYTES = 2**20
"""Bytes of a block, at least; smaller ones, such as norms, stay on the device."""

TRIM_INTERVAL_BYTES = 2**27
"""Bytes of weights that leave the CPU between two calls of `trim_heap`."""

NamedWeight = tuple[str, nn.Module, str, Tensor]
"""The name of a weight in its network, its owner, its name there, and its value."""


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


class DeviceMemory:
    """Keeps the weights of networks on a device within a number of bytes. Threads can share it.

    Attributes:
        device: the device.
        reads_files: whether weights are in their files while they are not on the device. Else they
            are in the host's memory.
        bytes: the bytes of weights that are on the device now.
        copies: how many blocks came to the device.
        fetcher: brings weights, ahead of their time if there is room.
    """

    def __init__(
        self,
        device: torch.device,
        limit: MemoryLimit,
        *,
        reads_files: bool = False,
        max_block_bytes: int = MAX_BLOCK_BYTES,
        min_block_bytes: int = MIN_BLOCK_BYTES,
    ):
        """Keep weights on a device.

        Args:
            device: the device.
            limit: the bytes. A block that has no room beside the blocks in use comes all the same.
            reads_files: whether weights are in their files while they are not on the device.
            max_block_bytes: bytes of a block, at most, unless a single layer has more.
            min_block_bytes: bytes of a block, at least; smaller ones stay on the device.
        """
        self.device = device
        self.reads_files = reads_files
        self.bytes = self.copies = self._untrimmed_bytes = 0
        self._limit = limit
        self._max_block_bytes = max_block_bytes
        self._min_block_bytes = min_block_bytes
        self._networks = weakref.WeakKeyDictionary[nn.Module, Network]()
        self._calls = count(1)
        self._lock = threading.RLock()
        on_gpu = device.type == "cuda"
        self.fetcher: Fetcher = StreamFetcher(device) if on_gpu else ThreadFetcher()

    def hold(self, network: nn.Module, work: Work, homes: Mapping[str, Home] | None = None) -> None:
        """Take charge of the weights of a network.

        Args:
            network: its submodules are called as modules, and not by their methods.
            work: the work of the network.
            homes: where weights are, by name in the state dict. Others are in the host's memory; if
                `reads_files`, these stay there.
        """
        held = self._networks[network] = Network(work)
        weakref.finalize(network, self._forget, held)
        if homes is None:
            if self.reads_files:
                held.staying_bytes = sum(own.nbytes for *_, own in _list_weights(network))
                self.bytes += held.staying_bytes
                return
            homes = {name: HostHome(own, self.device) for name, *_, own in _list_weights(network)}
        weights = {
            (id(owner), leaf): Weight(owner, leaf, homes[name])
            for name, owner, leaf, _ in _list_weights(network)
            if name in homes
        }
        for module, own in self._split(network):
            keys = [(id(owner), leaf) for _, owner, leaf, _ in own]
            block = Block(held, [weights[key] for key in keys if key in weights])
            block.rest()
            if module is None or block.bytes < self._min_block_bytes:
                self._bring(block)
                held.staying_bytes += block.bytes  # no reference to its owner, the network itself
                continue
            held.blocks.append(block)
            held.places |= {(id(own.owner), own.leaf): (block, own) for own in block.weights}
            # A weak reference, so that a network that is gone is free at once.
            found = weakref.ref(block)
            module.register_forward_pre_hook(partial(_call, self._enter, found))
            module.register_forward_hook(partial(_call, self._leave, found), always_call=True)

    def _split(self, module: nn.Module) -> Iterator[tuple[nn.Module | None, list[NamedWeight]]]:
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
                sum(tensor.nbytes for *_, tensor in weights) <= self._max_block_bytes
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
        come = "read from their files" if self.reads_files else "copied to it"
        return (
            f"the device has room for {room / 1e9:.1f} GB of {self.held_bytes / 1e9:.1f} GB of "
            f"weights; blocks of them are {come} when they run."
        )

    def find_weight(self, network: nn.Module, owner: nn.Module, leaf: str) -> "HeldWeight | None":
        """Find a weight that is not always on the device.

        Args:
            network: the network that `hold` got.
            owner: the module in it that has the weight.
            leaf: the name of the weight there.
        """
        held = self._networks.get(network)
        if held is None or (place := held.places.get((id(owner), leaf))) is None:
            return None
        block, weight = place
        return HeldWeight(weight, partial(self._send_home, block))

    def list_readers(self, network: nn.Module) -> dict[str, Callable[[], Tensor]]:
        """Return functions that read weights of a network, by name, on the device or not."""
        places = self._networks[network].places
        return {
            name: place[1].home.read if (place := places.get((id(owner), leaf))) else tensor.detach
            for name, owner, leaf, tensor in _list_weights(network)
        }

    def lower(self) -> bool:
        """Allow a quarter fewer bytes; return whether the largest blocks still have room."""
        with self._lock:
            self._limit = replace(self._limit, max_bytes=self._limit.max_bytes * 3 // 4)
            held = [block for own in self._networks.values() for block in own.blocks]
            for block in held:
                if not block.users:
                    self._send_home(block)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            largest = max((own.bytes for own in held), default=0)
            return 0 < 2 * largest <= self._limit.room("step")

    def send_home(self, network: nn.Module) -> None:
        """Remove the weights of a network from the device, for example before they change."""
        with self._lock:
            if held := self._networks.get(network):
                for block in held.blocks:
                    self._send_home(block)

    def _forget(self, held: Network) -> None:
        """Stop counting the weights of a network that is gone, and drop them."""
        with self._lock:
            self.bytes -= held.staying_bytes
            self.bytes -= sum(block.bytes for block in held.blocks if block.takes_room)
            held.blocks.clear()
            held.latest = None

    def _enter(self, block: Block) -> None:
        with self._lock:
            block.users += 1
            block.last_used = next(self._calls)
            if not block.takes_room:
                self._make_room(block.network, block.bytes, must=True)
            self._bring(block)
            self._expect_following(block)

    def _leave(self, block: Block) -> None:
        with self._lock:
            block.users -= 1
            # Blocks that several threads use at once can have more bytes than there is room for.
            self._make_room(block.network, 0, must=True)

    def _expect_following(self, block: Block) -> None:
        """Start to bring the block that ran after this one in the step before, if it has room."""
        network = block.network
        if network.latest:
            network.latest.following = block
        network.latest = block
        following = block.following
        if not following or following.takes_room:
            return
        if self._make_room(network, following.bytes, must=False):
            self._start(following, ahead=True)

    def _make_room(self, running: Network, coming_bytes: int, *, must: bool) -> bool:
        """Send blocks home until others have room.

        Args:
            running: the network that runs.
            coming_bytes: the bytes of the others.
            must: send all home that are not in use if that is not enough.

        Returns:
            Whether they have room.
        """
        missing = self.bytes + coming_bytes - self._limit.room(running.work)
        if missing <= 0:
            return True
        leaving: list[Block] = []
        for block in self._list_in_order_of_leaving(running):
            if missing <= 0:
                break
            leaving.append(block)
            missing -= block.bytes
        if missing <= 0 or must:
            for block in leaving:
                self._send_home(block)
        return missing <= 0

    def _list_in_order_of_leaving(self, running: Network) -> list[Block]:
        held = chain.from_iterable(own.blocks for own in self._networks.values())
        unused = [block for block in held if block.takes_room and not block.users]
        others = [block for block in unused if block.network is not running]
        own = [block for block in unused if block.network is running]
        return [
            *sorted(others, key=lambda block: block.last_used),
            *sorted(own, key=lambda block: -block.last_used),
        ]

    def _start(self, block: Block, *, ahead: bool) -> None:
        """Let the weights of a block come; ahead of their time, while the device goes on."""
        block.coming = self.fetcher.begin(partial(block.fetch, self.device), ahead=ahead)
        self.bytes += block.bytes
        self.copies += 1

    def _bring(self, block: Block) -> None:
        """Bring the weights of a block, or wait for them."""
        if block.present:
            return
        if not block.coming:
            self._start(block, ahead=False)
        try:
            block.receive()
        except BaseException:
            self.bytes -= block.bytes
            raise

    def _send_home(self, block: Block) -> None:
        with self._lock:
            if not block.takes_room:
                return
            block.rest()
            self.bytes -= block.bytes
            self._untrimmed_bytes += block.bytes
            if self.device.type == "cpu" and self._untrimmed_bytes > TRIM_INTERVAL_BYTES:
                self._untrimmed_bytes = 0
                trim_heap()


class HeldWeight:
    """A weight that is not always on the device."""

    def __init__(self, weight: Weight, send_home: Callable[[], None]):
        """Take a weight, and a function that removes it from the device."""
        self._weight = weight
        self._send_home = send_home

    def read(self) -> Tensor:
        """Return the unchanged value in the host's memory."""
        return self._weight.home.read()

    def set_change(self, change: Change | None) -> None:
        """Change the unchanged value with a function each time the weight comes to the device."""
        self._send_home()
        self._weight.change = change


def _call(function: Callable[[Block], None], found: "weakref.ref[Block]", *_: object) -> None:
    """Call a function from a hook, which passes the inputs of the module too."""
    if block := found():
        function(block)


def _list_weights(module: nn.Module, *, recurse: bool = True) -> Iterator[NamedWeight]:
    for path, owner in module.named_modules() if recurse else (("", module),):
        for leaf, own in chain(
            owner.named_parameters(recurse=False), owner.named_buffers(recurse=False)
        ):
            yield f"{path}.{leaf}" if path else leaf, owner, leaf, own
