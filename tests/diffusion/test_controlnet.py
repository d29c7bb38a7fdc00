"""ControlNets per row: each row with its own control images and intervals, in any batch."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from overpaint.diffusion.conditioning import Conditioning, ControlInput, Row
from overpaint.diffusion.controlnet import level_weights
from overpaint.diffusion.schedule import NoiseSchedule
from overpaint.diffusion.tiling.network import crop_conditioning
from overpaint.diffusion.tiling.windows import Window
from overpaint.diffusion.unet import UNet
from overpaint.models.controlnet import ControlNet, load_controlnet
from overpaint.models.model import Model
from overpaint.nn.attention import Context
from tests.tiny import POOLED, WIDTHS, tiny_model
from tests.tiny_control import tiny_adapter, tiny_net, write


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model()


@pytest.fixture(scope="module")
def nets(model: Model, tmp_path_factory: pytest.TempPathFactory) -> dict[str, ControlNet]:
    folder: Path = tmp_path_factory.mktemp("nets")
    made = {kind: tiny_net(kind) for kind in ("full", "small", "union")}
    made["adapter"] = tiny_adapter()
    return {
        kind: load_controlnet(write(net, folder / f"{kind}.safetensors"), model)
        for kind, net in made.items()
    }


def network(model: Model) -> UNet:
    return UNet(model.unet, NoiseSchedule(model.noise))


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def picture(seed: int) -> Tensor:
    return draw(seed, 1, 3, 16, 16).sigmoid().repeat_interleave(8, 2).repeat_interleave(8, 3)


def control(net: ControlNet, seed: int, **fields: Any) -> ControlInput:
    shown = picture(seed)
    return ControlInput(net, shown, net.extract_features(shown), **fields)


def row(seed: int, *controls: ControlInput, sigma: float = 3.0) -> Row:
    ids = torch.tensor([[128.0, 128, 0, 0, 128, 128]])
    told = Conditioning(Context(draw(seed, 1, 77, sum(WIDTHS))), draw(seed, 1, POOLED), ids)
    return Row(3 * draw(seed, 1, 4, 16, 16), sigma, replace(told, controls=controls))


@torch.no_grad()
def predicted(model: Model, *rows: Row) -> Tensor:
    return network(model).predict(rows)


def test_level_weights_match_a1111_and_diffusers() -> None:
    assert level_weights("balanced", 10).tolist() == [1.0] * 10
    soft = level_weights("soft", 10)  # A1111: 0.825 ** (9 - i), and 1 at the middle
    torch.testing.assert_close(soft, torch.tensor([0.825 ** (9 - i) for i in range(10)]))
    guess = level_weights("guess", 10)  # diffusers: logspace(-1, 0)
    assert guess[0].item() == pytest.approx(0.1)
    assert guess[-1].item() == pytest.approx(1)


def test_rows_with_different_controls_match_solo_runs(
    model: Model, nets: dict[str, ControlNet]
) -> None:
    half = torch.zeros(1, 1, 16, 16)
    half[..., :8] = 1
    rows = [
        row(1),
        row(2, control(nets["full"], 1, scale=0.7), sigma=9),
        row(3, control(nets["full"], 2), control(nets["small"], 3, weighting="soft")),
        row(4, control(nets["union"], 4, type=3), sigma=0.5),
        row(5, control(nets["union"], 5, type=1, scale=0.3), control(nets["union"], 6, type=3)),
        row(6, control(nets["adapter"], 7, scale=0.6), control(nets["small"], 8, mask=half)),
        row(7, control(nets["full"], 9, interval=(0.9, 1.0)), control(nets["full"], 10)),
    ]
    together = predicted(model, *rows)
    for own, alone in zip(together.split(1), rows, strict=True):
        torch.testing.assert_close(own, predicted(model, alone), atol=2e-5, rtol=1e-4)
    for steered in rows[1:]:
        plain = replace(steered, conditioning=replace(steered.conditioning, controls=()))
        assert (predicted(model, steered) - predicted(model, plain)).abs().max() > 1e-3


@torch.no_grad()
def test_nets_of_all_kinds_in_one_row_add_their_residuals(
    model: Model, nets: dict[str, ControlNet]
) -> None:
    """Compare with an explicit step, since no diffusers pipeline combines these nets."""
    first, second = (
        control(nets["full"], 1, scale=0.7),
        control(nets["union"], 2, type=3, scale=0.5),
    )
    adapter = control(nets["adapter"], 3, scale=0.4)
    asked = row(4, first, second, adapter)
    plain: Any = tiny_model(overpaint_blocks=False).unet
    x = asked.x / (asked.sigma**2 + 1) ** 0.5
    t = torch.tensor([NoiseSchedule(model.noise).timestep(asked.sigma)])
    told = asked.conditioning
    seen: dict[str, Any] = {
        "encoder_hidden_states": draw(4, 1, 77, sum(WIDTHS)),
        "added_cond_kwargs": {"text_embeds": told.pooled, "time_ids": told.size_ids},
    }
    marks = torch.tensor([[0.0, 0, 0, 1, 0, 0]])
    a = tiny_net("full")(x, t, controlnet_cond=first.hint, conditioning_scale=0.7, **seen)
    b = tiny_net("union")(
        x,
        t,
        controlnet_cond=[second.hint],
        control_type=marks,
        control_type_idx=[3],
        conditioning_scale=[0.5],
        **seen,
    )
    down = [p + q for p, q in zip(a[0], b[0], strict=True)]
    features = [0.4 * f for f in tiny_adapter()(adapter.hint)]
    wanted = plain(
        x,
        t,
        **seen,
        down_block_additional_residuals=down,
        mid_block_additional_residual=a[1] + b[1],
        down_intrablock_additional_residuals=features,
    ).sample
    torch.testing.assert_close(predicted(model, asked), wanted, atol=1e-4, rtol=1e-4)


def test_net_runs_only_on_rows_with_an_active_control(
    model: Model, nets: dict[str, ControlNet]
) -> None:
    sizes: list[int] = []

    def note(_: object, inputs: tuple[Tensor, ...]) -> None:
        sizes.append(len(inputs[0]))

    hook = nets["full"].module.register_forward_pre_hook(note)
    try:
        late = control(nets["full"], 1, interval=(0.99, 1.0))
        predicted(model, row(1), row(2, late))
        assert sizes == []
        predicted(model, row(1), row(2, control(nets["full"], 1)), row(3, late))
        assert sizes == [1]
    finally:
        hook.remove()


def test_control_interval_excludes_its_end_except_1(nets: dict[str, ControlNet]) -> None:
    half = control(nets["small"], 1, interval=(0.25, 0.5))
    assert [half.acts(p) for p in (0.2, 0.25, 0.49, 0.5)] == [False, True, True, False]
    assert control(nets["small"], 1).acts(1.0)


def test_control_mask_limits_the_area_of_the_control(
    model: Model, nets: dict[str, ControlNet]
) -> None:
    nowhere = control(nets["full"], 1, mask=torch.zeros(1, 1, 16, 16))
    everywhere = control(nets["full"], 1, mask=torch.ones(1, 1, 16, 16))
    assert torch.equal(predicted(model, row(1, nowhere)), predicted(model, row(1)))
    torch.testing.assert_close(
        predicted(model, row(1, everywhere)), predicted(model, row(1, control(nets["full"], 1)))
    )


def test_control_context_replaces_the_prompt_for_the_net(
    model: Model, nets: dict[str, ControlNet]
) -> None:
    """A face ControlNet, for example, reads the face's tokens instead of the prompt."""
    own = Context(draw(9, 1, 4, sum(WIDTHS)))
    told = predicted(model, row(1, control(nets["full"], 1, context=own)))
    assert (told - predicted(model, row(1, control(nets["full"], 1)))).abs().max() > 1e-4


def test_window_crops_the_control_image(nets: dict[str, ControlNet]) -> None:
    window = Window(4, 8, 8, 8)
    whole = row(1, control(nets["full"], 1), control(nets["adapter"], 2)).conditioning
    part = crop_conditioning(whole, window, 8)
    for own, before in zip(part.controls, whole.controls, strict=True):
        assert torch.equal(own.hint, before.hint[..., 32:96, 64:128])
    assert part.controls[0].features[0].shape[2:] == (8, 8)
    assert part.controls[1].features[0].shape[2:] == (4, 4)
