"""A model whose weights do not all have room on the device paints the same pictures."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from overpaint import Control, Lora, Request, load
from overpaint.diffusion.memory import META, MemoryEstimate, estimate_memory, plan_memory
from overpaint.errors import DeviceError, RequestError
from overpaint.models.checkpoint import load_model
from overpaint.models.library.library import Library
from overpaint.nn.device_memory import DeviceMemory, MemoryLimit
from overpaint.nn.memory_meter import MemoryMeter
from overpaint.painter import Painter

HOUSE = Path(__file__).parents[2] / "examples" / "house.png"
CPU = torch.device("cpu")
MB = 10**6

REQUESTS: dict[str, dict[str, Any]] = {
    "text": {},
    "picture": {"image": HOUSE, "strength": 0.5, "mask_from": "box:10,10,200,200"},
    "LoRAs": {"loras": (Lora(name="miniature-comic"),)},
    "control": {"controls": (Control(kind="canny", image=HOUSE),)},
    "union": {"controls": (Control(kind="depth", hint=HOUSE, net="miniature-union"),)},
    "refiner": {"refiner": "miniature-refiner", "refine": "ensemble"},
    "embedding": {"prompt": "(a house:1.2) BREAK <embedding:miniature-toy>"},
}


@pytest.fixture
def without_packing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute as a GPU does: packed weights of the CPU's kernels cannot leave."""
    for module in ("checkpoint", "controlnet"):
        monkeypatch.setattr(f"overpaint.models.{module}.pack_network", id)  # does nothing


def load_limited(limit: MemoryLimit) -> Painter:
    memory = DeviceMemory(CPU, limit, max_block_bytes=MB, min_block_bytes=10_000)
    return Painter(load_model("miniature", device=CPU, dtype="fp32", memory=memory))


def paint(painter: Painter, fields: dict[str, Any]) -> np.ndarray[Any, Any]:
    arguments: dict[str, Any] = {"prompt": "a house", "num_inference_steps": 2} | fields
    return np.asarray(painter.run(Request(seed=3, **arguments), progress=False).image)


def get_memory(painter: Painter) -> DeviceMemory:
    assert painter.model.device_memory
    return painter.model.device_memory


@pytest.mark.usefixtures("without_packing")
def test_pictures_are_the_same_to_the_bit() -> None:
    """In a row, since a LoRA changes weights that the next request needs unchanged."""
    whole = Painter(load_model("miniature", device=CPU, dtype="fp32"))
    limited = load_limited(MemoryLimit(12 * MB))
    for name, fields in REQUESTS.items():
        assert np.array_equal(paint(limited, fields), paint(whole, fields)), name
    assert get_memory(limited).bytes < 13 * MB


@pytest.mark.usefixtures("without_packing")
@pytest.mark.parametrize("share", [0.3, 0.6])
def test_peak_is_within_a_tenth_of_the_limit(share: float) -> None:
    request = Request(prompt="a house", num_inference_steps=2)
    estimate = estimate_memory(request, "miniature", Library(), "fp32")
    max_bytes = estimate.beside + int(share * estimate.weights)
    limit = MemoryLimit(max_bytes, estimate.encode, estimate.step, estimate.decode)
    limited = load_limited(limit)
    resident = get_memory(limited).bytes
    with MemoryMeter(CPU) as meter:
        limited.run(request, progress=False)
    assert resident + meter.peak < 1.1 * max_bytes


@pytest.mark.usefixtures("without_packing")
def test_blocks_come_to_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's meta device refuses tensors of the host, as a GPU does."""
    monkeypatch.setattr("overpaint.diffusion.memory.LARGEST_LAYER_BYTES", MB)
    memory = plan_memory("miniature", Library(), 0.05, device=META, dtype="fp32", parts={})
    assert memory
    painter = Painter(load_model("miniature", device=META, dtype="fp32", memory=memory))
    for fields in REQUESTS.values():
        paint(painter, fields)
    assert any("room for" in notice for notice in painter.model.notices)


def test_memory_of_the_host_has_no_limit() -> None:
    with pytest.raises(RequestError, match="vram_gb: The device cpu uses the host's memory"):
        load("miniature", device="cpu", vram_gb=8)


def test_limit_follows_from_the_estimate() -> None:
    estimate = MemoryEstimate(weights=7 * 10**9, encode=1, step=4 * 10**8, decode=16 * 10**8)
    assert estimate.limit_to(10 * 10**9) is None
    limit = estimate.limit_to(4 * 10**9)
    assert limit == MemoryLimit(36 * 10**8, 1, 4 * 10**8, 16 * 10**8)
    with pytest.raises(DeviceError, match=r"needs 2\.1 GB on the device, and 2\.0 GB are allowed"):
        estimate.limit_to(2 * 10**9)
