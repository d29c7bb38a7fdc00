"""On an accelerator: the same picture as on the CPU, and nothing black. Run by `make gpu`."""

from typing import Any

import numpy as np
import pytest
import torch

import overpaint
from overpaint.request import Request

pytestmark = pytest.mark.gpu
FIELDS: dict[str, Any] = {
    "prompt": "a flat illustration of a red house",
    "num_inference_steps": 12,
    "seed": 3,
}


def pixels(dtype: str, device: str = "cuda", **fields: Any) -> Any:
    painter = overpaint.load("miniature", device=device, dtype=dtype)
    return np.asarray(painter.run(Request(**FIELDS, **fields)).images[0], dtype=np.int64)


@pytest.fixture(autouse=True, scope="module")
def exact_matmul() -> None:
    if not torch.cuda.is_available():
        pytest.fail("there is no CUDA device; `make gpu` is for machines that have one")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def test_fp32_on_cuda_matches_the_cpu() -> None:
    difference = np.abs(pixels("fp32") - pixels("fp32", "cpu"))
    assert difference.mean() < 1
    assert np.quantile(difference, 0.99) <= 8


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_on_cuda_is_close_to_fp32_and_not_black(dtype: str) -> None:
    half, full = pixels(dtype), pixels("fp32")
    assert half.std() > 10
    assert np.abs(half - full).mean() < 12


def test_batch_on_cuda_matches_single_pictures() -> None:
    painter = overpaint.load("miniature", device="cuda", dtype="fp32")
    many = painter.run(Request.model_validate({**FIELDS, "num_images": 3})).images
    alone = painter.run(Request.model_validate({**FIELDS, "seed": 5})).images
    assert np.abs(np.asarray(many[2], int) - np.asarray(alone[0], int)).max() <= 2
