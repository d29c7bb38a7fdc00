"""Tests of control images from estimators, from the request to the result."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.controlnets.controlnet import ControlNetModel
from huggingface_hub import constants
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file

from overpaint.errors import CheckpointError, ModelNotFoundError, RequestError
from overpaint.imaging import codec, hints
from overpaint.models import estimated_hint
from overpaint.models.estimators import Estimator, load_estimator
from overpaint.models.library import catalog
from overpaint.painter import Painter, Result, load
from overpaint.request import Request
from overpaint.request.parts import Control
from tests.tiny_control import SHARED
from tests.tiny_estimators import tiny_estimator, write_estimator

QUICK: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 0.0, "seed": 5}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("estimators")
    families = {"depth": "depth_anything", "segmentation": "upernet"}
    return {kind: write_estimator(tiny_estimator(f), home / f) for kind, f in families.items()}


@pytest.fixture(scope="module")
def painter() -> Painter:
    return load("miniature", device="cpu", dtype="fp32")


@pytest.fixture(scope="module")
def net(painter: Painter, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Make a random ControlNet for the miniature, without attention."""
    unet: Any = painter.model.unet.config
    levels = len(unet["block_out_channels"])
    config: dict[str, Any] = {
        **{key: unet[key] for key in SHARED},
        "down_block_types": ("DownBlock2D",) * levels,
        "transformer_layers_per_block": (0,) * levels,
        "mid_block_type": "UNetMidBlock2D",
        "conditioning_embedding_out_channels": (8, 16, 16, 16),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        module: Any = ControlNetModel(**config)
        for name, parameter in module.named_parameters():
            if name.startswith("controlnet_"):
                torch.nn.init.normal_(parameter, std=0.1)
    path = tmp_path_factory.mktemp("nets") / "net.safetensors"
    save_file({k: v.contiguous() for k, v in module.state_dict().items()}, path)
    return str(path)


def picture() -> Image.Image:
    shown = Image.linear_gradient("L").resize((128, 128)).convert("RGB")
    ImageDraw.Draw(shown).rectangle((33, 17, 94, 88), fill=(200, 30, 30))
    return shown


def pixels(result: Result) -> Any:
    return np.asarray(result.images[0])


@pytest.mark.parametrize("kind", ["depth", "normal", "segmentation"])
def test_control_image_from_estimator_changes_result(
    kind: str, painter: Painter, net: str, folders: dict[str, Path]
) -> None:
    folder = str(folders.get(kind, folders["depth"]))
    control = Control(kind=kind, net=net, estimator=folder)
    steered = painter.edit(picture(), "a house", strength=0.9, controls=(control,), **QUICK)
    sight = "classes" if kind == "segmentation" else "depth"
    estimator = load_estimator(folder, sight, torch.device("cpu"), torch.float32)
    made = hints.make_hint(kind, picture(), estimate=estimator.estimate)
    finished = Control(kind=kind, net=net, hint=codec.read_picture(made))
    given = painter.edit(picture(), "a house", strength=0.9, controls=(finished,), **QUICK)
    assert np.array_equal(pixels(steered), pixels(given))
    plain = painter.edit(picture(), "a house", strength=0.9, **QUICK)
    assert not np.array_equal(pixels(steered), pixels(plain))
    of_another = Control(kind=kind, net=net, estimator=folder, image=codec.read_picture(picture()))
    created = painter.create("a house", controls=(of_another,), **QUICK)
    assert created.images[0].size == (128, 128)


def test_estimator_runs_once_for_each_picture(
    painter: Painter, net: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[tuple[int, int]] = []
    see = Estimator.estimate

    def counted(self: Estimator, picture: Image.Image) -> Any:
        sizes.append(picture.size)
        return see(self, picture)

    monkeypatch.setattr(Estimator, "estimate", counted)
    own = picture().rotate(90)
    controls = tuple(
        Control(kind="depth", net=net, estimator=str(folders["depth"]), scale=scale)
        for scale in (0.4, 0.6, 0)
    )
    first = painter.edit(own, "a house", controls=controls, **QUICK)
    again = painter.edit(own, "a house", controls=controls, **QUICK)
    assert sizes == [(128, 128)]
    assert np.array_equal(pixels(first), pixels(again))
    request = Request(image=codec.read_picture(own), controls=controls)
    taken = painter.addon_loader.load(request).estimators
    assert taken == painter.addon_loader.load(request).estimators  # the same, loaded once


def test_default_estimator_follows_from_kind(
    painter: Painter, net: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {catalog.DEFAULT_ESTIMATORS[kind]: folder for kind, folder in folders.items()}
    monkeypatch.setattr(catalog, "resolve_estimator", names.__getitem__)
    shown = codec.read_picture(picture())
    controls = (
        Control(kind="depth", net=net),
        Control(kind="segmentation", net=net),
        Control(kind="normal", net=net),
        Control(kind="canny", net=net),
        Control(kind="depth", net=net, hint=shown),
        Control(kind="depth", net=net, scale=0),
    )
    found = painter.addon_loader.load(Request(image=shown, controls=controls)).estimators
    assert [e and (e.name, e.sight) for e in found] == [
        ("depth-anything", "depth"),
        ("upernet", "classes"),
        *[None] * 4,
    ]


@pytest.mark.parametrize("kind", ["depth", "normal", "segmentation"])
def test_command_makes_the_hint_of_an_installed_estimator(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    names = {catalog.DEFAULT_ESTIMATORS[kind]: folder for kind, folder in folders.items()}

    def resolve(name: str, **_: Any) -> Path:
        return names[name]

    monkeypatch.setattr(estimated_hint, "resolve_model", resolve)
    shown = codec.read_picture(picture())
    folder = estimated_hint.find_estimator(kind)
    hint = estimated_hint.make_estimated_hint(kind, shown, folder)
    sight = "classes" if kind == "segmentation" else "depth"
    loaded = load_estimator(folder, sight, torch.device("cpu"), torch.float32)
    assert hint == hints.make_hint(kind, codec.decode(shown), {}, loaded.estimate)


def test_command_names_the_estimator_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for kind, name in (("normal", "depth-anything"), ("segmentation", "upernet")):
        with pytest.raises(ModelNotFoundError, match=f"overpaint models pull {name}"):
            estimated_hint.find_estimator(kind)


def test_wrong_estimator_file_is_named_in_error(
    painter: Painter, net: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    asked = Control(kind="segmentation", net=net, estimator=str(folders["depth"]))
    with pytest.raises(CheckpointError, match="estimates depth; this control image needs classes"):
        painter.edit(picture(), "a house", controls=(asked,), **QUICK)
    folder = write_estimator(tiny_estimator("depth_anything"), tmp_path)
    state = load_file(folder / "model.safetensors")
    save_file(state | {"more": torch.zeros(2)}, folder / "model.safetensors")
    asked = Control(kind="depth", net=net, estimator=str(folder))
    result = painter.edit(picture(), "a house", controls=(asked,), **QUICK)
    assert any("1 keys of" in notice and "more" in notice for notice in result.notices)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "canny"}, "has no effect on canny hints"),
        ({"kind": "depth", "hint": codec.read_picture(picture())}, "on a finished hint"),
    ],
)
def test_estimator_without_effect_is_rejected(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=f"estimator: .*{message}"):
        Control(estimator="depth-anything", **fields)
