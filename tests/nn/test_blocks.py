"""Installed blocks compared with diffusers' on the same weights: tiny UNets and a ControlNet."""

import copy
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from overpaint.errors import CheckpointError
from overpaint.nn.attention import Context
from overpaint.nn.blocks import install_blocks
from overpaint.nn.packed import pack_network
from tests.tiny import POOLED, UNET, WIDTHS


def unet(**config: Any) -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(**{**UNET, **config}).eval().requires_grad_(False)


def inputs(rows: int, shape: tuple[int, int] = (16, 16)) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    return {
        "sample": torch.randn(rows, 4, *shape, generator=generator),
        "timestep": torch.linspace(900, 100, rows),
        "added_cond_kwargs": {
            "text_embeds": torch.randn(rows, POOLED, generator=generator),
            "time_ids": torch.tensor([[128.0, 128, 0, 0, 128, 128]] * rows),
        },
        "return_dict": False,
    }


def prompt(seed: int, length: int = 77) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, length, sum(WIDTHS), generator=generator)


def row(all_rows: dict[str, Any], i: int) -> dict[str, Any]:
    return {
        **all_rows,
        "sample": all_rows["sample"][i : i + 1],
        "timestep": all_rows["timestep"][i : i + 1],
        "added_cond_kwargs": {
            name: value[i : i + 1] for name, value in all_rows["added_cond_kwargs"].items()
        },
    }


@pytest.fixture(scope="module", params=["installed", "packed"])
def pair(request: pytest.FixtureRequest) -> tuple[UNet2DConditionModel, UNet2DConditionModel]:
    """Return diffusers' UNet with explicit attention, and one with installed blocks."""
    reference, changed = unet(), unet()
    reference.set_attn_processor(AttnProcessor())
    install_blocks(changed)
    if request.param == "packed":
        pack_network(changed)
    return reference, changed


@pytest.mark.parametrize("shape", [(16, 16), (12, 20)])
def test_unet_with_installed_blocks_matches_diffusers(
    pair: tuple[UNet2DConditionModel, UNet2DConditionModel], shape: tuple[int, int]
) -> None:
    reference, changed = pair
    rows, tokens = inputs(2, shape), torch.cat([prompt(1), prompt(2)])
    expected = reference(encoder_hidden_states=tokens, **rows)[0]
    from_tokens = changed(encoder_hidden_states=tokens, **rows)[0]
    from_context = changed(encoder_hidden_states=Context(tokens), **rows)[0]
    assert (from_tokens - expected).abs().max() < 1e-5
    assert torch.equal(from_context, from_tokens)


@pytest.mark.parametrize("lengths", [(77, 77, 77), (77, 154, 77)])
def test_batched_rows_match_solo_rows(
    pair: tuple[UNet2DConditionModel, UNet2DConditionModel], lengths: tuple[int, ...]
) -> None:
    _, changed = pair
    rows = inputs(len(lengths))
    contexts = [Context(prompt(i, length)) for i, length in enumerate(lengths)]
    stacked = Context.stack(contexts)
    together = changed(encoder_hidden_states=stacked, **rows)[0]
    alone = torch.cat(
        [changed(encoder_hidden_states=c, **row(rows, i))[0] for i, c in enumerate(contexts)]
    )
    assert (together - alone).abs().max() < 1e-5


def test_blocks_in_bf16_are_as_close_to_exact_as_diffusers() -> None:
    """Attention rounds once more than torch's fused one does, the gate of GEGLU once less."""
    rows, tokens = inputs(2), torch.cat([prompt(1), prompt(2)])
    exact = unet()(encoder_hidden_states=tokens, **rows)[0]
    rows["sample"] = rows["sample"].bfloat16()
    rows["added_cond_kwargs"]["text_embeds"] = rows["added_cond_kwargs"]["text_embeds"].bfloat16()
    reference, changed = unet().bfloat16(), unet().bfloat16()
    install_blocks(changed)
    pack_network(changed)
    errors = [
        (net(encoder_hidden_states=context, **rows)[0].float() - exact).square().mean().sqrt()
        for net, context in (
            (changed, Context(tokens.bfloat16())),
            (reference, tokens.bfloat16()),
        )
    ]
    assert errors[0] < 1.25 * errors[1]
    assert (changed.dtype, changed.device.type) == (torch.bfloat16, "cpu")


def test_installed_blocks_keep_parameter_names() -> None:
    network = unet()
    names = set(network.state_dict())
    install_blocks(network)
    assert set(network.state_dict()) == names


def test_install_blocks_twice_changes_nothing() -> None:
    network = unet()
    install_blocks(network)
    blocks = dict(network.named_modules())
    install_blocks(network)
    assert dict(network.named_modules()) == blocks


def test_channels_last_activations_stay_channels_last() -> None:
    network = unet()
    network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] stub gap
    install_blocks(network)
    formats: list[bool] = []

    def note(_module: nn.Module, _args: Any, out: Tensor | tuple[Tensor]) -> None:
        out = out[0] if isinstance(out, tuple) else out
        formats.append(out.is_contiguous(memory_format=torch.channels_last))

    for name, module in network.named_modules():
        if name.endswith(("resnets.0", "attentions.0")):
            module.register_forward_hook(note)
    network(encoder_hidden_states=prompt(1), **inputs(1))
    assert formats
    assert all(formats)


def test_controlnet_accepts_a_context() -> None:
    shared = {
        name: UNET[name]
        for name in UNET
        if name not in {"sample_size", "up_block_types", "layers_per_block"}
    }
    torch.manual_seed(0)
    net = ControlNetModel(**shared, layers_per_block=1).eval().requires_grad_(False)
    changed = copy.deepcopy(net)
    install_blocks(changed)
    rows, tokens = inputs(1), prompt(1)
    hint = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(2))
    expected, _ = net(encoder_hidden_states=tokens, controlnet_cond=hint, **rows)
    got, _ = changed(encoder_hidden_states=Context(tokens), controlnet_cond=hint, **rows)
    for a, b in zip(got, expected, strict=True):
        assert (a - b).abs().max() < 1e-5


def test_attention_mask_is_rejected() -> None:
    network = unet()
    install_blocks(network)
    with pytest.raises(ValueError, match="encoder_attention_mask"):
        network(
            encoder_hidden_states=prompt(1), encoder_attention_mask=torch.ones(1, 77), **inputs(1)
        )


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            {"resnet_time_scale_shift": "scale_shift"},
            r"down_blocks\.0\.resnets\.0: .*time_embedding_norm",
        ),
        ({"use_linear_projection": False}, "use_linear_projection"),
        ({"only_cross_attention": True}, "only_cross_attention"),
        ({"upcast_attention": True}, "upcast_attention"),
    ],
)
def test_network_with_other_options_is_rejected_by_name(config: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        install_blocks(unet(**config))
