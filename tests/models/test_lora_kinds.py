"""Tests of LoRA files of LyCORIS beyond products: OFT, BOFT, GLoRA, IA3, biases and norms."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from overpaint.errors import CheckpointError
from overpaint.models.adapters import Adapter, AdapterMerger
from overpaint.models.lora import load_lora
from overpaint.nn.packed import unpacked_state
from tests.tiny import tiny_model

State = dict[str, Tensor]
MODULE = "mid_block.attentions.0.proj_in"
CONVOLUTION = "down_blocks.0.resnets.0.conv2"
NORM = "mid_block.attentions.0.norm"
LAYER_NORM = "mid_block.attentions.0.transformer_blocks.0.norm1"


def weight_of(name: str) -> Tensor:
    return tiny_model().unet.state_dict()[name].clone()


def changed_by(state: State, folder: Path, scale: float = 1.0, **metadata: str) -> State:
    """Return the weights that a LoRA file changes, after merging it."""
    path = folder / "lora.safetensors"
    save_file({k: v.contiguous() for k, v in state.items()}, path, metadata or None)
    model = tiny_model()
    before = {k: v.clone() for k, v in unpacked_state(model.unet).items()}
    lora = load_lora(path, model)
    merger = AdapterMerger(model)
    merger.use("unet", (Adapter(lora, scale),))
    after = {k: v.clone() for k, v in unpacked_state(model.unet).items()}
    merger.use("unet", ())
    assert all(torch.equal(v, before[k]) for k, v in unpacked_state(model.unet).items())
    return {k: v for k, v in after.items() if not torch.equal(v, before[k])}


def kohya(module: str, **tensors: Tensor) -> State:
    stem = f"lora_unet_{module.replace('.', '_')}"
    return {f"{stem}.{role.replace('__', '.')}": value for role, value in tensors.items()}


@pytest.mark.parametrize("module", [MODULE, CONVOLUTION])
def test_biases_are_changed(module: str, tmp_path: Path) -> None:
    weight, bias = weight_of(f"{module}.weight"), weight_of(f"{module}.bias")
    delta, delta_b = torch.randn(weight.shape), torch.randn(bias.shape)
    found = changed_by(kohya(module, diff=delta, diff_b=delta_b), tmp_path, 0.5)
    assert set(found) == {f"{module}.weight", f"{module}.bias"}
    torch.testing.assert_close(found[f"{module}.weight"], weight + 0.5 * delta)
    torch.testing.assert_close(found[f"{module}.bias"], bias + 0.5 * delta_b)


@pytest.mark.parametrize("roles", [("w_norm", "b_norm"), ("diff", "diff_b")])
@pytest.mark.parametrize("module", [NORM, LAYER_NORM])
def test_norms_are_changed(module: str, roles: tuple[str, str], tmp_path: Path) -> None:
    weight, bias = weight_of(f"{module}.weight"), weight_of(f"{module}.bias")
    deltas = {role: torch.randn(weight.shape) for role in roles}
    found = changed_by(kohya(module, **deltas), tmp_path)
    torch.testing.assert_close(found[f"{module}.weight"], weight + deltas[roles[0]])
    torch.testing.assert_close(found[f"{module}.bias"], bias + deltas[roles[1]])


def rotation(block: Tensor) -> Tensor:
    skew = block - block.T
    one = torch.eye(len(block))
    return (one + skew) @ torch.linalg.inv(one - skew)


@pytest.mark.parametrize("module", [MODULE, CONVOLUTION])
def test_oft_rotates_blocks_of_outputs(module: str, tmp_path: Path) -> None:
    weight = weight_of(f"{module}.weight")
    size = 4
    blocks = torch.randn(len(weight) // size, size, size) * 0.3
    turned = torch.block_diag(*map(rotation, blocks)).T @ weight.flatten(1)
    wanted = weight + 0.5 * (turned.reshape(weight.shape) - weight)
    state = kohya(module, oft_blocks=blocks, alpha=torch.tensor(0.0))
    found = changed_by(state, tmp_path, 0.5)[f"{module}.weight"]
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def test_constraint_of_oft_bounds_the_rotation(tmp_path: Path) -> None:
    """LyCORIS and kohya store the bound divided by the number of outputs."""
    weight = weight_of(f"{MODULE}.weight")
    blocks = torch.randn(len(weight) // 4, 4, 4)
    shorter = blocks * (0.5 / (blocks - blocks.mT).norm())
    key = f"{MODULE}.weight"
    wanted = changed_by(kohya(MODULE, oft_blocks=shorter), tmp_path)[key]
    for program in ("lycoris.kohya", "networks.oft"):
        state = kohya(MODULE, oft_blocks=blocks, alpha=torch.tensor(0.5 / len(weight)))
        found = changed_by(state, tmp_path, 1.0, ss_network_module=program)[key]
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def test_boft_is_a_butterfly_of_rotations(tmp_path: Path) -> None:
    weight = weight_of(f"{MODULE}.weight")
    outputs, size, factors = len(weight), 4, 2
    blocks = torch.randn(factors, outputs // size, size, size) * 0.3
    rows = weight.clone()
    for level in range(factors):
        near = 2**level * size // 2
        order = [
            start + side * near + place
            for start in range(0, outputs, 2 * near)
            for place in range(near)
            for side in (0, 1)
        ]
        turned = torch.block_diag(*map(rotation, blocks[level])) @ rows[order]
        rows = torch.empty_like(rows).index_copy(0, torch.tensor(order), turned)
    rescale = 1 + torch.rand(outputs, 1)
    state = kohya(MODULE, oft_blocks=blocks, rescale=rescale)
    found = changed_by(state, tmp_path)[f"{MODULE}.weight"]
    torch.testing.assert_close(found, rows * rescale, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("old", [True, False])
def test_glora_changes_weight_by_itself_and_a_product(old: bool, tmp_path: Path) -> None:
    weight = weight_of(f"{MODULE}.weight")
    outputs, inputs = weight.shape
    a1, a2 = torch.randn(inputs, 2) * 0.3, torch.randn(2, inputs) * 0.3
    b1, b2 = torch.randn(outputs, 2), torch.randn(2, inputs)
    wanted = weight + (weight @ a1 @ a2 + b1 @ b2) * (6 / 2)
    pairs = (a2, a1, b2, b1) if old else (a1, a2, b1, b2)
    named = dict(zip(("a1__weight", "a2__weight", "b1__weight", "b2__weight"), pairs, strict=True))
    found = changed_by(kohya(MODULE, alpha=torch.tensor(6.0), **named), tmp_path)
    torch.testing.assert_close(found[f"{MODULE}.weight"], wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("on_input", [True, False])
def test_ia3_scales_inputs_or_outputs(on_input: bool, tmp_path: Path) -> None:
    weight = weight_of(f"{MODULE}.weight")
    factors = torch.randn(weight.shape[1 if on_input else 0])
    state = kohya(MODULE, weight=factors, on_input=torch.tensor(on_input))
    wanted = weight * (1 + (factors if on_input else factors[:, None]))
    torch.testing.assert_close(changed_by(state, tmp_path)[f"{MODULE}.weight"], wanted)


def test_scalar_of_lycoris_multiplies_the_change(tmp_path: Path) -> None:
    weight = weight_of(f"{MODULE}.weight")
    down, up = torch.randn(2, weight.shape[1]), torch.randn(len(weight), 2)
    state = kohya(MODULE, lora_down__weight=down, lora_up__weight=up, scalar=torch.tensor(0.25))
    found = changed_by(state, tmp_path)[f"{MODULE}.weight"]
    torch.testing.assert_close(found, weight + 0.25 * up @ down)


@pytest.mark.parametrize(
    ("role", "what"),
    [
        ("oft_R.weight", "an OFT adapter in the layout of PEFT or OneTrainer"),
        ("oft_diag", "an OFT adapter in the first layout of LyCORIS"),
        ("boft_R", "a BOFT adapter in PEFT's layout"),
        ("ia3_l", "an IA3 adapter in PEFT's layout"),
        ("vera_lambda_d", "a VeRA adapter"),
        ("lora_E", "an AdaLoRA adapter"),
        ("hra_u", "an HRA adapter"),
        ("bias_indices", "a LoRA with LyCORIS' sparse bias"),
    ],
)
def test_unsupported_adapter_is_rejected_by_name(role: str, what: str, tmp_path: Path) -> None:
    save_file({f"base_model.model.{MODULE}.{role}": torch.ones(4, 4)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=f"{what}, which Overpaint cannot read"):
        load_lora(tmp_path / "x.safetensors", tiny_model())


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (kohya(MODULE, oft_blocks=torch.zeros(3, 5, 5)), "3 blocks of 5 outputs"),
        (kohya(MODULE, oft_blocks=torch.zeros(3, 5)), "has no square blocks"),
        (kohya(MODULE, weight=torch.ones(3), on_input=torch.tensor(True)), "3 factors"),
        (kohya(MODULE, diff_b=torch.zeros(7)), "does not fit a weight of"),
        (kohya(MODULE, w_norm=torch.zeros(7)), "does not fit a weight of"),
        (kohya(NORM, lora_down__weight=torch.zeros(2, 3), lora_up__weight=torch.zeros(3, 2)),
         "does not fit a weight of"),
        (kohya(MODULE, lora_down__weight=torch.zeros(4), lora_up__weight=torch.zeros(4)),
         "factors with one axis"),
        (kohya(MODULE, alpha=torch.tensor(1.0)), "has only alpha"),
    ],
)  # fmt: skip
def test_damaged_tensors_are_rejected(state: State, message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        changed_by(state, tmp_path)
