"""Threads for the work of requests, which API keys share.

asyncio's default threads only read. Checks of pictures, which may take seconds, and changes of the
store, which may be locked, have separate threads. So they never keep other requests waiting.
"""

import asyncio
from collections.abc import Callable
from contextvars import ContextVar, copy_context
from functools import partial
from typing import ParamSpec, TypeVar

from overpaint.system.fair_threads import FairThreads

P = ParamSpec("P")
T = TypeVar("T")

PICTURE_THREADS, PICTURE_THREADS_PER_KEY = 3, 2
WRITE_THREADS, WRITE_THREADS_PER_KEY = 8, 4

SERVER_KEY = "server"
"""The key of the server's own work: webhooks, and removal of expired jobs."""

current_key: ContextVar[str] = ContextVar("current_key", default="")
"""The label of the API key of the request that is handled."""

_pictures = FairThreads(PICTURE_THREADS, PICTURE_THREADS_PER_KEY, "overpaint-pictures")
_writes = FairThreads(WRITE_THREADS, WRITE_THREADS_PER_KEY, "overpaint-writes")


async def run_in_picture_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a function that reads pictures, like `asyncio.to_thread`."""
    return await run_in_threads(_pictures, call, *args, **kwargs)


async def run_in_write_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a function that changes the store, like `asyncio.to_thread`."""
    return await run_in_threads(_writes, call, *args, **kwargs)


async def run_in_threads(
    threads: FairThreads, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """Run a function in threads that API keys share, like `asyncio.to_thread`."""
    bound = partial(call, *args, **kwargs)
    context = copy_context()
    return await asyncio.wrap_future(threads.submit(current_key.get(), context.run, bound))
