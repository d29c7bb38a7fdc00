from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.server.live import running


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server whose steps take 10 ms."""
    with running(tmp_path_factory.mktemp("data"), 0.01) as address:
        yield address
