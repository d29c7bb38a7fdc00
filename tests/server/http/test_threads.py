"""Requests that wait for the store or check pictures do not keep others waiting."""

import asyncio
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from overpaint.server.http import threads
from overpaint.server.http.threads import current_key, run_in_picture_thread
from tests.server.live import PATIENCE, running, until


def test_get_is_answered_while_many_posts_wait_for_a_locked_store(tmp_path: Path) -> None:
    keys = ("one", "two")
    with running(tmp_path, api_keys=keys) as url, ThreadPoolExecutor(16) as posting:

        def post(number: int) -> int:
            head = {"Authorization": f"Bearer {keys[number % 2]}"}
            body = {"request": {"prompt": "a cup"}}
            return httpx.post(
                f"{url}/api/jobs", json=body, headers=head, timeout=PATIENCE
            ).status_code

        lock = sqlite3.connect(tmp_path / "jobs.db", isolation_level=None)
        lock.execute("BEGIN IMMEDIATE")
        posts = [posting.submit(post, number) for number in range(16)]
        until(lambda: threads._writes._running.total() >= 8)  # pyright: ignore[reportPrivateUsage]
        head = {"Authorization": "Bearer one"}
        for _ in range(3):
            assert httpx.get(f"{url}/api/jobs", headers=head, timeout=PATIENCE).json()["jobs"] == []
        assert not any(made.done() for made in posts)
        lock.execute("ROLLBACK")
        lock.close()
        assert {made.result() for made in posts} == {201}


def test_pictures_of_one_key_leave_threads_to_others() -> None:
    go = threading.Event()

    async def check(key: str, wait: bool) -> str:
        current_key.set(key)
        await run_in_picture_thread(go.wait, PATIENCE if wait else 0)
        return key

    async def run() -> None:
        greedy = [asyncio.create_task(check("greedy", wait=True)) for _ in range(9)]
        await asyncio.sleep(0)
        assert await check("other", wait=False) == "other"
        assert not any(task.done() for task in greedy)
        go.set()
        await asyncio.gather(*greedy)

    asyncio.run(run())
