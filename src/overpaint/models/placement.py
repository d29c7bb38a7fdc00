"""Place the weights of modules: on a device, or within its limited memory."""

from collections.abc import Mapping

import torch
from torch import nn

from overpaint.models.files.file_home import leave_in_file
from overpaint.models.files.lazy_tensor import LazyTensor
from overpaint.models.files.safetensors_io import fill_module
from overpaint.nn.device_memory import DeviceMemory
from overpaint.nn.weight_blocks import Work


def place_weights(
    module: nn.Module,
    stored: Mapping[str, LazyTensor],
    *,
    part: str,
    work: Work,
    device: torch.device,
    dtype: torch.dtype,
    memory: DeviceMemory | None,
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

    Raises:
        CheckpointError: A tensor is missing, unexpected or has another shape.
    """
    channels_last = device.type in ("cpu", "cuda")
    if memory and memory.reads_files:
        homes = leave_in_file(module, stored, part=part, dtype=dtype, channels_last=channels_last)
        memory.hold(module, work, homes)
        return
    home = torch.device("cpu") if memory else device
    fill_module(module, stored, part=part, device=home, dtype=dtype, channels_last=channels_last)
    if memory:
        memory.hold(module, work)
