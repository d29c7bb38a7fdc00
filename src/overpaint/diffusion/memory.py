"""Estimate the memory of a request on a device, before any weights are read.

The request runs on torch's meta device for two steps of each stage: the same program as for a
picture, with the shapes of all tensors and no values. Only the headers of files are read.
"""

from dataclasses import dataclass, replace
from os import PathLike, fspath
from typing import Any

import psutil
import torch

from overpaint.diffusion.denoise import group_by_batch_key, step
from overpaint.diffusion.run import Run
from overpaint.errors import DeviceError, ModelError, RequestError
from overpaint.models.addons import AddonLoader
from overpaint.models.devices import DeviceChoice, DeviceOptions, choose_device
from overpaint.models.files.safetensors_io import count_numbers
from overpaint.models.library import catalog
from overpaint.models.library.library import Library
from overpaint.models.named_models import find_checkpoint, load_library_model
from overpaint.models.separate_parts import GivenParts
from overpaint.nn.device_memory import DeviceMemory, MemoryLimit
from overpaint.nn.memory_meter import MemoryMeter
from overpaint.request import Request
from overpaint.system.memory import read_total_memory

META = torch.device("meta")

TENSOR_SHARE = 0.9
"""The share of a device's memory for tensors. Kernels and the rounding of allocators need the
rest."""

NUMBERS_BESIDE = 1_300_000_000
"""Numbers that have room beside the weights on a device with ample memory. A guided picture of
1024 x 1024 pixels needs 0.9 billion."""

PROCESS_BYTES = 600_000_000
"""The bytes that a process uses before it has a model, mostly for libraries."""

LARGEST_LAYER_BYTES = 2**28
"""The bytes of weights that a device must have room for: a layer of 128 MB and the next block."""


@dataclass(frozen=True)
class MemoryEstimate:
    """The bytes of the tensors of a request on its device.

    Kernels use more for themselves, and allocators round up; neither is in the estimate.

    Attributes:
        weights: The weights of the model, of its nets and of its LoRAs.
        encode: The largest number beside the weights while prompts and pictures are encoded.
        step: The largest number beside the weights in a step of the network.
        decode: The largest number beside the weights while a picture is decoded.
    """

    weights: int
    encode: int
    step: int
    decode: int

    @property
    def beside(self) -> int:
        """The largest number beside the weights."""
        return max(self.encode, self.step, self.decode)

    @property
    def total(self) -> int:
        """The bytes that the request needs with all weights on the device."""
        return self.weights + self.beside

    def limit_to(self, max_bytes: int) -> MemoryLimit | None:
        """Return how a model uses a device with fewer bytes; None if all weights have room.

        Args:
            max_bytes: The bytes of the device.

        Raises:
            DeviceError: The device has too few bytes for the request.
        """
        usable = int(max_bytes * TENSOR_SHARE)
        needed = self.beside + LARGEST_LAYER_BYTES
        if self.weights > LARGEST_LAYER_BYTES and usable < needed:
            raise DeviceError(
                f"The request needs {needed / TENSOR_SHARE / 1e9:.1f} GB on the device, and "
                f"{max_bytes / 1e9:.1f} GB are allowed. Paint a smaller picture, or allow more."
            )
        if usable >= self.total:
            return None
        return MemoryLimit(usable, self.encode, self.step, self.decode)


def estimate_memory(
    request: Request, model: str, library: Library, placement: DeviceChoice, **arguments: Any
) -> MemoryEstimate:
    """Estimate the memory of a request on an accelerator.

    Args:
        request: The request. All its pictures run together, as on an accelerator.
        model: The name of the model.
        library: The library in which names are looked up.
        placement: The dtypes. The device does not count.
        arguments: Further arguments of `load_library_model`.

    Raises:
        RequestError, PictureError, ModelError: See `Run`.
    """
    few = {"num_inference_steps": 2, "refine_steps": request.refine_steps and 2, "steps": "exact"}
    with MemoryMeter(META) as meter:
        shapes = replace(placement, device=META)
        loaded = load_library_model(model, library, device=shapes, **arguments)
        loader = AddonLoader(loaded, library)
        kept = loader.load(request)  # `Run` finds them in the loader
        weights = meter.bytes
        meter.restart()
        run = Run(request.model_copy(update=few), loaded, loader)
        encode, in_step = meter.restart(), 0
        while live := [trajectory for trajectory in run.trajectories if not trajectory.done]:
            for together in group_by_batch_key(live):
                step(together)
            in_step = max(in_step, meter.restart())
        for index in run.undecoded:
            for _ in run.decode_picture(index):
                pass
        decode = meter.restart()
    del kept
    beside = (max(0, peak - weights) for peak in (encode, in_step, decode))
    return MemoryEstimate(weights, *beside)


@dataclass(frozen=True)
class MemoryPlan:
    """How a model uses the memory of a device for a request.

    Attributes:
        device: The device.
        estimate: The memory that the request needs.
        limit: The limit on the device; None if all weights have room.
    """

    device: torch.device
    estimate: MemoryEstimate
    limit: MemoryLimit | None

    def make_memory(self) -> DeviceMemory | None:
        """Return the device's memory with the limit; None if all weights have room."""
        if self.limit is None:
            return None
        return DeviceMemory(self.device, self.limit, reads_files=self.device.type == "cpu")

    def describe(self) -> str:
        """Return a phrase for users: how many bytes of weights have room in a step."""
        if self.limit is None:
            return "all weights have room"
        room = max(0, self.limit.room("step"))
        return f"{room / 1e9:.1f} GB of weights have room in a step, the others come when they run"


def choose_memory(
    model: str | PathLike[str],
    library: Library,
    options: DeviceOptions,
    *,
    parts: GivenParts | None = None,
    request: Request | None = None,
) -> DeviceMemory | None:
    """Return the memory of a device with a limit, or None if all weights have room.

    Without a given limit, the free memory of the device is the limit. If it is ample, no plan is
    made.

    Args:
        model: See `plan_memory`.
        library: See `plan_memory`.
        options: See `plan_memory`.
        parts: See `plan_memory`.
        request: See `plan_memory`.

    Raises:
        RequestError, DeviceError, ModelError: See `plan_memory`.
    """
    placement = _choose_placement(model, options)
    max_bytes = _read_limit(placement.device, options)
    if max_bytes is None:
        max_bytes = _find_scarce_bytes(model, library, placement)
    if max_bytes is None:
        return None
    return _make_plan(model, library, placement, max_bytes, parts, request).make_memory()


def plan_memory(
    model: str | PathLike[str],
    library: Library,
    options: DeviceOptions,
    *,
    parts: GivenParts | None = None,
    request: Request | None = None,
) -> MemoryPlan:
    """Plan how a model uses the memory of a device, before any weights are read.

    Args:
        model: The name of the model.
        library: The library in which names are looked up.
        options: The device and the limit of its memory. Without a limit all weights have room.
        parts: See `load_library_model`.
        request: The request. By default, a guided picture of the model's native size.

    Raises:
        RequestError: The limit is not for this device.
        DeviceError: The memory is too little for the request.
        ModelError: See `load_library_model`.
    """
    placement = _choose_placement(model, options)
    max_bytes = _read_limit(placement.device, options)
    return _make_plan(model, library, placement, max_bytes, parts, request)


def _make_plan(
    model: str | PathLike[str],
    library: Library,
    placement: DeviceChoice,
    max_bytes: int | None,
    parts: GivenParts | None,
    request: Request | None,
) -> MemoryPlan:
    estimate = estimate_memory(
        request or Request(prompt="a picture"),
        fspath(model),
        library,
        placement,
        parts=parts,
    )
    limit = None if max_bytes is None else estimate.limit_to(max_bytes)
    return MemoryPlan(placement.device, estimate, limit)


def _choose_placement(model: str | PathLike[str], options: DeviceOptions) -> DeviceChoice:
    return choose_device(options.device, options.dtype, None, small=model == "miniature")


def _read_limit(device: torch.device, options: DeviceOptions) -> int | None:
    """Return the bytes that a device may use for tensors; None if the user gave no limit.

    Raises:
        RequestError: The limit is not for this device.
    """
    vram_gb, ram_gb = options.vram_gb, options.ram_gb
    if vram_gb is not None and device.type in ("cpu", "mps"):
        instead = "Use ram_gb" if device.type == "cpu" else "Leave the value out"
        raise RequestError("vram_gb", f"The device {device} uses the host's memory. {instead}.")
    if ram_gb is not None and device.type != "cpu":
        raise RequestError(
            "ram_gb", f"The weights are on {device}, and not in the host's memory. Use vram_gb."
        )
    if ram_gb is not None:
        return max(0, int(ram_gb * 1e9) - PROCESS_BYTES)
    return None if vram_gb is None else int(vram_gb * 1e9)


def _find_scarce_bytes(
    model: str | PathLike[str], library: Library, placement: DeviceChoice
) -> int | None:
    """Return the free bytes of a device; None if they are ample for a model, or unknown."""
    free = read_free_bytes(placement.device)
    if free is None:
        return None
    try:
        path = catalog.resolve_model(fspath(find_checkpoint(model, library)))
        numbers = count_numbers(path) + NUMBERS_BESIDE
    except ModelError:
        return None  # The loader reports the fault.
    return None if free > numbers * placement.dtype.itemsize else free


def read_free_bytes(device: torch.device) -> int | None:
    """Return the free memory of a device in bytes; None if it is unknown."""
    match device.type:
        case "cuda":
            return torch.cuda.mem_get_info(device)[0]
        case "cpu":
            return int(min(psutil.virtual_memory().available, read_total_memory()))
        case _:
            return None
