"""Tests of ControlNet files: keys identify the kind; other files are rejected with a reason."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from overpaint.errors import CheckpointError, ModelNotFoundError
from overpaint.models.controlnet import load_controlnet
from overpaint.models.files.original_layout import to_original_name
from tests.models.original import UNET, build, original_layout, tiny_configs
from tests.tiny import tiny_model
from tests.tiny_control import tiny_adapter, tiny_net, write, write_control_lora

State = dict[str, Tensor]


@pytest.mark.parametrize(
    ("kind", "run_as", "types"),
    [("full", "controlnet", 0), ("small", "controlnet", 0), ("union", "union", 6)],
)
def test_controlnet_kind_follows_from_keys(
    kind: str, run_as: str, types: int, tmp_path: Path
) -> None:
    net = load_controlnet(write(tiny_net(kind), tmp_path / "net.safetensors"), tiny_model())
    assert (net.kind, net.types, len(net.sha256)) == (run_as, types, 64)


def test_adapter_in_original_layout_loads(tmp_path: Path) -> None:
    adapter = tiny_adapter()
    state = {k.removeprefix("adapter."): v for k, v in adapter.state_dict().items()}
    save_file(state, tmp_path / "adapter.safetensors")
    net = load_controlnet(tmp_path / "adapter.safetensors", tiny_model())
    shown = torch.rand(1, 3, 128, 128)
    assert net.kind == "adapter"
    for result, reference in zip(net.extract_features(shown), adapter(shown), strict=True):
        torch.testing.assert_close(result, reference)


def test_original_layout_names_match_reference() -> None:
    """Compare with an independent table."""
    configs = tiny_configs()
    unet = build(configs, "meta")["unet"]
    known = {k for k in original_layout(configs, build(configs, "meta")) if k.startswith(UNET)}
    attends = tuple(hasattr(b, "attentions") for b in unet.get_submodule("up_blocks").children())
    named = {UNET + to_original_name(k, layers=2, attends=attends) for k in unet.state_dict()}
    assert named == known


def changed(path: Path, change: Callable[[State], object]) -> Path:
    state = load_file(path)
    change(state)
    save_file(state, path)
    return path


def without(*names: str) -> Callable[[State], object]:
    def change(state: State) -> None:
        for key in [key for key in state if key.startswith(names)]:
            del state[key]

    return change


def with_tensor(name: str, *shape: int) -> Callable[[State], object]:
    def change(state: State) -> None:
        state[name] = torch.zeros(shape)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("add_embedding"), "Stable Diffusion 1.5 or 2"),
        (without("controlnet_cond_embedding"), "not a ControlNet that Overpaint knows"),
        (without("mid_block.resnets.1"), "missing"),
        (with_tensor("more", 2), "unexpected: more"),
    ],
)
def test_file_that_is_not_a_controlnet_is_rejected(
    change: Callable[[State], object], message: str, tmp_path: Path
) -> None:
    path = changed(write(tiny_net(), tmp_path / "net.safetensors"), change)
    with pytest.raises(CheckpointError, match=message):
        load_controlnet(path, tiny_model())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_tensor("a.up", 2, 2), "match no layer: a.up"),
        (without("zero_convs.1"), "has no zero_convs.1.0.weight"),
    ],
)
def test_damaged_control_lora_is_rejected(
    change: Callable[[State], object], message: str, tmp_path: Path
) -> None:
    path, _ = write_control_lora(tmp_path / "lora.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load_controlnet(changed(path, change), tiny_model())


def test_adapter_for_another_model_is_rejected(tmp_path: Path) -> None:
    path = write(tiny_adapter(), tmp_path / "adapter.safetensors")
    old = changed(path, with_tensor("adapter.conv_in.weight", 32, 192, 3, 3))
    with pytest.raises(CheckpointError, match=r"8-fold: it is for Stable Diffusion 1\.5"):
        load_controlnet(old, tiny_model())


def test_pickle_and_unknown_name_are_rejected(tmp_path: Path) -> None:
    pickle = tmp_path / "net.pt"
    pickle.write_bytes(b"PK\x03\x04")
    with pytest.raises(CheckpointError, match="pickle"):
        load_controlnet(pickle, tiny_model())
    with pytest.raises(ModelNotFoundError, match="Unknown ControlNet 'cany'"):
        load_controlnet("cany", tiny_model())
