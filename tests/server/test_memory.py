"""Memory that is used no more."""

import gc
import platform
import weakref

import psutil
import pytest

from overpaint.server.memory import give_back

MEGABYTE = 2**20


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="others give it back unasked")
def test_what_is_free_between_what_stays_goes_back_to_the_machine() -> None:
    give_back()
    small = [bytes(3000) for _ in range(100_000)]
    stays = small[::100]
    before = psutil.Process().memory_info().rss
    del small
    give_back()
    assert psutil.Process().memory_info().rss < before - 200 * MEGABYTE
    assert len(stays) == 1000


def test_what_holds_itself_is_collected() -> None:
    class Loop:
        def __init__(self) -> None:
            self.itself = self

    gc.disable()
    try:
        seen = weakref.ref(Loop())
        assert seen()
        give_back()
        assert seen() is None
    finally:
        gc.enable()
