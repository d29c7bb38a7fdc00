"""Weights in 8 bits with scales, as ComfyUI writes them.

| key | content |
|---|---|
| `X.weight` | float8 |
| `X.scale_weight`, in newer files `X.weight_scale` | a factor, or one for each row |
| `X.scale_input`, in newer files `X.input_scale` | a factor for 8-bit activations; not used |
| `X.comfy_quant` | a description of the format; not used |
| `scaled_fp8` | a mark |

Overpaint computes in 16 bits or more, so each weight is multiplied by its scale as it is read.
Source: github.com/comfyanonymous/ComfyUI, comfy/ops.py and comfy/utils.py.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torch

from overpaint.errors import CheckpointError
from overpaint.models.files.lazy_tensor import LazyTensor

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)

SCALE_KEY = re.compile(r"(.*)\.(?:scale_weight|weight_scale)")
UNUSED_KEY = re.compile(r"(?:.*\.)?(?:scale_input|input_scale|comfy_quant|scaled_fp8)")


def apply_weight_scales(tensors: Mapping[str, LazyTensor], path: Path) -> dict[str, LazyTensor]:
    """Return tensors in which scales are part of the weights that they belong to.

    Args:
        tensors: The tensors of a file by key.
        path: The file, for messages.

    Raises:
        CheckpointError: A scale has no weight in float8, or does not fit it.
    """
    scales = {key: match[1] for key in tensors if (match := SCALE_KEY.fullmatch(key))}
    if not scales:
        return {key: own for key, own in tensors.items() if not key.endswith("scaled_fp8")}
    kept = {
        key: own
        for key, own in tensors.items()
        if key not in scales and not UNUSED_KEY.fullmatch(key)
    }
    for key, stem in scales.items():
        weight, scale = kept.get(f"{stem}.weight"), tensors[key]
        if weight is None:
            raise CheckpointError(f"{path}: {key} scales {stem}.weight, which is not in the file")
        if weight.dtype not in FLOAT8:
            raise CheckpointError(
                f"{path}: {weight.key} is quantized as {str(weight.dtype).removeprefix('torch.')}; "
                "Overpaint reads scaled weights in float8. Get the file in fp8, fp16 or bf16."
            )
        kept[f"{stem}.weight"] = _scale_weight(weight, scale, path)
    return kept


def _scale_weight(weight: LazyTensor, scale: LazyTensor, path: Path) -> LazyTensor:
    """Return a weight times its scale, which is one number or one for each row."""
    numbers = scale.shape.numel()
    rows = weight.shape[0] if weight.ndim else 1
    if numbers not in (1, rows) or not scale.dtype.is_floating_point:
        raise CheckpointError(
            f"{path}: {scale.key} is {list(scale.shape)} and does not fit {weight.key}, which is "
            f"{list(weight.shape)}"
        )

    def multiply(stored: torch.Tensor) -> torch.Tensor:
        factor = scale.read().float()
        if numbers > 1:
            return stored.float() * factor.reshape(-1, *(1,) * (stored.ndim - 1))
        return stored.float() * factor.reshape(())

    return weight.changed_by(multiply)
