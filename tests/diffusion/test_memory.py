"""The memory of a request, estimated without weights, equals what the CPU's tensors take."""

from pathlib import Path
from typing import Any

import pytest
import torch

from overpaint import Control, Lora, Request
from overpaint.diffusion.denoise import step
from overpaint.diffusion.memory import estimate_memory
from overpaint.diffusion.run import Run
from overpaint.models.addons import AddonLoader
from overpaint.models.checkpoint import load_model
from overpaint.models.devices import choose_device
from overpaint.models.library.library import Library
from overpaint.nn.memory_meter import MemoryMeter

HOUSE = Path(__file__).parents[2] / "examples" / "house.png"
CPU = torch.device("cpu")


def test_meter_counts_live_storages_once() -> None:
    before = torch.zeros(1000)
    with MemoryMeter(CPU) as meter:
        first = before + 1
        view = (first * 2).view(10, 100)[1:]
        assert meter.bytes == meter.peak == 8000
        del first
        assert meter.bytes == 4000
        before.add_(1)
        view.neg_()
        assert meter.bytes == 4000
        assert meter.restart() == 8000
        assert meter.peak == 4000
    assert meter.bytes == 4000
    del view
    assert meter.bytes == 0


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"image": HOUSE, "strength": 0.5, "width": 192, "height": 128},
        {"num_images": 3, "guidance_scale": 1.0},
        {"loras": (Lora(name="miniature-comic"),)},
        {"controls": (Control(kind="canny", image=HOUSE),)},
        {"dtype": "int8"},
    ],
    ids=["text", "picture", "three", "lora", "control", "int8"],
)
def test_estimate_is_within_a_tenth_of_the_measured_tensors(fields: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {"prompt": "a house", "num_inference_steps": 4} | fields
    dtype: str = arguments.pop("dtype", "fp32")
    request = Request(**arguments)
    placement = choose_device("cpu", dtype, None, small=True)
    found = estimate_memory(request, "miniature", Library(), placement)
    model = load_model("miniature", device="cpu", dtype=dtype)
    loader = AddonLoader(model, Library())
    kept = loader.load(request)
    with MemoryMeter(CPU) as meter:
        run = Run(request, model, loader)
        meter.restart()
        for _ in range(2):
            step(run.trajectories)
        in_step = meter.restart()
        while not all(trajectory.done for trajectory in run.trajectories):
            step(run.trajectories)
        meter.restart()
        for index in run.undecoded:
            list(run.decode_picture(index))
        decode = meter.restart()
    del kept
    assert found.step == pytest.approx(in_step, rel=0.1)
    assert found.decode == pytest.approx(decode, rel=0.1)
    modules = (model.unet, model.vae, *(encoder.model for encoder in model.text_encoders))
    own = sum(p.nbytes for module in modules for p in module.parameters())
    assert found.weights >= own
    assert found.weights == pytest.approx(own, rel=0.1) or "loras" in fields or "controls" in fields
