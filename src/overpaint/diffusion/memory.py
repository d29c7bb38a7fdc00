"""Estimate the memory of a request on a device, before any weights are read.

The request runs on torch's meta device for two steps of each stage: the same program as for a
picture, with the shapes of all tensors and no values. Only the headers of files are read.
"""

from dataclasses import dataclass
from typing import Any

import torch

from overpaint.diffusion.denoise import group_by_batch_key, step
from overpaint.diffusion.run import Run
from overpaint.models.addons import AddonLoader, load_library_model
from overpaint.models.library.library import Library
from overpaint.nn.memory_meter import MemoryMeter
from overpaint.request import Request

META = torch.device("meta")


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
    def total(self) -> int:
        """The bytes that the request needs with all weights on the device."""
        return self.weights + max(self.encode, self.step, self.decode)


def estimate_memory(
    request: Request, model: str, library: Library, dtype: str, **arguments: Any
) -> MemoryEstimate:
    """Estimate the memory of a request on an accelerator.

    Args:
        request: The request. All its pictures run together, as on an accelerator.
        model: The name of the model.
        library: The library in which names are looked up.
        dtype: "bf16", "fp16" or "fp32".
        arguments: Further arguments of `load_library_model`.

    Raises:
        RequestError, PictureError, ModelError: See `Run`.
    """
    few = {"num_inference_steps": 2, "refine_steps": request.refine_steps and 2, "steps": "exact"}
    with MemoryMeter(META) as meter:
        loaded = load_library_model(model, library, device=META, dtype=dtype, **arguments)
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
