"""The engine with the miniature: different requests share steps, and do not affect each other."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import overpaint
from overpaint.diffusion.conditioning import Row
from overpaint.diffusion.denoise import evaluate
from overpaint.diffusion.planner import plan
from overpaint.diffusion.run import Run
from overpaint.diffusion.unet import get_network
from overpaint.engine.engine import MAX_CONCURRENT_PLANS, Engine, EngineEvent
from overpaint.engine.memory import estimate_bytes
from overpaint.engine.profile import Profile
from overpaint.errors import DeviceError, RequestError
from overpaint.events import Canceled, Failed, Finished, Notice, Preview, Spent, Step
from overpaint.imaging.codec import read_picture
from overpaint.models.cache import Cache
from overpaint.models.checkpoint import load_model
from overpaint.models.memory_fallback import use_less_memory
from overpaint.nn.device_memory import DeviceMemory, MemoryLimit
from overpaint.request import Request
from overpaint.system.abandon import check_abandoned

HOUSE = read_picture(Path(__file__).parents[2] / "examples" / "house.png")
WIDE = Profile("cpu", {(16, 16): {2: 0.02, 4: 0.02, 8: 0.02, 16: 0.02, 32: 0.02}})


@pytest.fixture(scope="module")
def painter() -> overpaint.Painter:
    return overpaint.load("miniature", device="cpu", dtype="fp32")


@dataclass
class Miniature:
    """Models by name, of which there is one."""

    painter: overpaint.Painter

    @property
    def resident(self) -> dict[str, int]:
        return {"miniature": self.painter.model.native_size}

    @property
    def cache(self) -> Cache:
        return self.painter.model.cache

    def begin(self, model: str, request: Request) -> Run:
        return Run(request, self.painter.model, self.painter.addon_loader)

    def use_less_memory(self, model: str) -> str | None:
        return use_less_memory(self.painter.model)

    def load_seconds(self, model: str) -> float:
        return 0.0

    def fits(self, model: str, beside: Iterable[str]) -> bool:
        return True


class AtOnce:
    """Begins requests in the thread that asks, so that a test knows when they are begun."""

    def submit(self, key: str, call: Callable[..., Any], /, *args: Any, **kw: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(call(*args, **kw))
        except Exception as error:
            future.set_exception(error)
        return future

    def shutdown(self) -> None:
        pass


@pytest.fixture
def engine(painter: overpaint.Painter) -> Engine:
    return Engine(Miniature(painter), WIDE, beside=AtOnce())


@dataclass
class Watched:
    """Events of all jobs, and the rows of every network call."""

    told: list[tuple[str, EngineEvent]] = field(default_factory=list[tuple[str, EngineEvent]])
    calls: list[int] = field(default_factory=list[int])

    def of(self, name: str) -> list[Any]:
        return [event for of, event in self.told if of == name]


Predict = Callable[[Sequence[Row]], Tensor]


def change(
    monkeypatch: pytest.MonkeyPatch,
    painter: overpaint.Painter,
    changed: Callable[[Predict, Sequence[Row]], Tensor],
) -> None:
    """Have the network predict otherwise: `changed` is given its own way and the rows."""
    unet = get_network(painter.model)
    predict: Predict = unet.predict

    def predicted(rows: Sequence[Row]) -> Tensor:
        return changed(predict, rows)

    monkeypatch.setattr(unet, "predict", predicted)


def watch(monkeypatch: pytest.MonkeyPatch, painter: overpaint.Painter, watched: Watched) -> None:
    """Count the rows of every network call."""

    def counted(predict: Predict, rows: Sequence[Row]) -> Tensor:
        watched.calls.append(len(rows))
        return predict(rows)

    change(monkeypatch, painter, counted)


def run(engine: Engine, watched: Watched | None = None, ticks: int = 10_000) -> Watched:
    watched = watched or Watched()
    while engine.busy and ticks:
        events = engine.tick()
        for name, event in events:
            if isinstance(event, Finished):
                engine.release(name)
        watched.told += events
        ticks -= 1
    return watched


def unlike() -> dict[str, Request]:
    """Requests that have nothing in common but the size."""
    fields: dict[str, dict[str, Any]] = {
        "plain": {"prompt": "a red cup", "num_inference_steps": 6},
        "guided": {"prompt": "a car", "guidance_scale": 7.5, "num_inference_steps": 9},
        "edit": {"image": HOUSE, "strength": 0.7, "sampler": "euler", "num_inference_steps": 8},
        "ancestral": {"prompt": "a cat", "sampler": "euler_a", "num_inference_steps": 5},
        "twice": {"prompt": "a fish", "sampler": "heun", "num_inference_steps": 4},
        "masked": {"image": HOUSE, "mask_from": "box:256,0,512,512", "num_inference_steps": 7},
        "two": {"prompt": "a star", "num_images": 2, "num_inference_steps": 5},
        "nothing": {"image": HOUSE, "strength": 0.0},
    }
    fields["masked"] |= {"width": 128, "height": 128, "crop": "off", "prompt": "a green tree"}
    return {name: Request(seed=i, **own) for i, (name, own) in enumerate(fields.items())}


def test_engine_different_requests_share_steps_with_equal_results(
    engine: Engine, painter: overpaint.Painter, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched()
    watch(monkeypatch, painter, watched)
    requests = unlike()
    for name, request in requests.items():
        engine.submit(name, request)
    run(engine, watched)
    shared = list(watched.calls)
    watched.calls.clear()
    for name, request in requests.items():
        *before, last = watched.of(name)
        assert isinstance(last, Finished)
        assert all(isinstance(event, Step | Notice | Spent) for event in before)
        alone = painter.run(request)
        assert last.seeds == alone.seeds
        assert last.metadata == alone.metadata
        for one, other in zip(last.images, alone.images, strict=True):
            gap = np.abs(np.asarray(one, int) - np.asarray(other, int)).max()
            assert gap <= 1, name
    assert len(shared) == 9  # as many as the longest takes
    assert sum(shared) == sum(watched.calls)
    assert len(watched.calls) > 40


def test_engine_plans_requests_beside_the_loop(painter: overpaint.Painter) -> None:
    engine = Engine(Miniature(painter), WIDE)
    for i in range(4):
        engine.submit(str(i), Request(prompt="a cup", seed=i, num_inference_steps=3))
    watched = run(engine)
    assert all(isinstance(watched.of(str(i))[-1], Finished) for i in range(4))
    engine.close()


def test_engine_planning_does_not_wait_for_a_step(painter: overpaint.Painter) -> None:
    handed = list[Callable[[], Any]]()

    class Later(AtOnce):
        """Does nothing before the test does."""

        def submit(
            self, key: str, call: Callable[..., Any], /, *args: Any, **kw: Any
        ) -> Future[Any]:
            future: Future[Any] = Future()
            handed.append(lambda: future.set_result(call(*args, **kw)))
            return future

    engine = Engine(Miniature(painter), WIDE, beside=Later())
    for i in range(MAX_CONCURRENT_PLANS + 2):
        engine.submit(str(i), Request(prompt="a cup", seed=i, num_inference_steps=3))
    engine.tick()
    assert len(handed) == MAX_CONCURRENT_PLANS
    for begin in handed[:2]:
        begin()
    engine.tick()
    assert len(handed) == MAX_CONCURRENT_PLANS + 2


@dataclass
class Slow(Miniature):
    """Planning of a request of 1000 steps goes on until it is abandoned."""

    began: list[int] = field(default_factory=list[int])

    def begin(self, model: str, request: Request) -> Run:
        self.began.append(request.seed)
        while request.num_inference_steps == 1000:
            check_abandoned()
            time.sleep(0.001)
        return super().begin(model, request)


SLOW: dict[str, Any] = {"prompt": "a cup", "num_inference_steps": 1000}


def test_engine_plans_requests_of_other_keys_beside_slow_ones(painter: overpaint.Painter) -> None:
    engine = Engine(Slow(painter), WIDE)
    for i in range(8):
        engine.submit(f"slow {i}", Request(**SLOW, seed=i), key="greedy")
    engine.submit("quick", Request(prompt="a cup", num_inference_steps=2), key="other")
    ends = list[str]()
    while not ends:
        ends += [name for name, event in engine.tick() if isinstance(event, Finished)]
    assert ends == ["quick"]
    engine.close()


def test_engine_cancel_frees_the_planning_threads(painter: overpaint.Painter) -> None:
    models = Slow(painter)
    engine = Engine(models, WIDE)
    for i in range(6):
        engine.submit(f"slow {i}", Request(**SLOW, seed=i))
    while len(models.began) < 2:
        engine.tick()
    for i in range(6):
        engine.cancel(f"slow {i}")
    engine.submit("quick", Request(prompt="a cup", num_inference_steps=2))
    watched = run(engine)
    assert isinstance(watched.of("quick")[-1], Finished)
    assert all(isinstance(watched.of(f"slow {i}")[-1], Canceled) for i in range(6))
    engine.close()


def test_engine_new_job_joins_at_the_next_step(
    engine: Engine, painter: overpaint.Painter, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched()
    watch(monkeypatch, painter, watched)
    engine.submit("first", Request(prompt="a cup", seed=1, num_inference_steps=40))
    while len(watched.calls) < 3:
        watched.told += engine.tick()
    engine.submit("second", Request(prompt="a car", seed=2, num_inference_steps=3))
    run(engine, watched)
    assert watched.calls.count(4) == 3
    ends = [name for name, event in watched.told if isinstance(event, Finished)]
    assert ends == ["second", "first"]


def test_engine_reports_progress_and_previews(engine: Engine) -> None:
    request = Request(prompt="a cup", seed=1, num_images=2, num_inference_steps=6)
    engine.submit("a", request, preview_every=2)
    events = run(engine).of("a")
    steps = [event for event in events if isinstance(event, Step)]
    assert [step.done for step in steps] == [2, 4, 6, 8, 10, 12]
    assert {step.total for step in steps} == {12}
    previews = [event for event in events if isinstance(event, Preview)]
    assert [preview.index for preview in previews] == [0, 1, 0, 1]
    assert isinstance(events[-1], Finished)


def test_engine_cancel_takes_effect_before_the_next_step(engine: Engine) -> None:
    for name, steps in (("a", 30), ("b", 30), ("waits", 30)):
        engine.submit(name, Request(prompt="a cup", seed=1, num_inference_steps=steps))
    watched = run(engine, ticks=8)
    engine.cancel("a")
    engine.cancel("a")
    engine.cancel("nobody")
    before = len(watched.told)
    run(engine, watched)
    after = [event for name, event in watched.told[before:] if name == "a"]
    assert [type(event) for event in after] == [Spent, Canceled]
    assert isinstance(watched.of("b")[-1], Finished)


def test_engine_failed_plan_fails_only_its_request(engine: Engine) -> None:
    engine.submit("bad", Request(prompt="a cup", width=64, height=8192))
    engine.submit("lora", Request(prompt="a cup", loras=({"name": "nowhere"},)))  # pyright: ignore[reportArgumentType]
    engine.submit("good", Request(prompt="a cup", seed=1, num_inference_steps=2))
    watched = run(engine)
    bad = watched.of("bad")
    assert isinstance(bad[-1], Failed)
    assert isinstance(bad[-1].error, RequestError | DeviceError)
    assert isinstance(watched.of("lora")[-1], Failed)
    assert isinstance(watched.of("good")[-1], Finished)


def test_engine_out_of_memory_halves_the_step(
    engine: Engine, painter: overpaint.Painter, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = list[int]()

    def small(predict: Predict, rows: Sequence[Row]) -> Tensor:
        calls.append(len(rows))
        if len(rows) > 4:
            raise torch.OutOfMemoryError("tried to allocate 2 GiB")
        return predict(rows)

    change(monkeypatch, painter, small)
    for i in range(6):
        engine.submit(str(i), Request(prompt="a cup", seed=i, num_inference_steps=12))
    watched = run(engine)
    assert all(isinstance(watched.of(str(i))[-1], Finished) for i in range(6))
    halvings = sum(rows > 4 for rows in calls)
    assert 1 <= halvings <= 3  # then it knows
    assert engine.counters.halvings == halvings
    assert max(engine.counters.batches) == 4


@pytest.mark.parametrize("where", ["stepping", "decoding"])
def test_engine_broken_device_raises_without_failing_jobs(
    engine: Engine, painter: overpaint.Painter, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def broken(*_: object) -> Any:
        raise torch.AcceleratorError("an illegal memory access was encountered")

    if where == "stepping":
        change(monkeypatch, painter, broken)
    else:
        monkeypatch.setattr(Run, "decode_picture", broken)
    engine.submit("a", Request(prompt="a cup", seed=1, num_inference_steps=2))
    with pytest.raises(torch.AcceleratorError):
        run(engine)
    assert [job.name for job in engine.jobs] == ["a"]


def test_engine_preview_without_memory_is_skipped(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> Any:
        raise torch.OutOfMemoryError("tried to allocate 2 GiB")

    monkeypatch.setattr(Run, "render_previews", full)
    engine.submit("shown", Request(prompt="a cup", seed=1, num_inference_steps=4), preview_every=1)
    engine.submit("good", Request(prompt="a cup", seed=2, num_inference_steps=4))
    watched = run(engine)
    assert all(isinstance(watched.of(name)[-1], Finished) for name in ("shown", "good"))


def test_engine_failed_preview_fails_only_its_job(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(Run, "render_previews", broken)
    engine.submit("shown", Request(prompt="a cup", seed=1, num_inference_steps=4), preview_every=1)
    engine.submit("good", Request(prompt="a cup", seed=2, num_inference_steps=4))
    watched = run(engine)
    assert isinstance(watched.of("shown")[-1], Failed)
    assert isinstance(watched.of("good")[-1], Finished)


def test_engine_too_large_request_fails_alone(
    engine: Engine, painter: overpaint.Painter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tight(predict: Predict, rows: Sequence[Row]) -> Tensor:
        if any(row.x.shape[-1] > 16 for row in rows):
            raise torch.OutOfMemoryError("tried to allocate 2 GiB")
        return predict(rows)

    change(monkeypatch, painter, tight)
    engine.submit("large", Request(prompt="a cup", width=192, height=128, seed=1))
    engine.submit("good", Request(prompt="a cup", seed=1, num_inference_steps=4))
    watched = run(engine)
    (failed,) = [event for event in watched.of("large") if isinstance(event, Failed)]
    assert isinstance(failed.error, DeviceError)
    assert "too little memory" in str(failed.error)
    assert isinstance(watched.of("good")[-1], Finished)


def test_engine_row_that_is_not_finite_fails_alone(
    engine: Engine, painter: overpaint.Painter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poisoned(predict: Predict, rows: Sequence[Row]) -> Tensor:
        out = predict(rows)
        for i, row in enumerate(rows):
            if row.conditioning is victim[0]:
                out[i] = float("nan")
        return out

    change(monkeypatch, painter, poisoned)
    victim = list[Any]([None])
    good = Request(prompt="a cup", seed=1, num_inference_steps=6)
    engine.submit("bad", Request(prompt="a car", seed=2, num_inference_steps=6))
    engine.submit("good", good)
    watched = Watched()
    while engine.busy:
        watched.told += engine.tick()
        found = [job.run for job in engine.jobs if job.name == "bad" and job.run]
        if found:
            victim[0] = found[0].trajectories[0].plan.positive
    assert isinstance(watched.of("bad")[-1], Failed)
    assert "not finite" in str(watched.of("bad")[-1].error)
    last = watched.of("good")[-1]
    assert isinstance(last, Finished)
    alone = painter.run(good).images[0]
    assert np.abs(np.asarray(last.images[0], int) - np.asarray(alone, int)).max() <= 1


def test_engine_row_that_breaks_the_step_fails_alone(
    engine: Engine, painter: overpaint.Painter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(predict: Predict, rows: Sequence[Row]) -> Tensor:
        if any(row.sigma < 1 and row.conditioning.size_ids[0, 0] == 77 for row in rows):
            raise ZeroDivisionError("a defect")
        return predict(rows)

    change(monkeypatch, painter, broken)
    engine.submit("bad", Request(prompt="a", original_size=(77, 77), num_inference_steps=6))
    for i in range(3):
        engine.submit(str(i), Request(prompt="a cup", seed=i, num_inference_steps=6))
    watched = run(engine)
    assert isinstance(watched.of("bad")[-1], Failed)
    assert all(isinstance(watched.of(str(i))[-1], Finished) for i in range(3))


def test_engine_room_counts_planned_requests(painter: overpaint.Painter) -> None:
    engine = Engine(Miniature(painter), WIDE, live=2, beside=AtOnce())
    before = engine.room
    for i in range(before):
        engine.submit(str(i), Request(prompt="a cup", seed=i, num_inference_steps=2))
    assert engine.room == 0
    run(engine)
    assert engine.room == before
    engine.close()


def test_engine_begins_requests_within_the_memory_budget(painter: overpaint.Painter) -> None:
    request = Request(prompt="a cup", num_inference_steps=2)
    one = estimate_bytes(request, painter.model.native_size)
    engine = Engine(Miniature(painter), WIDE, job_memory_bytes=2.5 * one, beside=AtOnce())
    for i in range(5):
        engine.submit(str(i), request)
    most = 0
    while engine.busy:
        run(engine, ticks=1)
        most = max(most, sum(job.run is not None for job in engine.jobs))
    assert most == 2
    engine.close()


def test_engine_unwritten_pictures_stay_in_the_memory_budget(painter: overpaint.Painter) -> None:
    engine = Engine(Miniature(painter), WIDE, job_memory_bytes=1.0, beside=AtOnce())
    for name in "ab":
        engine.submit(name, Request(prompt="a cup", num_inference_steps=1))
    events = [event for _ in range(5) for event in engine.tick()]
    assert [name for name, event in events if isinstance(event, Finished)] == ["a"]
    assert [job.planning for job in engine.jobs] == [None]
    engine.release("a")
    assert [type(run(engine).of("b")[-1])] == [Finished]


def test_engine_planning_threads_have_the_same_number_of_cores(
    painter: overpaint.Painter, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_here = threading.Barrier(2)

    class Counting(Miniature):
        def begin(self, model: str, request: Request) -> Run:
            all_here.wait(60)
            return super().begin(model, request)

    calls = list[int]()  # A new thread starts with the number that another one set last.
    monkeypatch.setattr(torch, "get_num_threads", lambda: calls[-1] if calls else 64)
    monkeypatch.setattr(torch, "set_num_threads", calls.append)
    engine = Engine(Counting(painter), WIDE)
    for key in "ab":
        engine.submit(key, Request(prompt="a cup", num_inference_steps=1), key=key)
    run(engine)
    engine.close()
    assert calls == [16, 16]


def test_engine_begins_a_request_beyond_the_memory_budget_alone(painter: overpaint.Painter) -> None:
    engine = Engine(Miniature(painter), WIDE, job_memory_bytes=1.0, beside=AtOnce())
    for i in range(2):
        engine.submit(str(i), Request(prompt="a cup", num_inference_steps=2))
    watched = run(engine)
    assert [type(watched.of(str(i))[-1]) for i in range(2)] == [Finished, Finished]


def test_engine_counters_match_the_work(painter: overpaint.Painter) -> None:
    seconds = itertools.count()
    engine = Engine(Miniature(painter), WIDE, beside=AtOnce(), clock=lambda: float(next(seconds)))
    assert engine.counters.steps == engine.counters.rows == 0
    painter.model.cache = Cache()
    for i in range(3):
        engine.submit(str(i), Request(prompt="a cup", seed=i, num_inference_steps=4 + i))
    run(engine)
    counters = engine.counters
    assert counters.batches == {6: 4, 4: 1, 2: 1}
    assert (counters.steps, counters.rows, counters.halvings) == (6, 30, 0)
    assert counters.step_seconds == counters.steps  # each looks at the clock before and after
    assert counters.misses == {"canvas": 1, "prompts": 2}  # the negative one is empty
    assert counters.hits == {"canvas": 2, "prompts": 7}
    assert counters.cache_bytes == painter.model.cache.size > 0
    assert counters.resident == {"miniature": 128}


def test_engine_costs_add_up_to_its_time(
    painter: overpaint.Painter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step or a decoding takes a second; one request is canceled, one cannot go on."""
    seconds = itertools.count()
    engine = Engine(Miniature(painter), WIDE, beside=AtOnce(), clock=lambda: float(next(seconds)))

    def broken(predict: Predict, rows: Sequence[Row]) -> Tensor:
        if any(row.sigma < 1 and row.conditioning.size_ids[0, 0] == 77 for row in rows):
            raise ZeroDivisionError("a defect")
        return predict(rows)

    change(monkeypatch, painter, broken)
    requests = unlike() | {
        "large": Request(prompt="a cat", width=192, height=128, num_inference_steps=6, seed=1),
        "higher": Request(prompt="a cup", upscale=2, num_inference_steps=4, seed=2),
        "canceled": Request(prompt="a cup", num_inference_steps=1000, seed=3),
        "broken": Request(prompt="a cup", original_size=(77, 77), num_inference_steps=6, seed=4),
    }
    for name, request in requests.items():
        engine.submit(name, request)
    watched = run(engine, ticks=12)
    engine.cancel("canceled")
    run(engine, watched)
    for name in requests:
        kinds = [type(event) for event in watched.of(name)]
        assert kinds.count(Spent) == 1
        end = {"canceled": Canceled, "broken": Failed}.get(name, Finished)
        assert kinds[-2:] == [Spent, end]
    spent = {name: event for name, event in watched.told if isinstance(event, Spent)}
    pictures = sum(len(event.images) for _, event in watched.told if isinstance(event, Finished))
    decodings = pictures - 1  # nothing is painted for "nothing"
    taken = sum(one.seconds for one in spent.values())
    assert taken == pytest.approx(engine.counters.step_seconds + decodings)
    assert spent["nothing"] == Spent()
    assert min(one.seconds for name, one in spent.items() if name != "nothing") > 0
    square = 128 * 128 / 1e6
    assert spent["plain"].megapixel_steps == pytest.approx(6 * square)
    assert spent["two"].megapixel_steps == pytest.approx(2 * 5 * square)
    assert spent["twice"].megapixel_steps == pytest.approx((2 * 4 - 1) * square)  # of second order
    assert spent["large"].megapixel_steps == pytest.approx(6 * 1.5 * square)
    assert spent["higher"].megapixel_steps > 4 * 4 * square


@pytest.mark.parametrize("where", ["planning", "stepping", "decoding"])
def test_engine_out_of_memory_keeps_fewer_weights_on_the_device(
    monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    limit = MemoryLimit(60 * 10**6)
    memory = DeviceMemory(torch.device("cpu"), limit, max_block_bytes=10**6, min_block_bytes=10**4)
    model = load_model("miniature", device="cpu", dtype="fp32", memory=memory)
    engine = Engine(Miniature(overpaint.Painter(model)), WIDE, beside=AtOnce())
    fails = [True, True]

    def tight(run: Callable[..., Any]) -> Callable[..., Any]:
        def run_tight(*arguments: Any) -> Any:
            if fails:
                fails.pop()
                raise torch.OutOfMemoryError("tried to allocate 2 GiB")
            return run(*arguments)

        return run_tight

    if where == "planning":
        monkeypatch.setattr("overpaint.diffusion.run.plan", tight(plan))
    elif where == "stepping":
        monkeypatch.setattr("overpaint.engine.engine.evaluate", tight(evaluate))
    else:
        monkeypatch.setattr(Run, "decode_picture", tight(Run.decode_picture))
    engine.submit("a", Request(prompt="a cup", seed=1, num_inference_steps=2))
    events = run(engine).of("a")
    assert isinstance(events[-1], Finished)
    notices = [event.message for event in events if isinstance(event, Notice)]
    assert sum("out of memory" in notice for notice in notices) == 2
