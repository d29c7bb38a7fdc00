"""Place the weights of modules: on a device, or within its limited memory."""

from collections.abc import Mapping

import torch
from torch import nn

from overpaint.errors import RequestError
from overpaint.models.files.file_home import leave_in_file
from overpaint.models.files.lazy_tensor import LazyTensor
from overpaint.models.files.safetensors_io import fill_module
from overpaint.nn.device_memory import DeviceMemory
from overpaint.nn.eight_bits import FORMATS, store_in_eight_bits
from overpaint.nn.kernels import EightBits
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
    # With 8 bits, the device need not have room for more.
    on_host = memory or (eight_bits and device.type != "meta")
    home = torch.device("cpu") if on_host else device
    fill_module(module, stored, part=part, device=home, dtype=dtype, channels_last=channels_last)
    if eight_bits:
        multiplies = FORMATS[eight_bits].multiplies(device)
        store_in_eight_bits(module, eight_bits, multiplies=multiplies)
    if memory:
        memory.hold(module, work)
    elif home != device:
        module.to(device)
