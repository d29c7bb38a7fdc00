"""What holds for all tests."""

import gc
import logging
import multiprocessing
import os
import ssl
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from PIL import ImageFile

Decodes = Counter[tuple[int, int]]
"""Times that the pixels of a file were decoded, by (width, height)."""

PRELOADED = ["overpaint.engine.worker", "overpaint.testing", "overpaint.server.store.upgrade"]
"""Modules that processes of tests import: workers with the scripted engine, and upgrades."""

FOLDER = Path(__file__).parent

GET_CONTEXT = multiprocessing.get_context

# No deadline: how long an example takes says more about the machine than about the code.
settings.register_profile("overpaint", deadline=None)
settings.load_profile("overpaint")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the long tests, which are beside this file, so that none is the last to run."""
    items.sort(key=lambda item: item.path.parent != FOLDER)


@pytest.fixture(scope="session", autouse=True)
def certificates_read_once() -> Iterator[None]:
    """HTTP clients read all certificates at their start, for 40 ms of each test."""
    create = ssl.create_default_context

    @cache
    def read_file(path: str) -> ssl.SSLContext:
        return create(cafile=path)

    def reuse_or_create(*args: Any, **options: Any) -> ssl.SSLContext:
        only_a_file = not args and set(options) == {"cafile"}
        return read_file(options["cafile"]) if only_a_file else create(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssl, "create_default_context", reuse_or_create)
        yield


@pytest.fixture(scope="session", autouse=True)
def forked_processes() -> Iterator[None]:
    """Fork the workers of servers in tests from a process that has imported their modules.

    The imports take a second. Servers that are processes themselves spawn their workers, as users'
    servers do.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        yield
        return
    multiprocessing.set_forkserver_preload(PRELOADED)
    forking = multiprocessing.get_context("forkserver")

    def fork(_method: str) -> BaseContext:
        return forking

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multiprocessing, "get_context", fork)
        yield


@pytest.fixture
def spawned_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spawn the workers of a server in a test, as users' servers do."""
    monkeypatch.setattr(multiprocessing, "get_context", GET_CONTEXT)


@pytest.fixture(scope="session", autouse=True)
def modules_are_no_garbage() -> Iterator[None]:
    """The modules of all tests have half a million objects, which each collection would visit."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def logs_as_they_were() -> Iterator[None]:
    """`serve` has all loggers write to stderr, which in tests is another one every time."""
    root, own = logging.getLogger(), logging.getLogger("overpaint.server")
    handlers, levels = list(root.handlers), (root.level, own.level)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    own.setLevel(levels[1])


@pytest.fixture(autouse=True)
def threads_as_they_were() -> Iterator[None]:
    """`--threads` of a command counts for the whole process, also for the tests after it."""
    variable = os.environ.get("OMP_NUM_THREADS")
    torch: Any = sys.modules.get("torch")
    number = torch.get_num_threads() if torch else None
    yield
    if variable is None:
        os.environ.pop("OMP_NUM_THREADS", None)
    else:
        os.environ["OMP_NUM_THREADS"] = variable
    if number is None and (torch := sys.modules.get("torch")) and variable:
        number = int(variable)
    if torch and number is not None and torch.get_num_threads() != number:
        torch.set_num_threads(number)


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> Decodes:
    """Count how often the pixels of a PNG or JPEG file are decoded."""
    found = Decodes()
    load: Any = ImageFile.ImageFile.load

    def counting(self: Any) -> Any:
        if self.tile:
            found[self.size] += 1
        return load(self)

    monkeypatch.setattr(ImageFile.ImageFile, "load", counting)
    return found
