"""Use less memory of a device after it ran out of it."""

import torch

from overpaint.models.adapters import get_adapter_merger
from overpaint.models.model import Model
from overpaint.nn.device_memory import (
    MAX_BLOCK_BYTES,
    MIN_BLOCK_BYTES,
    DeviceMemory,
    MemoryLimit,
)

MIN_BLOCKS = 32
"""Blocks of a small model, at least."""


def use_less_memory(model: Model) -> str | None:
    """Keep fewer bytes of weights on the model's device.

    The first call moves weights that all stay on the device to the host's memory, from where blocks
    come when they run. No other thread may run the UNet.

    Returns:
        A message for the user. None if the device cannot hold fewer: it is the CPU, or a layer
        would have no room.
    """
    if model.device_memory is None:
        if model.device.type == "cpu":
            return None
        with model.text_lock, model.vae_lock:
            model.device_memory = hold_weights(model)
    if not model.device_memory.lower():
        return None
    return f"out of memory: {model.device_memory.describe()}"


def hold_weights(model: Model) -> DeviceMemory:
    """Take charge of a model's weights, and limit its device to the bytes that they have now."""
    merger = get_adapter_merger(model)
    encoders = {part: own.model for part, own in model.encoders_by_part.items()}
    for part in ("unet", *encoders):
        merger.use(part, ())
    merger.slots.clear()  # They change weights in place, which blocks do not keep.
    modules: tuple[torch.nn.Module, ...] = (model.unet, model.vae, *encoders.values())
    weights = (own for module in modules for own in module.state_dict().values())
    total = sum(own.nbytes for own in weights)
    block = min(MAX_BLOCK_BYTES, total // MIN_BLOCKS)
    memory = DeviceMemory(
        model.device,
        MemoryLimit(total),
        max_block_bytes=block,
        min_block_bytes=min(MIN_BLOCK_BYTES, block // MIN_BLOCKS),
    )
    memory.hold(model.unet, "step")
    memory.hold(model.vae, "decode")
    for encoder in encoders.values():
        memory.hold(encoder, "encode")
    return memory
