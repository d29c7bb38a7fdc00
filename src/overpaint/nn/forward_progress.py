"""Progress within a network's call: on a slow device a single call takes minutes."""

from collections.abc import Callable, Generator
from contextlib import contextmanager

from torch import nn

from overpaint.nn.blocks import ResnetBlock, TransformerBlock


@contextmanager
def watch_calls(network: nn.Module, show: Callable[[float], None]) -> Generator[None]:
    """Report how many calls of a network are done, after each of its blocks.

    Args:
        network: a UNet whose blocks `install_blocks` has replaced.
        show: takes the number of calls; a fraction counts blocks of one call.
    """
    blocks = [m for m in network.modules() if isinstance(m, ResnetBlock | TransformerBlock)]
    done = 0

    def count(*_: object) -> None:
        nonlocal done
        done += 1
        show(done / len(blocks))

    handles = [block.register_forward_hook(count) for block in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
