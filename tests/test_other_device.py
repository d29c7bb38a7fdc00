"""Requests run on a device other than the CPU.

On torch's meta device tensors have shapes and no values. Like a GPU it refuses to compute with
tensors of the CPU, so it finds those that the program forgot to move. The pictures are black.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from overpaint import Control, Lora, Request
from overpaint.events import Finished, Preview
from overpaint.models.checkpoint import load_model
from overpaint.painter import Painter

HOUSE = Path(__file__).parents[1] / "examples" / "house.png"


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({"num_images": 2, "subseed": 3, "subseed_strength": 0.4}, (128, 128)),
        ({"image": HOUSE, "mask_from": "box:10,10,200,200", "guidance_rescale": 0.7}, (512, 512)),
        ({"image": HOUSE, "extend": (0, 0, 300, 0)}, (812, 512)),
        ({"upscale": 3.0}, (384, 384)),
        ({"upscale": 3.0, "upscale_in": "latents"}, (384, 384)),
        ({"image": HOUSE, "refiner": "miniature-refiner", "refine": "ensemble"}, (128, 128)),
        (
            {
                "loras": (Lora(name="miniature-comic"),),
                "controls": (
                    Control(kind="canny", image=HOUSE, mask=HOUSE),
                    Control(kind="depth", hint=HOUSE, net="miniature-union"),
                ),
            },
            (128, 128),
        ),
        ({"prompt": "(a house:1.2) BREAK a tree <embedding:miniature-toy>"}, (128, 128)),
        ({"sampler": "dpmpp_sde", "clip_skip": 1}, (128, 128)),
    ],
    ids=[
        *("variations", "mask", "extension", "upscale", "upscale of latents", "refiner"),
        *("controls and LoRA", "prompt", "sampler"),
    ],
)
def test_request_runs_on_another_device(fields: dict[str, Any], size: tuple[int, int]) -> None:
    painter = Painter(load_model("miniature", device=torch.device("meta"), dtype="fp32"))
    arguments: dict[str, Any] = {"prompt": "a house", "num_inference_steps": 2} | fields
    *events, last = painter.stream(Request(**arguments), preview_every=1)
    assert isinstance(last, Finished)
    assert {image.size for image in last.images} == {size}
    assert any(isinstance(event, Preview) for event in events)


def test_model_without_values_reads_only_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError(f"reads {arguments}")

    monkeypatch.setattr("overpaint.models.checkpoint.compute_sha256", refuse)
    monkeypatch.setattr("overpaint.models.files.lazy_tensor.add_bytes", refuse)
    model = load_model("miniature", device=torch.device("meta"), dtype="bf16")
    assert {parameter.dtype for parameter in model.unet.parameters()} == {torch.bfloat16}
    assert all(parameter.is_meta for parameter in model.vae.parameters())
