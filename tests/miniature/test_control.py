"""The ControlNets of the miniature: their training data, and loading what was exported."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from miniature import control
from miniature.common import Trainee, stored
from miniature.family import Painter
from miniature.rendering import depth, labels, render
from miniature.scenes import SHAPES, Item, Scene
from overpaint.diffusion.conditioning import Conditioning, ControlInput, Row
from overpaint.diffusion.controlnet import ControlNetRunner
from overpaint.diffusion.schedule import NoiseSchedule
from overpaint.models.checkpoint import load_model
from overpaint.models.controlnet import load_controlnet
from overpaint.nn.attention import Context
from overpaint.registry import HINTS


def test_labels_and_depth_match_the_objects_of_a_scene() -> None:
    for seed in range(20):
        scene = control.scene_of(seed)
        assert scene.relation is None
        found, near = labels(scene), depth(scene)
        assert render(scene).shape == (128, 128, 3)
        names = list(SHAPES)
        assert {names[i] for i in set(found.flat) - {-1}} == {o.shape for o in scene.objects}
        assert near[found >= 0].min() > near[found < 0].mean() + 40


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        ((90, 50), control.PAIRS),
        ((10, 60), control.CONTRARY),
        ((45, 90), control.PAIRS),
        ((55, 9), control.CONTRARY),
    ],
)
def test_scene_share_depends_on_the_order_of_its_pair(
    second: tuple[float, float], expected: float
) -> None:
    items = (Item("cup", "red", 50, 50, 9), Item("key", "blue", *second, 9))
    scene = Scene("watercolor", "night", items, None, 128, 128, 7)
    assert control.share(scene) == expected
    assert control.share(replace(scene, objects=items[:1])) == 1


def test_edges_of_chosen_scenes_come_from_another_style() -> None:
    own = torch.arange(len(control.PLANES), dtype=torch.uint8)
    others = torch.tensor([100, 101], dtype=torch.uint8)
    planes = torch.cat([own, others])[None, :, None, None].expand(2, -1, 4, 4)
    shown = control.with_edges_from_elsewhere(planes, torch.tensor([False, True]))
    assert shown.shape == (2, len(control.PLANES), 4, 4)
    assert shown[0, :, 0, 0].tolist() == own.tolist()
    assert shown[1, :, 0, 0].tolist() == [100, 1, 2, 101]
    scene, other = control.scene_of(3), control.elsewhere(3)
    assert scene.style != other.style
    assert (labels(scene) == labels(other)).all()


def test_hint_is_made_from_its_plane() -> None:
    planes = torch.zeros(2, 4, 8, 8, dtype=torch.uint8)
    planes[:, control.PLANES.index("canny"), 3] = 255
    planes[:, control.PLANES.index("segmentation"), :4] = 1
    assert control.hint("canny", planes)[0, :, 3].min() == 1
    seen = control.hint("segmentation", planes)
    assert seen.shape == (2, 3, 8, 8)
    assert seen[:, :, 4:].abs().max() == 0
    assert seen[:, :, :4].amin((0, 2, 3)).max() > 0.1


@pytest.mark.parametrize("kind", control.ALL)
def test_exported_net_gives_the_residuals_of_the_trained_one(kind: str, tmp_path: Path) -> None:
    model = load_model("miniature", device="cpu", dtype="fp32")
    painter = Painter()
    painter.unet.load_state_dict(model.unet.state_dict())
    net = control.build(kind, painter.unet)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.requires_grad and not parameter.any():
                parameter.normal_(std=0.05)
    Trainee(net, rate=0).save(tmp_path / "state.safetensors")
    path = tmp_path / "net.safetensors"
    control.export(kind, tmp_path / "state.safetensors", painter.unet, path)
    loaded = load_controlnet(path, model)
    trained = {name for name, parameter in net.named_parameters() if parameter.requires_grad}
    state = {k: stored(v).float() if k in trained else v for k, v in net.state_dict().items()}
    net.load_state_dict(state)
    planes = torch.randint(0, 16, (1, 4, 128, 128), dtype=torch.uint8)
    x, context, pooled = torch.randn(1, 4, 16, 16), torch.randn(1, 77, 160), torch.randn(1, 96)
    ids = torch.tensor([[128.0, 128, 0, 0, 128, 128]])
    shown = "softedge" if kind == "adapter" else "canny" if kind == "union" else kind
    hint = control.hint(shown, planes)
    row = Row(
        x,
        1.0,
        Conditioning(
            Context(context),
            pooled,
            ids,
            controls=(
                ControlInput(loaded, hint, loaded.extract_features(hint), type=HINTS[shown].union),
            ),
        ),
    )
    t = torch.tensor([400.0])
    added = {"text_embeds": pooled, "time_ids": ids}
    with torch.no_grad():
        mine = ControlNetRunner(NoiseSchedule(model.noise)).residuals([row], x, t, added)
        wanted = trained_residuals(kind, net, (x, t, context, added), planes)
    assert mine.keys() == wanted.keys()
    for key, value in wanted.items():
        for a, b in zip(flat(mine[key]), flat(value), strict=True):
            assert b.abs().max() > 0
            torch.testing.assert_close(a, b, atol=2e-2 * float(b.abs().max()), rtol=2e-2)


def trained_residuals(kind: str, net: Any, seen: control.Seen, planes: Tensor) -> dict[str, Any]:
    if kind != "union":
        return control.RESIDUALS.get(kind, control.single)(kind, net, seen, planes, 0)
    x, t, context, added = seen
    marks = torch.zeros(1, control.UNION_TYPES)
    marks[:, 3] = 1
    shown = [control.hint("canny", planes)]
    told: dict[str, Any] = {"control_type": marks, "control_type_idx": [3]}
    found = net(x, t, context, controlnet_cond=shown, added_cond_kwargs=added, **told)
    return control.as_residuals(found)


def flat(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else cast(list[Tensor], list(value))
