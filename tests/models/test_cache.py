"""Tests of the cache: it stays within its budget and does not change pictures."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import overpaint
from overpaint.diffusion.unet import get_network
from overpaint.imaging.canvas import Canvas, Placement
from overpaint.imaging.codec import read_picture
from overpaint.models.cache import ENTRY_OVERHEAD_BYTES, Cache, measure_bytes
from overpaint.request import Request
from overpaint.request.parts import Control, Lora
from tests.tiny import tiny_model

HOUSE = read_picture(Path(__file__).parents[2] / "examples" / "house.png")
KB = 1024


def block(kilobytes: int) -> np.ndarray[Any, Any]:
    return np.zeros(kilobytes * KB, np.uint8)


def test_cache_over_budget_drops_least_recently_used_of_any_kind() -> None:
    cache = Cache(10 * KB + 3 * ENTRY_OVERHEAD_BYTES)
    for kind, key in (("a", 1), ("b", 1), ("a", 2), ("a", 1)):
        cache.remember(kind, key, lambda: block(3))
    assert cache.counts() == ({"a": 1}, {"a": 2, "b": 1})
    cache.remember("c", 1, lambda: block(4))  # in the place of b's
    cache.remember("a", 2, lambda: block(3))
    cache.remember("a", 1, lambda: block(3))
    cache.remember("b", 1, lambda: block(3))
    assert cache.counts() == ({"a": 3}, {"a": 2, "b": 2, "c": 1})


def test_cache_value_larger_than_budget_evicts_nothing() -> None:
    cache = Cache(4 * KB + ENTRY_OVERHEAD_BYTES)
    small = cache.remember("a", 1, lambda: block(4))
    cache.remember("a", 2, lambda: block(5))
    assert cache.remember("a", 1, lambda: block(4)) is small


def test_cache_with_zero_budget_keeps_nothing() -> None:
    cache, made = Cache(0), list[int]()
    for _ in range(3):
        cache.remember("a", 1, lambda: made.append(1))
    assert (len(made), len(cache), cache.size) == (3, 0, 0)


def test_cache_clear_drops_all_values() -> None:
    cache = Cache()
    cache.remember("a", 1, lambda: block(1))
    cache.clear()
    assert (len(cache), cache.size) == (0, 0)
    cache.remember("a", 1, lambda: block(1))
    assert cache.counts() == ({}, {"a": 2})


def test_cache_keeps_nothing_when_make_fails() -> None:
    cache = Cache()
    with pytest.raises(ZeroDivisionError):
        cache.remember("a", 1, lambda: 1 // 0)
    assert cache.remember("a", 1, lambda: 1) == 1


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9))), st.integers(0, 20))
def test_cache_in_any_use_stays_within_budget(uses: list[tuple[int, int]], budget: int) -> None:
    cache = Cache(budget * KB)
    for key, size in uses:
        cache.remember("a", key, lambda size=size: block(size))
        assert 0 <= cache.size <= budget * KB
    cache.clear()
    assert cache.size == 0


def test_cache_used_by_many_threads_stays_consistent() -> None:
    cache = Cache(8 * (KB + ENTRY_OVERHEAD_BYTES))

    def use(number: int) -> bool:
        key = number % 12
        return int(cache.remember("a", key, lambda: np.full(KB, key, np.uint8))[0]) == key

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(use, range(4000)))
    hits, misses = cache.counts()
    assert hits["a"] + misses["a"] == 4000
    assert cache.size == len(cache) * (KB + ENTRY_OVERHEAD_BYTES) <= cache.budget


def test_measure_bytes_counts_shared_objects_once() -> None:
    tensor = torch.zeros(4, KB)
    assert measure_bytes(tensor) == 16 * KB
    assert measure_bytes((tensor, tensor[0])) == 16 * KB
    assert measure_bytes(tensor[0]) == 16 * KB  # which it keeps
    whole = np.zeros((4, KB), np.float32)
    assert measure_bytes([whole, whole[1:]]) == 16 * KB
    shown = Image.new("RGB", (32, 32))
    assert measure_bytes({"a": shown, "b": shown}) == 4 * KB
    assert measure_bytes(Image.new("L", (32, 32))) == KB
    canvas = Canvas((32, 32), Placement((32, 32), (32, 32)), shown)
    assert 4 * KB <= measure_bytes(canvas) < 5 * KB


def test_measure_bytes_of_unknown_type_raises() -> None:
    with pytest.raises(TypeError, match="size of a Cache"):
        measure_bytes((1, Cache()))


def test_network_of_model_is_made_once() -> None:
    model = tiny_model()
    model.cache.budget = 0
    first = get_network(model)
    model.cache.clear()
    assert get_network(model) is first


REQUESTS = (
    Request(prompt="a cup", negative_prompt="a car", num_inference_steps=2, seed=1),
    Request(image=HOUSE, prompt="a red house", strength=0.5, num_inference_steps=2, seed=2),
    Request(image=HOUSE, mask_from="box:100,0,300,200", num_inference_steps=2, seed=3),
    Request(
        prompt="a red house",
        controls=(Control(kind="canny", image=HOUSE),),
        loras=(Lora(name="miniature-comic"),),
        num_inference_steps=2,
    ),
)


@pytest.fixture(scope="module")
def painter() -> overpaint.Painter:
    return overpaint.load("miniature", device="cpu", dtype="fp32")


@pytest.mark.parametrize("request_", REQUESTS)
def test_pictures_do_not_depend_on_cache(painter: overpaint.Painter, request_: Request) -> None:
    painter.model.cache = Cache(0)
    made = painter.run(request_).images[0].tobytes()
    painter.model.cache = Cache()
    fresh = painter.run(request_).images[0].tobytes()
    before = painter.model.cache.counts()[1]
    kept = painter.run(request_).images[0].tobytes()
    hits, after = painter.model.cache.counts()
    assert made == fresh == kept
    assert after == before  # all of it was there
    assert hits["prompts"] >= 1


def test_cache_finds_equal_content_that_was_loaded_again(painter: overpaint.Painter) -> None:
    request = REQUESTS[-1]
    painter.model.cache = Cache()
    painter.run(request)
    misses = painter.model.cache.counts()[1]
    other = overpaint.load("miniature", device="cpu", dtype="fp32")
    other.model.cache = painter.model.cache
    other.run(request)
    assert other.model.cache.counts()[1] == misses
