"""Write random checkpoints of SDXL's layer sizes, for benchmarks that need no trained weights."""

from dataclasses import replace
from pathlib import Path

import torch

from overpaint.models.family import Configs, shipped_configs
from tests.models import original


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
