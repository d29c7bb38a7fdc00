"""Report this machine's devices and memory, and whether models fit."""

import os
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import psutil
import torch

from overpaint.errors import ModelError
from overpaint.models.devices import choose_device, list_devices
from overpaint.models.files.safetensors_io import count_numbers, open_weights
from overpaint.models.library import catalog
from overpaint.system.folders import find_cache_folder

GB = 1e9

SDXL_PARAMETERS = 2_567_463_684 + 123_060_480 + 694_659_840 + 83_653_863
"""Parameters of SDXL's UNet, two text encoders and VAE."""

DECODE_BYTES = 4.3 * GB
"""Memory to decode 1024 x 1024 pixels with SDXL's VAE in 16 bits; it grows with the area.

This is the largest temporary need of a request. Published measurements report 4 to 4.5 GB."""


@dataclass(frozen=True)
class DeviceReport:
    """A device of this machine.

    Attributes:
        name: The name for `--device`.
        label: The product name.
        total: The memory in bytes.
        free: The free memory in bytes.
    """

    name: str
    label: str
    total: int
    free: int


@dataclass(frozen=True)
class MemoryNeed:
    """The memory that a model needs on the default device.

    Attributes:
        model: The model's name.
        side: The side of its native pictures in pixels.
        dtype: The dtype that "auto" chooses.
        weights: The size of the weights in bytes.
        working: The largest additional need in bytes for one picture of native size.
        fits: Whether both fit into the free memory.
    """

    model: str
    side: int
    dtype: str
    weights: int
    working: int
    fits: bool


@dataclass(frozen=True)
class DoctorReport:
    """The report of `overpaint doctor`.

    Attributes:
        versions: The versions of programs by name.
        devices: The devices of this machine; "auto" chooses the first.
        needs: The memory needs of models.
        notes: Facts that the command could not find out.
        folders: The folders of downloads and cached digests, by their contents.
    """

    versions: dict[str, str]
    devices: tuple[DeviceReport, ...]
    needs: tuple[MemoryNeed, ...]
    notes: tuple[str, ...]
    folders: dict[str, Path]

    def lines(self) -> list[str]:
        """Format the report as lines of text."""
        lines = [f"{name} {number}" for name, number in self.versions.items()]
        for device in self.devices:
            room = f"{device.total / GB:.1f} GB, {device.free / GB:.1f} GB free"
            lines.append(f"{device.name}: {device.label}, {room}")
        lines.append(f"auto takes: {self.devices[0].name}")
        for need in self.needs:
            verdict = "fits" if need.fits else "DOES NOT FIT"
            lines.append(
                f"{need.model}: {need.dtype}, {need.weights / GB:.2f} GB of weights and about "
                f"{need.working / GB:.2f} GB to work at {need.side} x {need.side}: {verdict}"
            )
        lines += [f"note: {note}" for note in self.notes]
        return lines + [f"{what}: {folder}" for what, folder in self.folders.items()]


def inspect_machine(model: str | None = None) -> DoctorReport:
    """Inspect this machine.

    Args:
        model: A name, folder or file of a downloaded model whose needs to report as well.
    """
    from huggingface_hub.constants import HF_HUB_CACHE

    devices = tuple(_describe(device) for device in list_devices())
    needs: list[MemoryNeed] = [_need("sdxl", SDXL_PARAMETERS, 1024, devices[0])]
    notes: list[str] = []
    names = ["miniature", model] if model not in (None, "miniature", "sdxl") else ["miniature"]
    for name in names:
        try:
            parameters, side = _measure(name)
            needs.append(_need(name, parameters, side, devices[0]))
        except ModelError as error:
            notes.append(str(error))
    programs = ("overpaint", "torch", "diffusers", "transformers", "safetensors", "huggingface-hub")
    return DoctorReport(
        versions={"python": platform.python_version()} | {p: version(p) for p in programs},
        devices=devices,
        needs=tuple(needs),
        notes=tuple(notes),
        folders={
            "downloads": Path(HF_HUB_CACHE),
            "remembered digests": find_cache_folder(),
        },
    )


def _measure(name: str) -> tuple[int, int]:
    """Return a model's number of parameters and its native side; read file headers only."""
    from overpaint.models.checkpoint import get_native_size
    from overpaint.models.files.single_file import recognize_file
    from overpaint.models.library.folder_configs import read_folder_configs

    path = catalog.resolve_model(name, download=False)
    configs = read_folder_configs(path) if path.is_dir() else recognize_file(open_weights(path))
    return count_numbers(path), get_native_size(configs)


def _need(name: str, parameters: int, side: int, device: DeviceReport) -> MemoryNeed:
    dtype = choose_device(device.name, "auto", None, small=side < 512).dtype
    weights = parameters * dtype.itemsize
    working = int(DECODE_BYTES * (side / 1024) ** 2 * dtype.itemsize / 2)
    short = str(dtype).removeprefix("torch.")
    return MemoryNeed(name, side, short, weights, working, weights + working <= device.free)


def _describe(device: torch.device) -> DeviceReport:
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return DeviceReport(str(device), torch.cuda.get_device_name(device), total, free)
    if device.type == "mps":
        total = torch.mps.recommended_max_memory()
        return DeviceReport(
            "mps", platform.machine(), total, total - torch.mps.driver_allocated_memory()
        )
    capability = torch.backends.cpu.get_cpu_capability()
    label = f"{platform.machine()}, {os.cpu_count()} cores, {capability}"
    memory = psutil.virtual_memory()
    return DeviceReport("cpu", label, memory.total, memory.available)
