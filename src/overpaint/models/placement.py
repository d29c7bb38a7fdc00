"""Place the weights of modules: on a device, or within its limited memory."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import nn

from overpaint.errors import RequestError
from overpaint.models.files.file_home import leave_in_file
from overpaint.models.files.lazy_tensor import LazyTensor
from overpaint.models.files.safetensors_io import check_tensors, fill_module
from overpaint.nn.device_memory import DeviceMemory
from overpaint.nn.eight_bits import FORMATS, Format, list_transformers, round_layers
from overpaint.nn.kernels import EightBits
from overpaint.nn.weight_blocks import Work

CPU = torch.device("cpu")

Fill = Callable[..., None]
"""`fill_module` for a module; takes the device and names."""


def place_weights(
    module: nn.Module,
    stored: Mapping[str, LazyTensor],
    *,
    part: str,
    work: Work,
    device: torch.device,
    dtype: torch.dtype,
    memory: DeviceMemory | None,
    eight_bits: EightBits | None = None,
) -> None:
    """Place a checkpoint's tensors in a module that was built on the meta device.

    Args:
        module: The module. It must have its final structure.
        stored: The tensors by state dict name; exactly the names of the module.
        part: The name of the module in error messages.
        work: The work of the module.
        device: The device where the module runs.
        dtype: The dtype for floating-point tensors.
        memory: The memory of the device if it is limited. The weights are then in the host's
            memory or in their files, and come to the device in blocks.
        eight_bits: The number format of linear layers with 8 bits; None leaves them in `dtype`.

    Raises:
        CheckpointError: A tensor is missing, unexpected or has another shape.
        RequestError: Weights in their files cannot have 8 bits.
    """
    channels_last = device.type in ("cpu", "cuda")
    if memory and memory.reads_files:
        if eight_bits:
            raise RequestError(
                "dtype",
                f"The weights have no room in memory and are read from their files, where they do "
                f"not have the format {eight_bits}. Use another dtype.",
            )
        homes = leave_in_file(module, stored, part=part, dtype=dtype, channels_last=channels_last)
        memory.hold(module, work, homes)
        return
    home = CPU if memory else device
    fill = partial(fill_module, module, stored, part=part, dtype=dtype, channels_last=channels_last)
    if eight_bits:
        check_tensors(module, stored, part=part)
        _fill_and_round(module, fill, FORMATS[eight_bits], device, home)
    else:
        fill(device=home)
    if memory:
        memory.hold(module, work)


def _fill_and_round(
    module: nn.Module, fill: Fill, kind: Format, device: torch.device, home: torch.device
) -> None:
    """Fill in one transformer after the other, and round it before the next one is read."""
    names = list(module.state_dict())
    for name, transformer in list_transformers(module):
        prefix = f"{name}."
        own = [key for key in names if key.startswith(prefix)]
        fill(device=device if device.type == "meta" else CPU, names=own)
        round_layers(transformer, kind, multiplies=kind.multiplies(device))
        transformer.to(home)
        names = [key for key in names if not key.startswith(prefix)]
    fill(device=home, names=names)
