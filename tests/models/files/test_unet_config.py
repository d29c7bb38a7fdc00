"""The config of a UNet follows from the shapes of its tensors."""

from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from overpaint.models.family import shipped_configs
from overpaint.models.files.unet_config import infer_unet_config


def build_shapes(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        unet: Any = UNet2DConditionModel.from_config(config)
    return dict(unet.state_dict())


@pytest.mark.parametrize("name", ["sdxl", "sdxl-inpaint", "sdxl-refiner"])
def test_published_networks_of_full_size_are_inferred(name: str) -> None:
    config = dict(shipped_configs(name).unet)
    shapes = build_shapes(config)
    inferred: Any = infer_unet_config(shapes, config)  # pyright: ignore[reportArgumentType] shapes
    again = build_shapes(inferred)
    assert {key: own.shape for key, own in again.items()} == {
        key: own.shape for key, own in shapes.items()
    }
