"""Steps never make the host wait for the device: they read no values and copy without waiting.

The requests run on torch's meta device, whose tensors have no values. It stands for a GPU, on which
each wait empties the queue of kernels.
"""

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from overpaint import Control, Lora, Request
from overpaint.diffusion.denoise import Trajectory, step
from overpaint.diffusion.memory import META
from overpaint.diffusion.noise import NoiseSource
from overpaint.diffusion.run import Run
from overpaint.diffusion.samplers import get_sampler
from overpaint.diffusion.schedule import NoiseSchedule, make_sigmas
from overpaint.models.addons import AddonLoader
from overpaint.models.checkpoint import load_model
from overpaint.models.library.library import Library
from overpaint.models.noise_config import NoiseConfig
from overpaint.nn.host import copy_to_device
from overpaint.registry import SAMPLERS

HOUSE = Path(__file__).parents[2] / "examples" / "house.png"
STEPS = 2
READS = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2"}


class Dispatched(TorchDispatchMode):
    """Collects operators that read values of a device, or copy between devices and wait."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        devices = {own.device.type for own in args if isinstance(own, Tensor)}
        if name in READS and "meta" in devices:
            self.found.append(name)
        result = func(*args, **kwargs)
        if name in {"_to_copy", "copy_"}:
            waits = not (kwargs.get("non_blocking") or args[2:3] == (True,))
            if waits and len(devices | {result.device.type}) > 1:
                self.found.append(f"{name} between devices")
        return result


class Called(TorchFunctionMode):
    """Collects calls that copy numbers of Python to a device, which torch does with a wait."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (torch.tensor, torch.as_tensor) and result.is_meta:
            self.found.append("tensor of numbers")
        if func in (Tensor.__getitem__, Tensor.__setitem__) and args[0].is_meta:
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(own, list) for own in index):
                self.found.append("list as an index")
        return result


def find_waits(trajectories: tuple[Trajectory, ...]) -> list[str]:
    """Return what makes the host wait after the first step, whose rows the next ones repeat."""
    found: list[str] = []
    step(trajectories)
    with Called(found), Dispatched(found):
        while live := [trajectory for trajectory in trajectories if not trajectory.done]:
            step(live)
    return found


@pytest.fixture(scope="module")
def loader() -> AddonLoader:
    return AddonLoader(load_model("miniature", device=META, dtype="fp32"), Library())


def plan_run(loader: AddonLoader, **fields: Any) -> tuple[Trajectory, ...]:
    arguments: dict[str, Any] = {"prompt": "a house", "seed": 1, "num_inference_steps": STEPS}
    return Run(Request(**arguments | fields), loader.model, loader).trajectories


def test_waits_are_found():
    found: list[str] = []
    x = torch.zeros(3, device="meta")
    with Called(found), Dispatched(found):
        torch.tensor([1.0, 2.0]).to("meta", non_blocking=True)
        assert found == []
        torch.tensor([1.0], device="meta")
        torch.zeros(2).to(x)
        x.copy_(torch.zeros(3))
        x[[0, 1]] = 1.0
        with pytest.raises(RuntimeError):
            x.sum().item()
    assert found == [
        "tensor of numbers",
        "_to_copy between devices",
        "copy_ between devices",
        "list as an index",
        "_local_scalar_dense",
    ]


@pytest.mark.parametrize("name", SAMPLERS)
def test_sampler_never_waits(name: str):
    schedule = NoiseSchedule(NoiseConfig())
    x, found = torch.zeros(1, 4, 8, 8, device=META), list[str]()
    source = NoiseSource(1)
    sampler = get_sampler(name)(
        x, make_sigmas("karras", 6, schedule), lambda: copy_to_device(source.draw(x.shape), META)
    )
    with Called(found), Dispatched(found), suppress(StopIteration):
        asked = next(sampler)
        while True:
            asked = sampler.send(asked.x / (1 + asked.sigma**2))
    assert found == []


@pytest.mark.parametrize(
    "fields",
    [
        {"num_images": 2, "guidance_rescale": 0.5, "subseed_strength": 0.3, "subseed": 2},
        {"image": HOUSE, "strength": 1.0, "mask_from": "box:0,0,256,256", "sampler": "euler_a"},
        {"image": HOUSE, "mask_from": "box:0,0,256,256", "langevin_steps": 2},
        {"loras": (Lora(name="miniature-comic"), Lora(name="miniature-bird"))},
        {"controls": tuple(Control(kind=kind, hint=HOUSE) for kind in ("canny", "depth"))},
        {
            "controls": tuple(
                Control(kind=kind, hint=HOUSE, net="miniature-union") for kind in ("canny", "depth")
            )
        },
        {"controls": (Control(kind="softedge", image=HOUSE),)},
    ],
    ids=["variations", "mask", "langevin", "loras", "nets", "union", "adapter"],
)
def test_step_with_all_features_never_waits(loader: AddonLoader, fields: dict[str, Any]):
    assert find_waits(plan_run(loader, **fields)) == []


def test_step_with_other_loras_in_each_row_never_waits(loader: AddonLoader):
    sets = ((), ("miniature-comic",), ("miniature-comic", "miniature-bird"))
    runs = [plan_run(loader, loras=tuple(Lora(name=name) for name in names)) for names in sets]
    assert find_waits(tuple(trajectory for run in runs for trajectory in run)) == []
