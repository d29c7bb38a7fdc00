"""Loading takes no more host memory than the model itself, measured on checkpoints of 1 GB."""

import gc
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from overpaint.models.checkpoint import build, load_model, open_single_file
from overpaint.models.devices import place
from overpaint.models.model import Model
from overpaint.models.weights import open_weights
from tests.models import original
from tests.models.original import tiny_configs, write_bpe, write_folder, write_safetensors

WIDE: dict[str, Any] = {
    "block_out_channels": [320, 640, 640],
    "transformer_layers_per_block": [1, 7, 7],
    "attention_head_dim": [5, 10, 10],
    "norm_num_groups": 32,
    "cross_attention_dim": 16,
}
"""Makes a UNet of half a billion parameters, in tensors of at most 15 MB."""

SLACK = 1.15


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("layout", ["folder", pytest.param("single", marks=pytest.mark.slow)])
def test_peak_memory_of_loading(tmp_path: Path, layout: str):
    """fp16 on disk, bf16 in memory: each tensor is converted, and none is kept twice."""
    configs = tiny_configs(**WIDE)
    modules = original.build(configs, "meta")
    numbers = original.size_of(p for module in modules.values() for p in module.parameters())
    weights = 2 * numbers
    assert weights >= 10**9
    if layout == "folder":
        path = write_folder(tmp_path / "folder", configs, modules, torch.float16)
    else:
        write_bpe(tmp_path)
        state = original.original_layout(configs, modules)
        path = write_safetensors(tmp_path / "model.safetensors", state, torch.float16)
    home = os.environ | {"HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.models.test_memory", layout, str(path)]
    run = subprocess.run(command, env=home, capture_output=True, text=True, check=False)
    for file in tmp_path.rglob("*.safetensors"):
        file.unlink()
    assert run.returncode == 0, run.stderr
    peak, resting = (int(word) for word in run.stdout.split()[-2:])
    assert weights < resting <= peak
    assert peak <= SLACK * weights


def load(layout: str, path: Path) -> Model:
    if layout == "folder":
        return load_model(path, device="cpu", dtype="bf16")
    source = open_single_file(open_weights(path), tiny_configs(**WIDE))
    return build("single", source, place("cpu", "bf16", None, small=False))


def measure(work: Callable[[], Model]) -> tuple[int, int]:
    """Bytes of resident memory that `work` adds: at its peak, and kept by its result."""
    gc.collect()
    before = status("VmRSS")
    model = work()
    added = status("VmHWM") - before, status("VmRSS") - before
    del model
    return added


def status(field: str) -> int:
    """Bytes, of a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


if __name__ == "__main__":
    print(*measure(lambda: load(sys.argv[1], Path(sys.argv[2]))))
