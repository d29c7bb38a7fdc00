"""Tests of checkpoints in parts: separate files, scaled weights, and UNets with other blocks."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import overpaint
from overpaint.diffusion.run import Run
from overpaint.errors import CheckpointError, ModelNotFoundError
from overpaint.imaging import codec
from overpaint.models.addons import AddonLoader
from overpaint.models.checkpoint import (
    build_model,
    check_complete,
    load_model,
    open_single_file,
    replace_parts,
)
from overpaint.models.devices import choose_device
from overpaint.models.files.lazy_tensor import LazyTensor
from overpaint.models.files.safetensors_io import open_weights
from overpaint.models.library.library import Library
from overpaint.models.model import Model
from overpaint.models.separate_parts import PartPath, open_separate_part
from overpaint.request import Request
from tests.models import original
from tests.models.original import State, tiny_configs
from tests.tiny import tiny_folder, tiny_model

UNET, VAE = "model.diffusion_model.", "first_stage_model."
FIRST, SECOND = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."

Modules = Mapping[str, torch.nn.Module]


@pytest.fixture(scope="module")
def modules() -> Modules:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return original.build(tiny_configs())


@pytest.fixture(scope="module")
def state(modules: Modules) -> State:
    found = original.original_layout(tiny_configs(), modules)
    return {key: tensor.clone().contiguous() for key, tensor in found.items()}


@pytest.fixture(scope="module")
def whole(state: State, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("whole") / "whole.safetensors", state)


def write(path: Path, state: State) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, path)
    return path


def take(state: State, prefix: str) -> State:
    """Return the tensors under a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def load(path: Path, **parts: Path) -> Model:
    """Load a tiny checkpoint, which the packaged configs do not fit."""
    source = open_single_file(open_weights(path), tiny_configs())
    separate = {part: open_separate_part(part, own) for part, own in parts.items()}
    source = replace_parts(source, separate)
    check_complete(source, path)
    return build_model("tiny", source, choose_device("cpu", "fp32", None, small=True))


def assert_same_weights(model: Model, modules: Modules) -> None:
    ours = {"unet": model.unet, "vae": model.vae}
    ours |= {part: encoder.model for part, encoder in model.encoders_by_part.items()}
    assert ours.keys() == modules.keys()
    for part, module in modules.items():
        expected = module.state_dict()
        assert ours[part].state_dict().keys() == expected.keys()
        for name, tensor in ours[part].state_dict().items():
            assert torch.equal(tensor, expected[name]), name


# Separate files


def test_missing_parts_are_named_from_the_header(tmp_path: Path, state: State) -> None:
    cut = {k: v for k, v in state.items() if not k.startswith((VAE, SECOND))}
    path = write(tmp_path / "cut.safetensors", cut)
    with pytest.raises(
        CheckpointError, match=r"cut\.safetensors has no VAE and no second"
    ) as found:
        load(path)
    assert "--vae FILE --text-encoder-2 FILE" in str(found.value)


def test_part_that_does_not_fit_is_named_before_any_tensor_is_read(
    tmp_path: Path, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = f"{VAE}decoder.conv_in.weight"
    path = write(tmp_path / "odd.safetensors", state | {key: torch.zeros(16, 8, 3, 3)})

    def refuse(tensor: LazyTensor) -> torch.Tensor:
        raise AssertionError(tensor.key)

    monkeypatch.setattr(LazyTensor, "read", refuse)
    with pytest.raises(CheckpointError, match=r"odd\.safetensors: the vae does not fit"):
        load(path)


def _write_bare(path: Path, state: State, modules: Modules) -> Path:
    return write(path / "vae.safetensors", take(state, VAE) | {"loss.logvar": torch.zeros(1)})


def _write_prefixed(path: Path, state: State, modules: Modules) -> Path:
    return write(path / "vae.safetensors", {k: v for k, v in state.items() if k.startswith(VAE)})


def _write_diffusers(path: Path, state: State, modules: Modules) -> Path:
    return write(path / "vae.safetensors", modules["vae"].state_dict())


def _write_old_diffusers(path: Path, state: State, modules: Modules) -> Path:
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = modules["vae"].state_dict()
    for new, name in old.items():
        tensors = {key.replace(f".{new}.", f".{name}."): own for key, own in tensors.items()}
    return write(path / "vae.safetensors", tensors)


def _write_folder(path: Path, state: State, modules: Modules) -> Path:
    modules["vae"].save_pretrained(path / "vae")  # pyright: ignore[reportCallIssue] of diffusers
    return path / "vae"


def _write_whole(path: Path, state: State, modules: Modules) -> Path:
    return write(path / "other.safetensors", state)


@pytest.mark.parametrize(
    "write_vae",
    [
        _write_bare,
        _write_prefixed,
        _write_diffusers,
        _write_old_diffusers,
        _write_folder,
        _write_whole,
    ],
)
def test_checkpoint_without_a_vae_works_with_a_separate_one(
    write_vae: Callable[[Path, State, Modules], Path],
    tmp_path: Path,
    state: State,
    modules: Modules,
) -> None:
    cut = {key: tensor for key, tensor in state.items() if not key.startswith(VAE)}
    vae = write_vae(tmp_path / "parts", state, modules)
    model = load(write(tmp_path / "cut.safetensors", cut), vae=vae)
    assert_same_weights(model, modules)
    assert model.parts["vae"].name == vae.stem
    assert len(model.parts["vae"].sha256) == 64


def test_separate_vae_replaces_that_of_a_checkpoint(
    tmp_path: Path, state: State, whole: Path
) -> None:
    other = {key: tensor + 1 for key, tensor in take(state, VAE).items()}
    model = load(whole, vae=write(tmp_path / "other.safetensors", other))
    assert torch.equal(model.vae.decoder.conv_in.weight, other["decoder.conv_in.weight"])
    assert model.sha256 == load(whole).sha256
    seen: list[str] = []
    plain = load(whole)
    plain.cache = model.cache
    for own in (plain, model):
        own.remember("moments", "picture", lambda own=own: seen.append(own.name))
    assert len(seen) == 2  # models with different VAEs do not share results


@pytest.mark.parametrize("layout", ["original", "diffusers"])
def test_parts_in_four_files_make_a_checkpoint(
    layout: str, tmp_path: Path, state: State, modules: Modules
) -> None:
    second = take(state, SECOND)
    if layout == "original":
        unet = take(state, UNET)
    else:
        unet = modules["unet"].state_dict()
        second = original.diffusers_layout("text_encoder_2", modules["text_encoder_2"])
        second |= {"logit_scale": torch.ones(1)}
    first = take(state, FIRST) | {"text_projection.weight": torch.zeros(8, 8)}
    model = load(
        write(tmp_path / "unet.safetensors", unet),
        vae=write(tmp_path / "vae.safetensors", take(state, VAE)),
        text_encoder=write(tmp_path / "clip_l.safetensors", first),
        text_encoder_2=write(tmp_path / "clip_g.safetensors", second),
    )
    assert_same_weights(model, modules)
    assert set(model.parts) == {"vae", "text_encoder", "text_encoder_2"}


def test_unet_alone_needs_the_other_parts(tmp_path: Path, state: State) -> None:
    with pytest.raises(CheckpointError, match=r"unet\.safetensors has no VAE and no first text"):
        load(write(tmp_path / "unet.safetensors", take(state, UNET)))


@pytest.mark.parametrize(
    ("part", "prefix", "message"),
    [
        ("vae", UNET, "is not a VAE but a UNet"),
        ("unet", VAE, "is not a UNet but a VAE"),
        ("text_encoder", VAE, r"is not a first text encoder \(CLIP-L\) but a VAE"),
        ("vae", FIRST, "is not a VAE but something else"),
    ],
)
def test_file_of_another_part_is_named(
    part: str, prefix: str, message: str, tmp_path: Path, state: State
) -> None:
    path = write(tmp_path / "part.safetensors", take(state, prefix))
    with pytest.raises(CheckpointError, match=message):
        open_separate_part(part, path)


def test_missing_file_of_a_part_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="There is no file or folder for the VAE"):
        open_separate_part("vae", tmp_path / "none.safetensors")


def test_folder_takes_separate_parts(tmp_path: Path, state: State, modules: Modules) -> None:
    folder = original.write_folder(tmp_path / "tiny", tiny_configs(), modules, torch.float32)
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no \.safetensors weights"):
        load_model(folder, device="cpu")
    vae = write(tmp_path / "vae.safetensors", take(state, VAE))
    model = load_model(folder, device="cpu", dtype="fp32", parts={"vae": PartPath(vae, "v")})
    assert_same_weights(model, modules)


# In the library, by name, and for single requests


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home folder with the VAE "soft"."""
    home = tmp_path_factory.mktemp("home")
    vae = write(home / "soft_vae.safetensors", tiny_model(5).vae.state_dict())
    assert Library(home).add(vae, "soft").kind == "vae"
    return home


def test_requests_with_different_vaes_share_nothing_wrongly(tmp_path: Path, home: Path) -> None:
    folder = tiny_folder(tmp_path / "tiny")
    painter = overpaint.load(folder, device="cpu", dtype="fp32", home=home)
    fields: dict[str, Any] = {"prompt": "a cat", "seed": 1, "num_inference_steps": 2}
    fields |= {"image": codec.read_picture(Image.linear_gradient("L").resize((128, 128)))}
    names = (None, "soft", None, "soft")
    results = [painter.run(Request(**fields, vae=name)) for name in names]
    pixels = [result.images[0].tobytes() for result in results]
    assert pixels[0] == pixels[2] != pixels[1] == pixels[3]
    record = results[1].metadata[0]["model"]
    digest = Library(home).find("soft").sha256
    assert record["parts"] == {"vae": {"name": "soft", "sha256": digest}}
    assert "parts" not in results[0].metadata[0]["model"]
    loaded = overpaint.load(folder, device="cpu", dtype="fp32", home=home, vae="soft")
    for name in (None, "soft"):
        again = loaded.run(Request(**fields, vae=name))
        assert again.images[0].tobytes() == pixels[1]
        assert again.metadata[0]["model"]["parts"] == record["parts"]
    runs = [Run(Request(**fields, vae=n), painter.model, painter.addon_loader) for n in names[:2]]
    networks = {id(run.trajectories[0].plan.network) for run in runs}
    assert len(networks) == 1  # and their steps still share network calls


def test_vae_of_a_request_is_a_name_that_the_library_has(home: Path, tmp_path: Path) -> None:
    vae = write(tmp_path / "path.safetensors", tiny_model(5).vae.state_dict())
    by_name, by_path = (
        AddonLoader(tiny_model(), Library(home, paths=paths)) for paths in (False, True)
    )
    assert by_path.load_vae(str(vae)).file.name == str(vae)
    with pytest.raises(ModelNotFoundError, match="Unknown vae"):
        by_name.load_vae(str(vae))
    with pytest.raises(ModelNotFoundError, match=r"Unknown vae 'sof'\. Did you mean soft"):
        by_name.load_vae("sof")


def test_vae_that_does_not_fit_is_named_without_its_path(tmp_path: Path) -> None:
    store = Library(tmp_path / "home")
    state = tiny_model().vae.state_dict()
    state["decoder.conv_in.weight"] = torch.zeros(16, 16, 3, 3)
    store.add(write(tmp_path / "flux.safetensors", state))
    with pytest.raises(CheckpointError, match="flux: the vae does not fit") as found:
        AddonLoader(tiny_model(), store).load_vae("flux")
    assert str(tmp_path) not in str(found.value)


def test_vae_of_other_models_is_refused_by_its_config(tmp_path: Path) -> None:
    vae = tiny_model().vae
    vae.register_to_config(scaling_factor=0.18215)
    vae.save_pretrained(tmp_path / "old")
    loader = AddonLoader(tiny_model(), Library(tmp_path, paths=True))
    with pytest.raises(CheckpointError, match=r"scaling_factor is 0\.18215, not 0\.13025"):
        loader.load_vae(str(tmp_path / "old"))


@pytest.mark.parametrize(
    ("prefix", "kind"),
    [(UNET, "unet"), (VAE, "vae"), (FIRST, "text_encoder"), (SECOND, "text_encoder")],
)
def test_library_tells_parts_from_checkpoints(
    prefix: str, kind: str, tmp_path: Path, state: State
) -> None:
    entry = Library(tmp_path).add(write(tmp_path / "part.safetensors", take(state, prefix)))
    assert (entry.kind, entry.parts) == (kind, ())


def test_library_shows_the_parts_of_a_checkpoint(tmp_path: Path, state: State) -> None:
    cut = {key: tensor for key, tensor in state.items() if not key.startswith(VAE)}
    entry = Library(tmp_path).add(write(tmp_path / "cut.safetensors", cut))
    assert entry.kind == "checkpoint"
    assert entry.parts == ("unet", "text_encoder", "text_encoder_2")


# Scaled weights in 8 bits


def _scale(state: State, names: tuple[str, str, str], rows: bool) -> tuple[State, State]:
    """Return a state with weights in float8 and scales, and the weights that they stand for."""
    stored: State = {f"{UNET}{names[2]}": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    meant = dict(state)
    for key, tensor in state.items():
        stored[key] = tensor
        if not key.startswith(UNET) or tensor.ndim != 2 or not key.endswith(".weight"):
            continue
        scale = torch.full((len(tensor), 1) if rows else (), 0.0625)
        small = (tensor / scale).to(torch.float8_e4m3fn)
        stem = key.removesuffix(".weight")
        stored |= {key: small, f"{stem}.{names[0]}": scale, f"{stem}.{names[1]}": torch.ones(())}
        meant[key] = small.float() * scale
    return stored, meant


@pytest.mark.parametrize(
    ("names", "rows"),
    [
        (("scale_weight", "scale_input", "scaled_fp8"), False),
        (("weight_scale", "input_scale", "scaled_fp8"), True),
    ],
)
def test_scaled_fp8_checkpoint_loads_as_weights_times_scales(
    names: tuple[str, str, str], rows: bool, tmp_path: Path, state: State
) -> None:
    stored, meant = _scale(state, names, rows)
    scaled = load(write(tmp_path / "scaled.safetensors", stored))
    plain = load(write(tmp_path / "plain.safetensors", meant))
    for name, tensor in scaled.unet.state_dict().items():
        assert torch.equal(tensor, plain.unet.state_dict()[name]), name


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a.scale_weight": torch.ones(())}, r"scales a\.weight, which is not in the file"),
        (
            {"a.weight": torch.ones(2, 2, dtype=torch.int8), "a.weight_scale": torch.ones(2)},
            "is quantized as int8",
        ),
        (
            {
                "a.weight": torch.ones(2, 2).to(torch.float8_e5m2),
                "a.scale_weight": torch.ones(3),
            },
            r"a\.scale_weight is \[3\] and does not fit a\.weight",
        ),
    ],
)
def test_scale_that_fits_no_weight_is_refused(tensors: State, message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_weights(write(tmp_path / "a.safetensors", tensors))


# UNets with other blocks

SSD: dict[str, Any] = {
    "transformer_layers_per_block": [1, 2, 3],
    "reverse_transformer_layers_per_block": [[3, 3, 4], [2, 1, 1], 1],
    "mid_block_type": "UNetMidBlock2D",
}
VEGA: dict[str, Any] = {
    "transformer_layers_per_block": [1, 1, 2],
    "mid_block_type": "UNetMidBlock2D",
}
KOALA: dict[str, Any] = {
    "layers_per_block": 1,
    "transformer_layers_per_block": [1, 2, 3],
    "mid_block_type": None,
}


@pytest.mark.parametrize(
    "blocks",
    [SSD, VEGA, KOALA, KOALA | {"mid_block_type": "UNetMidBlock2DCrossAttn"}],
    ids=["SSD-1B", "Vega", "KOALA-700M", "KOALA-1B"],
)
@torch.no_grad()
def test_single_file_with_other_blocks_loads_and_computes_as_in_diffusers(
    blocks: dict[str, Any], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    configs = tiny_configs(**blocks)
    modules = original.build(configs)
    model = load(write(tmp_path / "a.safetensors", original.original_layout(configs, modules)))
    assert_same_weights(model, modules)
    added = {"text_embeds": torch.randn(1, 12), "time_ids": torch.ones(1, 6)}
    inputs = (torch.randn(1, 4, 16, 16), torch.tensor([500.0]), torch.randn(1, 5, 16))
    ours, theirs = (
        unet(*inputs, added_cond_kwargs=added, return_dict=False)[0]
        for unet in (model.unet, modules["unet"].eval())
    )
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_unet_with_attention_after_some_resnets_only_is_refused(
    tmp_path: Path, state: State
) -> None:
    cut = {k: v for k, v in state.items() if not k.startswith(f"{UNET}input_blocks.5.1.")}
    with pytest.raises(CheckpointError, match=r"down_blocks\.1 has attention after some"):
        load(write(tmp_path / "odd.safetensors", cut))
