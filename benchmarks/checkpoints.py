"""Write random checkpoints of SDXL's layer sizes, for benchmarks that need no trained weights."""

from dataclasses import replace
from pathlib import Path

import torch

from overpaint.models.family import Configs, shipped_configs
from overpaint.nn.kernels import is_fast
from tests.models import original

DTYPES_BY_NAME = {"bf16": torch.bfloat16, "fp32": torch.float32}


def find_cpu_dtype() -> str:
    """Return the dtype for large checkpoints: bf16 if the CPU has kernels for it, else fp32.

    Without such kernels, torch emulates bf16, which takes seven times as long as fp32.
    """
    return "bf16" if is_fast(torch.device("cpu"), torch.bfloat16) else "fp32"


def write_random_checkpoint(
    folder: Path, configs: Configs, dtype: torch.dtype = torch.float16
) -> tuple[Path, int]:
    """Write a checkpoint of random weights; return its folder and the weights' size in bytes."""
    modules = original.build(configs, "meta")
    size = sum(p.numel() * dtype.itemsize for m in modules.values() for p in m.parameters())
    return original.write_folder(folder / "checkpoint", configs, modules, dtype), size


def shallow_sdxl_configs() -> Configs:
    """Return SDXL's configuration with 1, 1 and 2 transformer blocks per level, not 1, 2 and 10.

    The layers keep their sizes, but two programs fit into 16 GB at once.
    """
    sdxl = shipped_configs("sdxl")
    return replace(sdxl, unet={**sdxl.unet, "transformer_layers_per_block": [1, 1, 2]})
