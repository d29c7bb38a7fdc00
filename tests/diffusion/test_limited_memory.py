"""A model whose weights do not all have room on the device paints the same pictures."""

import pydoc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from overpaint import Control, Lora, Request, load
from overpaint.diffusion.denoise import evaluate
from overpaint.diffusion.memory import (
    META,
    PROCESS_BYTES,
    MemoryEstimate,
    choose_memory,
    estimate_memory,
    plan_memory,
    read_free_bytes,
)
from overpaint.errors import DeviceError, RequestError
from overpaint.models.checkpoint import load_model
from overpaint.models.devices import DeviceChoice, DeviceOptions
from overpaint.models.library import catalog
from overpaint.models.library.library import Library
from overpaint.models.memory_fallback import hold_weights
from overpaint.nn.device_memory import DeviceMemory, MemoryLimit
from overpaint.nn.memory_meter import MemoryMeter
from overpaint.painter import Painter

HOUSE = Path(__file__).parents[2] / "examples" / "house.png"
CPU = torch.device("cpu")
FP32 = DeviceChoice(CPU, torch.float32, torch.float32)
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


def load_limited(limit: MemoryLimit, *, reads_files: bool = False) -> Painter:
    memory = DeviceMemory(
        CPU, limit, reads_files=reads_files, max_block_bytes=MB, min_block_bytes=10_000
    )
    return Painter(load_model("miniature", device=CPU, dtype="fp32", memory=memory))


def paint(painter: Painter, fields: dict[str, Any]) -> np.ndarray[Any, Any]:
    arguments: dict[str, Any] = {"prompt": "a house", "num_inference_steps": 2} | fields
    return np.asarray(painter.run(Request(seed=3, **arguments), progress=False).image)


def get_memory(painter: Painter) -> DeviceMemory:
    assert painter.model.device_memory
    return painter.model.device_memory


@pytest.mark.parametrize("reads_files", [False, True], ids=["host", "files"])
def test_pictures_are_the_same_to_the_bit(reads_files: bool) -> None:
    """In a row, since a LoRA changes weights that the next request needs unchanged."""
    whole = Painter(load_model("miniature", device=CPU, dtype="fp32"))
    limited = load_limited(MemoryLimit(12 * MB), reads_files=reads_files)
    for name, fields in REQUESTS.items():
        assert np.array_equal(paint(limited, fields), paint(whole, fields)), name
    assert get_memory(limited).bytes < 13 * MB


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_peak_is_within_a_tenth_of_the_limit(share: float) -> None:
    request = Request(prompt="a house", num_inference_steps=2)
    estimate = estimate_memory(request, "miniature", Library(), FP32)
    max_bytes = estimate.beside + int(share * estimate.weights)
    limit = MemoryLimit(max_bytes, estimate.encode, estimate.step, estimate.decode)
    limited = load_limited(limit)
    resident = get_memory(limited).bytes
    with MemoryMeter(CPU) as meter:
        limited.run(request, progress=False)
    assert resident + meter.peak < 1.1 * max_bytes


def test_blocks_come_to_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's meta device refuses tensors of the host, as a GPU does."""
    monkeypatch.setattr("overpaint.diffusion.memory.LARGEST_LAYER_BYTES", MB)
    plan = plan_memory("miniature", Library(), DeviceOptions(META, "fp32", vram_gb=0.05))
    memory = plan.make_memory()
    assert memory
    painter = Painter(load_model("miniature", device=META, dtype="fp32", memory=memory))
    for fields in REQUESTS.values():
        paint(painter, fields)
    assert any("room for" in notice for notice in painter.model.notices)


def test_vae_that_overflows_is_read_again_in_fp32() -> None:
    limit = MemoryLimit(12 * MB)
    memory = DeviceMemory(CPU, limit, reads_files=True, max_block_bytes=MB, min_block_bytes=10_000)
    loaded = load_model("miniature", device=CPU, dtype="fp32", vae_dtype="bf16", memory=memory)
    vae: Any = loaded.vae
    latent = torch.zeros(1, 4, 16, 16)
    with loaded.vae_in_dtype(torch.float32):
        assert vae.decode(latent).sample.dtype == torch.float32
    assert vae.decode(latent.bfloat16()).sample.dtype == torch.bfloat16


def test_process_stays_within_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("overpaint.diffusion.memory.LARGEST_LAYER_BYTES", MB)
    ram_gb = (PROCESS_BYTES + 60 * MB) / 1e9
    painter = load("miniature", device="cpu", ram_gb=ram_gb)
    memory = get_memory(painter)
    assert memory.reads_files
    painter.create("a house", seed=3, num_inference_steps=2, progress=False)
    assert 10 * MB < memory.bytes < 60 * MB


class Full:
    """Runs out of memory until the device holds fewer bytes of weights than a number."""

    def __init__(self, function: Callable[..., Any], fitting_bytes: int, painter: Painter):
        self._function = function
        self._fitting_bytes = fitting_bytes
        self._painter = painter

    def __call__(self, *arguments: Any) -> Any:
        memory = self._painter.model.device_memory
        if memory is None or memory.bytes > self._fitting_bytes:
            raise torch.OutOfMemoryError("tried to allocate 2 GiB")
        return self._function(*arguments)


@pytest.mark.parametrize(
    "where", ["overpaint.diffusion.run.plan", "overpaint.painter.evaluate", "decode_latent"]
)
def test_picture_is_the_same_after_the_device_was_full(
    monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """The network stays on the device at first, and its largest part leaves later."""
    fields: dict[str, Any] = {"loras": (Lora(name="miniature-comic"),), "num_images": 2}
    whole = Painter(load_model("miniature", device=CPU, dtype="fp32"))
    limited = load_limited(MemoryLimit(60 * MB))
    expected = paint(whole, fields)
    paint(limited, fields)
    name = where if "." in where else f"overpaint.diffusion.run.latents.{where}"
    full = Full(pydoc.locate(name), 20 * MB, limited)  # pyright: ignore[reportArgumentType]
    monkeypatch.setattr(name, full)
    result = limited.run(
        Request(prompt="a house", num_inference_steps=2, seed=3, **fields), progress=False
    )
    assert np.array_equal(np.asarray(result.image), expected)
    assert any("out of memory: the device has room for" in notice for notice in result.notices)


def test_request_that_never_fits_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    limited = load_limited(MemoryLimit(60 * MB))
    monkeypatch.setattr("overpaint.painter.evaluate", Full(evaluate, -1, limited))
    with pytest.raises(DeviceError, match="ran out of memory"):
        paint(limited, {})
    monkeypatch.undo()
    assert paint(limited, {}).any()


def test_weights_that_stayed_on_the_device_leave_with_their_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A LoRA that is merged before is in the picture after, and so is its absence."""
    fields: dict[str, Any] = {"loras": (Lora(name="miniature-comic"),)}
    whole = Painter(load_model("miniature", device=CPU, dtype="fp32"))
    expected = [paint(whole, own) for own in (fields, {})]
    monkeypatch.setattr("overpaint.models.checkpoint.pack_network", id)  # as on a GPU
    filled = Painter(load_model("miniature", device=CPU, dtype="fp32"))
    paint(filled, fields)
    memory = hold_weights(filled.model)
    filled.model.device_memory = memory
    assert memory.lower()
    for own, picture in zip((fields, {}), expected, strict=True):
        assert np.array_equal(paint(filled, own), picture)


def test_full_device_holds_fewer_weights_from_then_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """On torch's meta device, which stands for a GPU."""
    painter = Painter(load_model("miniature", device=META, dtype="fp32"))
    assert painter.model.device_memory is None
    monkeypatch.setattr("overpaint.painter.evaluate", Full(evaluate, 20 * MB, painter))
    paint(painter, {"loras": (Lora(name="miniature-comic"),)})
    memory = get_memory(painter)
    assert memory.bytes < memory.held_bytes
    paint(painter, {"loras": (Lora(name="miniature-comic"),)})
    assert memory.copies > 0


def test_full_host_fails_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    painter = Painter(load_model("miniature", device=CPU, dtype="fp32"))
    monkeypatch.setattr("overpaint.painter.evaluate", Full(evaluate, 0, painter))
    with pytest.raises(DeviceError, match="ran out of memory"):
        paint(painter, {})


def test_plan_counts_what_the_request_needs() -> None:
    small = Request(prompt="a house", width=64, height=64)
    large = Request(prompt="a house", width=256, height=256)
    plans = [
        plan_memory("miniature", Library(), DeviceOptions("cpu", ram_gb=1), request=own)
        for own in (small, large)
    ]
    assert plans[0].estimate.step < plans[1].estimate.step
    assert plans[0].estimate.decode < plans[1].estimate.decode


@pytest.mark.parametrize(("free", "limited"), [(10**12, False), (5 * 10**7, True), (None, False)])
def test_free_memory_is_the_limit_if_there_is_no_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free: int | None, limited: bool
) -> None:
    monkeypatch.setattr("overpaint.diffusion.memory.LARGEST_LAYER_BYTES", MB)
    monkeypatch.setattr("overpaint.diffusion.memory.read_free_bytes", lambda device: free)  # pyright: ignore[reportUnknownLambdaType]
    model = catalog.resolve_model("miniature")  # a folder, which is not known to be small
    memory = choose_memory(model, Library(paths=True), DeviceOptions("cpu", "fp32"))
    assert (memory is not None) == limited


def test_free_memory_of_this_machine_is_known() -> None:
    free = read_free_bytes(CPU)
    assert free
    assert 10**8 < free < 10**14
    assert read_free_bytes(META) is None


@pytest.mark.parametrize(
    ("limits", "device", "message"),
    [
        ({"vram_gb": 8}, "cpu", "vram_gb: The device cpu uses the host's memory. Use ram_gb"),
        ({"ram_gb": 8}, META, "ram_gb: The weights are on meta, and not in the host's memory"),
    ],
)
def test_limit_of_another_memory_is_refused(
    limits: dict[str, Any], device: Any, message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        plan_memory("miniature", Library(), DeviceOptions(device, **limits))


def test_limit_follows_from_the_estimate() -> None:
    estimate = MemoryEstimate(weights=7 * 10**9, encode=1, step=4 * 10**8, decode=16 * 10**8)
    assert estimate.limit_to(10 * 10**9) is None
    limit = estimate.limit_to(4 * 10**9)
    assert limit == MemoryLimit(36 * 10**8, 1, 4 * 10**8, 16 * 10**8)
    with pytest.raises(DeviceError, match=r"needs 2\.1 GB on the device, and 2\.0 GB are allowed"):
        estimate.limit_to(2 * 10**9)
