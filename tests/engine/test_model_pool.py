"""Models that share the memory: loaded when asked for, let go when others need the room."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
import torch

import overpaint
from overpaint.engine.config import EngineConfig
from overpaint.engine.engine import Engine
from overpaint.engine.model_pool import ModelPool, open_engine, read_device_budget, size
from overpaint.engine.profile import Profile
from overpaint.errors import ModelNotFoundError, RequestError
from overpaint.events import Finished
from overpaint.models.cache import Cache
from overpaint.request import Request
from tests.engine.test_engine import AtOnce, run


@dataclass
class Loads:
    """Loads the miniature by any name, and remembers."""

    names: list[str] = field(default_factory=list[str])

    def __call__(self, name: str) -> overpaint.Painter:
        self.names.append(name)
        return overpaint.load("miniature", device="cpu", dtype="fp32")


@pytest.fixture(scope="module")
def one() -> int:
    """Bytes of a miniature."""
    return size(overpaint.load("miniature", device="cpu", dtype="fp32").model)


def test_model_pool_full_removes_least_recently_used(one: int) -> None:
    loads = Loads()
    models = ModelPool("abc", loads, 2.5 * one)
    for name in "abaca":
        models.get(name)
    assert loads.names == ["a", "b", "c"]
    assert tuple(models.resident) == ("c", "a")
    assert models.load_seconds("a") == 0
    assert models.load_seconds("b") > 0
    models.get("b")
    assert tuple(models.resident) == ("a", "b")


def test_model_pool_accepts_one_model_over_budget(one: int) -> None:
    loads = Loads()
    models = ModelPool("ab", loads, 0.5 * one)
    for name in "aabba":
        models.get(name)
    assert loads.names == ["a", "b", "a"]
    assert models.resident == {"a": 128}
    assert models.fits("a", ["a"])
    assert not models.fits("b", ["a"])


def test_model_pool_unknown_name_raises() -> None:
    with pytest.raises(ModelNotFoundError, match="Did you mean miniature"):
        ModelPool(["miniature"], Loads(), 1e9).get("minature")


def test_model_pool_runs_models_that_do_not_fit_in_turn(one: int) -> None:
    """They are grouped by model: as few loads as may be, and none while the other is in use."""
    loads, in_use = Loads(), list[set[str]]()

    class Watched(ModelPool):
        def begin(self, model: str, request: Request) -> Any:
            in_use.append({j.model for j in engine.jobs if j.run} | {model})
            return super().begin(model, request)

    models = Watched("ab", loads, 1.5 * one)
    models.get("b")  # so that its size is known
    models.get("a")
    engine = Engine(models, Profile("cpu"), beside=AtOnce())
    for i in range(12):
        engine.submit(str(i), Request(prompt="a cup", seed=i, num_inference_steps=2), "ab"[i % 2])
    watched = run(engine)
    ends = [int(name) % 2 for name, event in watched.told if isinstance(event, Finished)]
    assert len(ends) == 12
    assert sum(a != b for a, b in pairwise(ends)) == 1
    assert loads.names == ["b", "a", "b"]
    assert all(len(models) == 1 for models in in_use)


def test_model_pool_unknown_model_fails_only_its_request(one: int) -> None:
    engine = Engine(ModelPool("a", Loads(), one), Profile("cpu"), beside=AtOnce())
    engine.submit("bad", Request(prompt="a cup", num_inference_steps=2), "z")
    engine.submit("good", Request(prompt="a cup", num_inference_steps=2), "a")
    watched = run(engine)
    assert isinstance(watched.of("bad")[-1].error, ModelNotFoundError)
    assert isinstance(watched.of("good")[-1], Finished)


def test_model_pool_models_share_one_cache(one: int) -> None:
    cache = Cache()
    engine = Engine(ModelPool("ab", Loads(), 3 * one, cache), Profile("cpu"), beside=AtOnce())
    for name in "ab":
        engine.submit(name, Request(prompt="a cup", num_inference_steps=2), name)
    run(engine)
    assert engine.counters.resident == {"a": 128, "b": 128}
    assert engine.counters.cache_bytes == cache.size > 0


def test_model_pool_returns_a_model_in_memory_while_another_loads(one: int) -> None:
    loading, go_on = threading.Event(), threading.Event()
    loads = Loads()

    def load(name: str) -> overpaint.Painter:
        if name == "cold":
            loading.set()
            assert go_on.wait(60)
        return loads(name)

    models = ModelPool(["warm", "cold"], load, 3 * one)
    warm = models.get("warm")
    with ThreadPoolExecutor() as threads:
        try:
            cold = threads.submit(models.get, "cold")
            assert loading.wait(60)
            again = threads.submit(models.get, "cold")
            assert threads.submit(models.get, "warm").result(60) is warm
        finally:
            go_on.set()
        assert cold.result(60) is again.result(60)
    assert loads.names == ["warm", "cold"]


def test_model_pool_load_that_fails_leaves_the_budget(one: int) -> None:
    loads = Loads()

    def load(name: str) -> overpaint.Painter:
        if name == "b" and "b" in loads.names:
            raise MemoryError
        return loads(name)

    models = ModelPool("abc", load, 1.5 * one)
    for name in "ba":
        models.get(name)
    with pytest.raises(MemoryError):
        models.get("b")
    models.get("a")
    assert tuple(models.resident) == ("a",)


def test_device_budget_is_a_share_of_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(device: torch.device) -> tuple[int, int]:
        return (8 if device.index == 1 else 0), 80

    monkeypatch.setattr(torch.cuda, "mem_get_info", read)
    assert read_device_budget(torch.device("cuda", 1)) == 4
    assert read_device_budget(torch.device("cpu")) == float("inf")


def test_memory_of_a_gpu_is_refused_without_one() -> None:
    with pytest.raises(RequestError, match="vram_gb: The device cpu uses the host's memory"):
        open_engine(EngineConfig(models=("miniature",), device="cpu", vram_gb=8))
