import pytest

from overpaint.errors import CheckpointError
from overpaint.models.family import FAMILIES, recognize_family, shipped_configs
from tests.models.original import build, original_layout, size_of

ENCODERS = 123_060_480, 694_659_840


@pytest.mark.parametrize(
    ("name", "unet", "tensors"),
    [
        ("sdxl", 2_567_463_684, 2515),
        ("sdxl-inpaint", 2_567_463_684 + 5 * 9 * 320, 2515),
        ("sdxl-refiner", 2_259_526_660, 1858),
    ],
)
def test_packaged_configs_build_published_models(name: str, unet: int, tensors: int):
    configs = shipped_configs(name)
    modules = build(configs, "meta")
    counts = {part: size_of(module.parameters()) for part, module in modules.items()}
    assert counts.pop("unet") == unet
    assert counts.pop("vae") == 83_653_863
    assert tuple(counts.values()) == ENCODERS[-len(configs.text_encoders) :]
    assert configs.family.name == name
    # SDXL base's file has 2515 tensors.
    assert len(original_layout(configs, modules)) == tensors


def test_miniature_is_recognized_by_any_width():
    unet = shipped_configs("sdxl").unet | {"cross_attention_dim": 160}
    assert recognize_family(unet, 2) is FAMILIES["miniature"]


@pytest.mark.parametrize(
    ("changes", "encoders", "message"),
    [
        ({"addition_embed_type": None, "cross_attention_dim": 768}, 1, r"Stable Diffusion 1\.5"),
        ({"addition_embed_type": None, "cross_attention_dim": 1024}, 1, "Stable Diffusion 2"),
        ({"addition_embed_type": None, "cross_attention_dim": 5}, 1, "a UNet checkpoint"),
        ({"in_channels": 8}, 2, "8 input channels"),
        ({}, 3, r"3 text encoder"),
    ],
)
def test_other_families_are_rejected_by_name(
    changes: dict[str, object], encoders: int, message: str
):
    with pytest.raises(CheckpointError, match=message):
        recognize_family(shipped_configs("sdxl").unet | changes, encoders)
