"""Tests of peak host memory while loading checkpoints of half a gigabyte."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from overpaint.models.checkpoint import build_model, load_model, open_single_file
from overpaint.models.devices import choose_device
from overpaint.models.files.safetensors_io import open_weights
from overpaint.models.model import Model
from tests.memory import COUNTED, added
from tests.models import original
from tests.models.original import WIDE, tiny_configs, write_folder, write_safetensors

SLACK = 1.15


@pytest.mark.skipif(not COUNTED.exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize(
    "layout",
    [
        pytest.param("folder", marks=pytest.mark.smoke),
        pytest.param("single", marks=pytest.mark.slow),
    ],
)
def test_loading_checkpoint_peak_memory_is_one_copy(tmp_path: Path, layout: str):
    """Load fp16 files as bf16, so that each tensor is converted."""
    configs = tiny_configs(**WIDE)
    modules = original.build(configs, "meta")
    numbers = original.size_of(p for module in modules.values() for p in module.parameters())
    weights = 2 * numbers
    assert weights >= 5 * 10**8
    if layout == "folder":
        path = write_folder(tmp_path / "folder", configs, modules, torch.float16)
    else:
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
    return build_model("single", source, choose_device("cpu", "bf16", None, small=False))


if __name__ == "__main__":
    load_model("miniature")  # import all modules before the measurement
    print(*added(lambda: load(sys.argv[1], Path(sys.argv[2]))))
