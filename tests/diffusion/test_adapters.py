"""LoRAs in plans: per row, with all other features, and without effect on later requests."""

from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from overpaint.diffusion.plan import Plan
from overpaint.diffusion.planner import plan
from overpaint.errors import CheckpointError
from overpaint.models.adapters import Adapter
from overpaint.models.addons import Addons
from overpaint.models.controlnet import load_controlnet
from overpaint.models.library.library import Library
from overpaint.models.lora import load_lora
from overpaint.models.model import Model
from overpaint.nn.packed import unpacked_state
from overpaint.painter import Painter
from overpaint.request import Request
from overpaint.request.parts import Control, Lora
from tests.models.test_lora import FORMATS, trained
from tests.test_parity import (
    REPAINT,
    assert_close,
    render_with_diffusers,
    render_with_overpaint,
    request,
    run_plans,
)
from tests.test_parity_control import hint
from tests.tiny import tiny_model, tiny_refiner
from tests.tiny_control import tiny_adapter, tiny_net, write, write_control_lora

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Write two LoRAs of the UNet and one of the text encoders."""
    folder = tmp_path_factory.mktemp("loras")
    paths: list[Path] = []
    for seed in (3, 4):
        paths.append(folder / f"{seed}.safetensors")
        save_file(FORMATS["kohya"](trained("lora", seed)[0]), paths[-1])
    stem = "lora_te2_text_model_encoder_layers_{}_mlp_fc1"
    state: dict[str, torch.Tensor] = {}
    for layer in range(4):
        state[f"{stem.format(layer)}.lora_down.weight"] = torch.randn(2, 48)
        state[f"{stem.format(layer)}.lora_up.weight"] = torch.randn(96, 2)
    paths.append(folder / "text.safetensors")
    save_file(state, paths[-1])
    return paths


def adapter(model: Model, path: Path, **scales: Any) -> Adapter:
    return Adapter(load_lora(path, model), **scales)


@pytest.mark.parametrize("repaint", [False, True], ids=["t2i", "i2i"])
def test_lora_in_a_plan_matches_weights_merged_by_peft(files: list[Path], repaint: bool) -> None:
    model = tiny_model()
    asked = request(**(REPAINT if repaint else {}))
    mine = render_with_overpaint(asked, model, adapters=(adapter(model, files[0]),))
    reference = tiny_model(overpaint_blocks=False)
    reference.unet.load_state_dict(trained("lora", 3)[1])
    assert_close(mine, render_with_diffusers(asked, model=reference))
    assert (
        np.abs(mine - render_with_overpaint(asked, model)).max() > 0.02
    )  # the LoRA changes the picture


def test_lora_at_scale_0_does_not_change_the_picture(files: list[Path]) -> None:
    model = tiny_model()
    asked = request()
    plain = run_plans(plan(asked, tiny_model()).plans)[0]
    none = (adapter(model, files[0], scale=0.0), adapter(model, files[2], text_scale=0.0))
    assert torch.equal(run_plans(plan(asked, model, Addons(adapters=none)).plans)[0], plain)


def test_rows_with_different_loras_match_solo_runs(files: list[Path]) -> None:
    model = tiny_model()
    a, b, text = (adapter(model, path) for path in files)
    sets = [(), (a,), (b,), (a, replace(b, scale=-0.5)), (text,), (a,)]
    asked = [request(seed=i, **(REPAINT if i % 2 else {})) for i in range(len(sets))]
    plans = [
        plan(r, model, Addons(adapters=own)).plans[0] for r, own in zip(asked, sets, strict=True)
    ]
    sizes: list[int] = []

    def note(_: object, inputs: tuple[torch.Tensor, ...]) -> None:
        sizes.append(len(inputs[0]))

    hook = model.unet.register_forward_pre_hook(note)
    together = run_plans(plans)
    hook.remove()
    assert sizes[0] == 2 * len(sets)  # one guided call for all sets
    for latent, r, own in zip(together, asked, sets, strict=True):
        fresh = tiny_model()
        alone = run_plans(plan(r, fresh, Addons(adapters=own)).plans)[0]
        torch.testing.assert_close(latent, alone, atol=2e-4, rtol=1e-3)
    different = [request(seed=0) for _ in sets]
    kinds = run_plans(
        [plan(r, model, Addons(adapters=s)).plans[0] for r, s in zip(different, sets, strict=True)]
    )
    assert all((kinds[0] - other).abs().max() > 1e-2 for other in kinds[1:])


def test_base_weights_after_loras_are_restored_exactly(files: list[Path]) -> None:
    model = tiny_model()
    asked = request()
    before = run_plans(plan(asked, model).plans)[0]
    adapters = tuple(adapter(model, path) for path in files)
    run_plans(plan(asked, model, Addons(adapters=adapters)).plans)
    assert torch.equal(run_plans(plan(asked, model).plans)[0], before)
    base = tiny_model().unet.state_dict()
    assert all(torch.equal(v, base[k]) for k, v in unpacked_state(model.unet).items())


def test_refiner_stage_ignores_loras(files: list[Path]) -> None:
    model, refiner = tiny_model(), tiny_refiner()
    asked = request(refiner="tiny")
    own = plan(asked, model, Addons(refiner, adapters=(adapter(model, files[0]),))).plans[0]
    assert own.positive.adapters
    assert own.then is not None
    assert own.then.plan.positive.adapters == ()
    run_plans([own])


def test_painter_finds_loras_by_name(files: list[Path], tmp_path: Path) -> None:
    store = Library(tmp_path)
    store.add(files[0], "ink")
    painter = Painter(tiny_model(), store)
    asked = Request(prompt="a red house <lora:ink:0.7>", seed=1, num_inference_steps=3)
    assert asked.prompt == "a red house"
    result = painter.run(asked)
    plain = painter.run(Request(prompt="a red house", seed=1, num_inference_steps=3))
    assert result.images[0].tobytes() != plain.images[0].tobytes()
    written = result.metadata[0]["request"]["loras"]
    assert written == [{"name": "ink", "scale": 0.7, "text_scale": None, "blocks": {}}]
    data = files[0].read_bytes()
    tensors = data[8 + int.from_bytes(data[:8], "little") :]
    digests = {"file": sha256(data).hexdigest(), "tensors": sha256(tensors).hexdigest()}
    assert result.metadata[0]["loras_sha256"] == {"ink": digests}
    again = Request(prompt="a red house", seed=1, num_inference_steps=3, loras=asked.loras)
    assert painter.run(again).images[0].tobytes() == result.images[0].tobytes()


def test_few_step_lora_sets_unset_request_fields(files: list[Path], tmp_path: Path) -> None:
    title = {"modelspec.title": "Ink SDXL-Lightning 2-step"}
    save_file(load_file(files[0]), tmp_path / "fast.safetensors", title)
    store = Library(tmp_path)
    store.add(tmp_path / "fast.safetensors", "fast")
    painter = Painter(tiny_model(), store)
    result = painter.run(Request(prompt="a fox <lora:fast>", seed=1))
    [notice] = result.notices
    assert notice == (
        "fast is for few steps (SDXL-Lightning), so it takes sampler euler, schedule trailing, "
        "num_inference_steps 2, guidance_scale 1.0."
    )
    record = result.metadata[0]["request"]
    assert (record["sampler"], record["num_inference_steps"]) == ("euler", 2)
    again = painter.run(Request(**record | {"loras": (Lora(name="fast"),)}))
    assert again.notices == ()  # a recorded request sets every field
    assert again.images[0].tobytes() == result.images[0].tobytes()


def test_lora_lenient_applies_to_its_request_only(files: list[Path], tmp_path: Path) -> None:
    state = load_file(files[0]) | {"something": torch.zeros(2)}
    save_file(state, tmp_path / "odd.safetensors")
    store = Library(tmp_path)
    store.add(tmp_path / "odd.safetensors", "ink")
    painter = Painter(tiny_model(), store)
    fields: dict[str, Any] = {"prompt": "a <lora:ink>", "seed": 1, "num_inference_steps": 2}
    result = painter.run(Request(**fields, lora_lenient=True))
    assert result.notices == ("1 keys of ink are not used: something.",)
    with pytest.raises(CheckpointError, match="1 keys match no layer"):
        painter.run(Request(**fields))


def test_lora_control_and_mask_work_together(files: list[Path], tmp_path: Path) -> None:
    model = tiny_model()
    own = (adapter(model, files[0]),)
    net = load_controlnet(write(tiny_net(), tmp_path / "net.safetensors"), model)
    controls = (Control(kind="canny", options={"low": 20, "high": 40}),)
    fields = {"mask_from": "box:32,32,96,96", "crop": "off", "fill": "original", **REPAINT}

    def met(*, hint: bool, lora: bool) -> torch.Tensor:
        asked = request(controls=controls if hint else (), **fields)
        found = plan(asked, model, Addons(None, (net,) if hint else (), own if lora else ()))
        return run_plans(found.plans)[0]

    both = met(hint=True, lora=True)
    outside = torch.ones(1, 1, 16, 16, dtype=torch.bool)
    outside[..., 3:13, 3:13] = False
    for other in (met(hint=False, lora=True), met(hint=True, lora=False)):
        assert (both - other).abs().max() > 1e-3
        torch.testing.assert_close(both * outside, other * outside)


def test_rows_that_differ_in_everything_match_solo_runs(files: list[Path], tmp_path: Path) -> None:
    """The rows differ in control, LoRA, prompt, seed, guidance, strength and all their settings.

    The test runs in fp64, except that merged weights are rounded to fp32. Random weights with two
    LoRAs enlarge these rounding errors a hundredfold.
    """
    model = tiny_model(dtype=torch.float64)
    kinds: dict[str, Any] = {kind: tiny_net(kind) for kind in ("full", "small", "union")}
    kinds["adapter"] = tiny_adapter()
    nets = {
        kind: load_controlnet(write(net, tmp_path / f"{kind}.safetensors"), model)
        for kind, net in kinds.items()
    }
    a, b, text = (adapter(model, path) for path in files)
    rows: list[tuple[dict[str, Any], tuple[str, ...], tuple[Adapter, ...]]] = [
        ({"prompt": "a red house", "guidance_scale": 5.0}, ("full",), (a,)),
        ({"prompt": "a blue cat", **REPAINT}, ("union", "union"), (replace(b, scale=0.6),)),
        ({"prompt": "a tree", "guidance_scale": 1.0, "negative_prompt": ""}, ("adapter",), ()),
        ({"prompt": "a dog", "strength": 0.9, "image": REPAINT["image"]}, ("small",), (a, b)),
        ({"prompt": "a star", "guidance_scale": 3.0}, ("full", "adapter"), (text,)),
        ({"prompt": "a circle"}, (), (replace(a, scale=-0.7),)),
    ]
    unions = ("depth", "canny")

    def planned(number: int, model: Model) -> Plan:
        fields, used, adapters = rows[number]
        controls = tuple(
            hint(
                10 * number + i,
                unions[i] if net == "union" else "canny",
                scale=0.4 + 0.1 * number + 0.2 * i,
                start=0.03 * number,
                end=1 - 0.05 * number,
            )
            for i, net in enumerate(used)
        )
        asked = request(controls=controls, **{"seed": number, **fields})
        return plan(asked, model, Addons(None, [nets[net] for net in used], adapters)).plans[0]

    together = run_plans([planned(number, model) for number in range(len(rows))])
    for number, latent in enumerate(together):
        [alone] = run_plans([planned(number, tiny_model(dtype=torch.float64))])
        assert (latent - alone).abs().max() < 1e-5 * alone.abs().max()


def test_control_lora_is_built_from_the_pristine_base(files: list[Path], tmp_path: Path) -> None:
    path, net = write_control_lora(tmp_path / "lora.safetensors")
    model = tiny_model()
    run_plans(plan(request(), model, Addons(adapters=(adapter(model, files[0]),))).plans)
    module = load_controlnet(path, model).module
    torch.testing.assert_close(module.mid_block.state_dict(), net.mid_block.state_dict())
