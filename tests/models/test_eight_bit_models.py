"""A model whose UNet has weights of 8 bits paints nearly the same pictures."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.controlnets.controlnet import ControlNetModel
from numpy.typing import NDArray

from overpaint import Control, Lora, Request, load
from overpaint.diffusion.denoise import group_by_batch_key, step
from overpaint.diffusion.run import Run
from overpaint.errors import RequestError
from overpaint.models.addons import AddonLoader
from overpaint.models.checkpoint import load_model
from overpaint.models.controlnet import load_controlnet
from overpaint.models.library.library import Library
from overpaint.models.model import Model
from overpaint.nn import eight_bits
from overpaint.nn.device_memory import DeviceMemory, MemoryLimit
from overpaint.nn.eight_bits import FORMATS, EightBitLinear, Format, list_transformers
from overpaint.nn.kernels import EightBits
from overpaint.nn.memory_meter import MemoryMeter
from overpaint.painter import Painter
from tests.tiny import tiny_folder
from tests.tiny_control import write_control_lora

HOUSE = Path(__file__).parents[2] / "examples" / "house.png"
CPU = torch.device("cpu")

REQUESTS: dict[str, dict[str, Any]] = {
    "text": {},
    "picture": {"image": HOUSE, "strength": 0.5},
    "LoRA": {"loras": (Lora(name="miniature-comic"),)},
    "control": {"controls": (Control(kind="canny", image=HOUSE),)},
}


def paint(painter: Painter, fields: dict[str, Any]) -> NDArray[np.float64]:
    arguments: dict[str, Any] = {"prompt": "a red cup", "num_inference_steps": 6} | fields
    return np.asarray(painter.run(Request(seed=3, **arguments), progress=False).image, np.float64)


def psnr(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    return float(10 * np.log10(255**2 / np.square(a - b).mean()))


def load_in(
    name: EightBits, *, multiplies: bool, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> Painter:
    """Load the miniature as on a device that multiplies in 8 bits, or that does not."""
    kind = Format(FORMATS[name].dtype, FORMATS[name].max_code, lambda _: multiplies)
    monkeypatch.setitem(eight_bits.FORMATS, name, kind)
    return Painter(load_model("miniature", device="cpu", dtype=name, **options))


@torch.inference_mode()
def run_together(model: Model, requests: Sequence[Request]) -> list[torch.Tensor]:
    """Return the latents of requests that share their steps."""
    loader = AddonLoader(model, Library())
    runs = [Run(request, model, loader) for request in requests]
    trajectories = [trajectory for run in runs for trajectory in run.trajectories]
    while live := [trajectory for trajectory in trajectories if not trajectory.done]:
        for together in group_by_batch_key(live):
            step(together)
    return [trajectory.latent for trajectory in trajectories if trajectory.latent is not None]


@pytest.fixture(scope="module")
def exact() -> Painter:
    return load("miniature", device="cpu", dtype="fp32", progress=False)


@pytest.mark.parametrize("fields", REQUESTS.values(), ids=REQUESTS)
@pytest.mark.parametrize(
    ("name", "multiplies", "decibels"),
    [("int8", False, 38), ("int8", True, 30), ("fp8", False, 28)],
    ids=["int8", "int8 with inputs", "fp8"],
)
def test_pictures_are_close(
    name: EightBits,
    multiplies: bool,
    decibels: float,
    fields: dict[str, Any],
    exact: Painter,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rounded = load_in(name, multiplies=multiplies, monkeypatch=monkeypatch)
    found, wanted = paint(rounded, fields), paint(exact, fields)
    assert not np.array_equal(found, wanted)
    assert psnr(found, wanted) > decibels


@pytest.mark.parametrize("multiplies", [False, True])
def test_rows_with_different_loras_match_solo_runs(
    multiplies: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    painter = load_in("int8", multiplies=multiplies, monkeypatch=monkeypatch)
    steps: dict[str, Any] = {"prompt": "a red cup", "num_inference_steps": 4, "seed": 3}
    requests = [
        Request(**steps),
        Request(loras=(Lora(name="miniature-comic"),), **steps),
        Request(loras=(Lora(name="miniature-sticker", scale=0.5),), **steps),
    ]
    for request, found in zip(requests, run_together(painter.model, requests), strict=True):
        [alone] = run_together(painter.model, [request])
        difference = (found - alone).square().mean().sqrt()
        # Rounding inputs turns differences of the last bit into those of a code.
        assert difference < (0.05 if multiplies else 1e-4)


def test_weights_that_come_in_blocks_paint_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = MemoryLimit(4 * 10**6)
    memory = DeviceMemory(CPU, limit, max_block_bytes=10**6, min_block_bytes=10_000)
    limited = load_in("int8", multiplies=False, monkeypatch=monkeypatch, memory=memory)
    whole = load_in("int8", multiplies=False, monkeypatch=monkeypatch)
    for fields in REQUESTS.values():
        assert np.array_equal(paint(limited, fields), paint(whole, fields))
    assert memory.copies > 10


def test_weights_in_their_files_cannot_have_8_bits() -> None:
    memory = DeviceMemory(CPU, MemoryLimit(10**6), reads_files=True)
    with pytest.raises(
        RequestError, match="dtype: The weights have no room in memory and are read"
    ):
        load_model("miniature", device="cpu", dtype="int8", memory=memory)


def test_result_records_the_format() -> None:
    painter = load("miniature", device="cpu", dtype="fp8", progress=False)
    done = painter.run(Request(prompt="a cup", num_inference_steps=1), progress=False)
    assert json.loads(json.dumps(done.metadata[0]))["model"]["dtype"] == "fp8"
    assert painter.model.dtype_name == "fp8"


def test_control_lora_copies_the_weights(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "tiny")
    path, _ = write_control_lora(tmp_path / "control.safetensors")
    nets: list[dict[str, torch.Tensor]] = []
    for dtype in ("fp32", "int8"):
        model: Model = load_model(folder, device="cpu", dtype=dtype)
        net: Any = load_controlnet(path, model).module
        assert isinstance(net, ControlNetModel)
        nets.append({name: own.float() for name, own in net.state_dict().items()})
    assert nets[0].keys() == nets[1].keys()
    for name, own in nets[0].items():
        torch.testing.assert_close(nets[1][name], own, atol=0.02 * float(own.abs().max()), rtol=0)


def test_loading_holds_one_transformer_with_more_bits() -> None:
    with MemoryMeter(CPU) as meter:
        model = load_model("miniature", device="cpu", dtype="int8")
    modules = (model.unet, model.vae, *(encoder.model for encoder in model.text_encoders))
    own = sum(p.nbytes for module in modules for p in module.parameters())
    numbers = [
        sum(p.numel() for p in transformer.parameters())
        for _, transformer in list_transformers(model.unet)
    ]
    assert meter.bytes >= own
    assert meter.peak < own + 2 * 4 * max(numbers)  # of fp32, and a copy to round
    assert meter.peak < own + 3 * sum(numbers)


def test_memory_holds_one_copy_with_8_bits() -> None:
    whole = load_model("miniature", device="cpu", dtype="fp32")
    small = load_model("miniature", device="cpu", dtype="int8")
    linear = [m for m in small.unet.modules() if isinstance(m, EightBitLinear)]
    numbers = sum(m.codes.numel() for m in linear)
    sizes = [sum(p.nbytes for p in own.unet.parameters()) for own in (whole, small)]
    scales = sum(m.scales.nbytes for m in linear)
    assert sizes[1] == sizes[0] - 3 * numbers + scales
