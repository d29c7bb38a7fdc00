"""Tests of LoRA files: every format equals PEFT; invalid files are rejected."""

import itertools
import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from overpaint.errors import CheckpointError
from overpaint.models.adapters import Adapter, AdapterMerger
from overpaint.models.files.original_layout import to_original_name
from overpaint.models.lora import load_lora
from overpaint.models.model import Model
from overpaint.nn.packed import list_weight_shapes, unpacked_state
from tests.tiny import share_model, tiny_model

State = dict[str, Tensor]
RANK = 4
LINEAR = r".*(attn\d\.to_[qkv]|attn\d\.to_out\.0|ff\.net\.(0\.proj|2)|proj_in|proj_out)"
CONVOLUTION = r".*(conv1|conv2|conv_shortcut)"


def trained(kind: str, seed: int = 3, targets: str = LINEAR) -> tuple[State, State]:
    """Return the state dict of a random PEFT adapter on the tiny UNet, and the merged weights."""
    state, wanted = _train(kind, seed, targets)
    return {k: v.clone() for k, v in state.items()}, wanted


@cache
def _train(kind: str, seed: int, targets: str) -> tuple[State, State]:
    unet = tiny_model(overpaint_blocks=False).unet
    torch.manual_seed(seed)
    kinds: dict[str, Any] = {
        "lora": lambda: LoraConfig(r=RANK, lora_alpha=6, target_modules=targets),
        "dora": lambda: LoraConfig(r=RANK, lora_alpha=6, target_modules=targets, use_dora=True),
        "loha": lambda: LoHaConfig(r=RANK, alpha=6, target_modules=targets),
        # With more, PEFT would store the factors whole, and LyCORIS then knows no alpha.
        "lokr": lambda: LoKrConfig(r=2, alpha=6, target_modules=targets),
        "lokr twice": lambda: LoKrConfig(r=2, alpha=6, target_modules=targets, decompose_both=True),
    }
    wrapped: Any = get_peft_model(unet, kinds[kind]())
    for name, parameter in wrapped.named_parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape) * 0.2
            parameter.data = parameter.data * (1 + noise) if "magnitude" in name else noise
    state = {k: v.clone() for k, v in get_peft_model_state_dict(wrapped).items()}
    merged = wrapped.merge_and_unload()
    return state, {k: v.clone() for k, v in merged.state_dict().items()}


def with_alphas(state: State, alpha: float = 6) -> State:
    """Add kohya's alpha keys, which PEFT stores in its config."""
    stems = {k.rsplit(".lora_", 1)[0] for k in state if ".lora_A" in k}
    return state | {f"{stem}.alpha": torch.tensor(alpha) for stem in stems}


def as_kohya(state: State, name: Callable[[str], str]) -> State:
    found: State = {}
    for key, value in state.items():
        stem, leaf = key.removeprefix("base_model.model.").rsplit(".lora_", 1)
        ours = {"A.weight": "lora_down.weight", "B.weight": "lora_up.weight"}.get(leaf)
        ours = ours or {"magnitude_vector": "dora_scale"}[leaf]
        found[f"lora_unet_{name(stem).replace('.', '_')}.{ours}"] = (
            value[:, None] if ours == "dora_scale" else value
        )
        found[f"lora_unet_{name(stem).replace('.', '_')}.alpha"] = torch.tensor(6.0)
    return found


def in_sgm(name: str) -> str:
    return to_original_name(name, layers=1, attends=(True, False))


def as_old_diffusers(state: State) -> State:
    found: State = {}
    for key, value in with_alphas(state).items():
        key = f"unet.{key.removeprefix('base_model.model.')}"
        found[key.replace("lora_A", "lora.down").replace("lora_B", "lora.up")] = value
    return found


def as_cog(state: State) -> State:
    """Name the keys as cog-sdxl and the first attention processors of diffusers do."""
    found: State = {}
    for key, value in state.items():
        stem, leaf = key.removeprefix("base_model.model.").rsplit(".lora_", 1)
        block, _, layer = stem.removesuffix(".0").rpartition(".")
        way = {"A.weight": "down.weight", "B.weight": "up.weight"}[leaf]
        found[f"{block}.processor.{layer}_lora.{way}"] = value
    return found


def as_dotted(prefix: str, name: Callable[[str], str]) -> Callable[[State], State]:
    """Name the keys as kohya does, with dots in the names of modules."""

    def convert(state: State) -> State:
        found: State = {}
        for key, value in with_alphas(state).items():
            stem = re.sub(r"\.(lora_\w+\.weight|alpha)$", "", key)
            leaf = key.removeprefix(f"{stem}.").replace("_A", "_down").replace("_B", "_up")
            found[f"{prefix}{name(stem.removeprefix('base_model.model.'))}.{leaf}"] = value
        return found

    return convert


FORMATS: dict[str, Callable[[State], State]] = {
    "peft": with_alphas,
    "diffusers": lambda s: {
        f"unet.{k.removeprefix('base_model.model.')}": v for k, v in with_alphas(s).items()
    },
    "old diffusers": as_old_diffusers,
    "kohya": lambda s: as_kohya(s, lambda name: name),
    "sgm": lambda s: as_kohya(s, in_sgm),
    "onetrainer": as_dotted("lora_unet.", lambda name: name),
    "omi": as_dotted("unet.", in_sgm),
    "comfyui": as_dotted("diffusion_model.", in_sgm),
}


def merged(model: Model, *adapters: Adapter) -> State:
    weights = AdapterMerger(model)
    weights.use("unet", adapters)
    return unpacked_state(model.unet)


def assert_same(mine: State, wanted: State) -> None:
    for name in list_weight_shapes(share_model().unet):
        key = f"{name}.weight"
        torch.testing.assert_close(mine[key], wanted[key], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("targets", [LINEAR, CONVOLUTION], ids=["linear", "convolutions"])
@pytest.mark.parametrize("layout", sorted(FORMATS))
def test_every_naming_equals_peft(layout: str, targets: str, tmp_path: Path) -> None:
    state, wanted = trained("lora", targets=targets)
    save_file(FORMATS[layout](state), tmp_path / "lora.safetensors")
    model = tiny_model()
    lora = load_lora(tmp_path / "lora.safetensors", model)
    assert_same(merged(model, Adapter(lora)), wanted)
    changed = sum(not torch.equal(wanted[k], v) for k, v in share_model().unet.state_dict().items())
    assert changed == len(lora.changes["unet"])


def test_keys_of_cog_sdxl_equal_peft(tmp_path: Path) -> None:
    unet = tiny_model(overpaint_blocks=False).unet
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=r".*attn\d\.to_([qkv]|out\.0)")
    wrapped: Any = get_peft_model(unet, config)
    randomize(wrapped)
    state = {k: v.clone() for k, v in get_peft_model_state_dict(wrapped).items()}
    save_file(as_cog(state), tmp_path / "lora.safetensors")
    model = tiny_model()
    lora = load_lora(tmp_path / "lora.safetensors", model)
    assert_same(merged(model, Adapter(lora)), wrapped.merge_and_unload().state_dict())


def randomize(wrapped: Any) -> None:
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape) * 0.2


@pytest.mark.parametrize("targets", [LINEAR, CONVOLUTION], ids=["linear", "convolutions"])
@pytest.mark.parametrize("layout", ["peft", "kohya", "sgm"])
def test_dora_equals_peft(layout: str, targets: str, tmp_path: Path) -> None:
    state, wanted = trained("dora", targets=targets)
    if layout == "peft":
        state = with_alphas(state)
    else:
        state = FORMATS[layout]({k: v.flatten() if "magn" in k else v for k, v in state.items()})
    save_file(state, tmp_path / "lora.safetensors")
    model = tiny_model()
    lora = load_lora(tmp_path / "lora.safetensors", model)
    assert_same(merged(model, Adapter(lora)), wanted)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16])
def test_lora_in_fewer_bits_equals_its_values(dtype: torch.dtype, tmp_path: Path) -> None:
    state = {k: v.to(dtype) for k, v in FORMATS["kohya"](trained("lora")[0]).items()}
    found: list[State] = []
    for name, kept in (("small", state), ("whole", {k: v.float() for k, v in state.items()})):
        save_file(kept, tmp_path / f"{name}.safetensors")
        model = tiny_model()
        found.append(merged(model, Adapter(load_lora(tmp_path / f"{name}.safetensors", model))))
    assert_same(*found)


@pytest.mark.parametrize("kind", ["loha", "lokr", "lokr twice"])
def test_loha_and_lokr_equal_peft(kind: str, tmp_path: Path) -> None:
    state, wanted = trained(kind)
    stems = {k.rsplit(".", 1)[0] for k in state}
    state |= {f"{stem}.alpha": torch.tensor(6.0) for stem in stems}
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "lora.safetensors")
    model = tiny_model()
    lora = load_lora(tmp_path / "lora.safetensors", model)
    assert_same(merged(model, Adapter(lora)), wanted)


def test_alpha_is_read_from_diffusers_metadata(tmp_path: Path) -> None:
    state, wanted = trained("lora")
    named = {f"unet.{k.removeprefix('base_model.model.')}": v for k, v in state.items()}
    metadata = {"lora_adapter_metadata": '{"unet.lora_alpha": 6, "unet.r": 4}'}
    save_file(named, tmp_path / "lora.safetensors", metadata)
    model = tiny_model()
    lora = load_lora(tmp_path / "lora.safetensors", model)
    assert_same(merged(model, Adapter(lora)), wanted)


PATTERNS: dict[str, dict[str, Any]] = {
    "patterns": {
        "alpha_pattern": {"attn1.to_q": 2, r"down_blocks\..*\.proj_in": 9},
        "rank_pattern": {"ff.net.2": 2},
    },
    "rslora": {"use_rslora": True},
    "both": {"use_rslora": True, "alpha_pattern": {"attn2.to_k": 1}},
    "bias": {"lora_bias": True},
}


def peft_with(**options: Any) -> Any:
    unet = tiny_model(overpaint_blocks=False).unet
    # PEFT and Overpaint merge the bias of a LoRA only where the layer has one too.
    targets = r".*(proj_in|proj_out|ff\.net\.2)" if "lora_bias" in options else LINEAR
    config = LoraConfig(r=RANK, lora_alpha=6, target_modules=targets, **options)
    torch.manual_seed(5)
    wrapped: Any = get_peft_model(unet, config)
    randomize(wrapped)
    return wrapped


# PEFT takes the bias of its factor B for a part of a sharded tensor.
@pytest.mark.filterwarnings("ignore:Adapter .default.. 16 LoRA tensor.s. have invalid shape")
@pytest.mark.parametrize("where", ["metadata", "folder", "unet folder"])
@pytest.mark.parametrize("options", PATTERNS.values(), ids=list(PATTERNS))
def test_scales_in_peft_config_equal_peft(
    options: dict[str, Any], where: str, tmp_path: Path
) -> None:
    wrapped = peft_with(**options)
    path = tmp_path / "lora"
    if where == "metadata":
        config = wrapped.peft_config["default"].to_dict()
        packed = {f"unet.{k}": list(v) if isinstance(v, set) else v for k, v in config.items()}
        state = get_peft_model_state_dict(wrapped)
        named = {f"unet.{k.removeprefix('base_model.model.')}": v for k, v in state.items()}
        path = tmp_path / "lora.safetensors"
        save_file(named, path, {"lora_adapter_metadata": json.dumps(packed, default=str)})
    else:
        wrapped.save_pretrained(path / "unet" if where == "unet folder" else path)
    model = tiny_model()
    mine = merged(model, Adapter(load_lora(path, model)))
    wanted = wrapped.merge_and_unload().state_dict()
    assert_same(mine, wanted)
    if "lora_bias" in options:
        key = "mid_block.attentions.0.proj_in.bias"
        torch.testing.assert_close(mine[key], wanted[key])
        assert not torch.equal(mine[key], tiny_model().unet.state_dict()[key])


@pytest.mark.parametrize("kind", ["loha", "lokr"])
def test_alpha_in_peft_folder_of_loha_and_lokr_equals_peft(kind: str, tmp_path: Path) -> None:
    unet = tiny_model(overpaint_blocks=False).unet
    make = {"loha": LoHaConfig, "lokr": LoKrConfig}[kind]
    wrapped: Any = get_peft_model(unet, make(r=RANK, alpha=6, target_modules=LINEAR))
    randomize(wrapped)
    wrapped.save_pretrained(tmp_path)
    model = tiny_model()
    lora = load_lora(tmp_path, model)
    assert_same(merged(model, Adapter(lora)), wrapped.merge_and_unload().state_dict())


def test_alpha_in_metadata_counts_for_its_own_encoder(tmp_path: Path) -> None:
    path = text_lora(tmp_path / "lora.safetensors", "diffusers")
    config = {
        "unet.lora_alpha": 1,
        "text_encoder.lora_alpha": 16,
        "text_encoder_2.lora_alpha": 2,
        "text_encoder_2.alpha_pattern": {"text_model.encoder.layers.0.self_attn.q_proj": 4},
    }
    save_file(load_file(path), path, {"lora_adapter_metadata": json.dumps(config)})
    lora = load_lora(path, tiny_model())
    scales = {
        part: [getattr(change, "alpha_over_rank", None) for change in changes.values()]
        for part, changes in lora.changes.items()
    }
    assert scales == {"text_encoder": [8.0], "text_encoder_2": [2.0]}


@pytest.mark.parametrize("number", [0, 1])
def test_peft_file_of_one_text_encoder_finds_the_encoder(number: int, tmp_path: Path) -> None:
    width = (32, 48)[number]
    stem = "base_model.model.text_model.encoder.layers.0.self_attn.q_proj"
    state = {f"{stem}.lora_A.weight": torch.randn(2, width)}
    state[f"{stem}.lora_B.weight"] = torch.randn(width, 2)
    save_file(state, tmp_path / "lora.safetensors")
    lora = load_lora(tmp_path / "lora.safetensors", tiny_model())
    assert list(lora.changes) == [("text_encoder", "text_encoder_2")[number]]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ('{"unet.alpha_pattern": [1]}', "alpha_pattern is not a map of numbers"),
        ('{"unet.alpha_pattern": {"a": "b"}}', "a is b, not a number"),
        ('{"unet.alpha_pattern": {"(a+)+$": 1}}', "is too complicated"),
        ('{"unet.alpha_pattern": {"(a": 1}}', "unterminated"),
    ],
)
def test_invalid_peft_config_is_rejected(config: str, message: str, tmp_path: Path) -> None:
    path = text_lora(tmp_path / "lora.safetensors", "diffusers")
    save_file(load_file(path), path, {"lora_adapter_metadata": config})
    with pytest.raises(CheckpointError, match=message):
        load_lora(path, tiny_model())


@pytest.mark.parametrize("mapping", [["x"], "x", 5, {"base_model_class": ["x"]}])
def test_auto_mapping_of_another_shape_has_no_effect(mapping: object, tmp_path: Path) -> None:
    state, _ = trained("lora")
    save_file(state, tmp_path / "adapter_model.safetensors")
    config = json.dumps({"auto_mapping": mapping})
    (tmp_path / "adapter_config.json").write_text(config)
    assert load_lora(tmp_path, tiny_model()).changes["unet"]


def text_lora(path: Path, spelling: str) -> Path:
    """Make a LoRA for one layer of each text encoder."""
    layer = "text_model.encoder.layers.0.self_attn.q_proj"
    names = {
        "kohya": (f"lora_te1_{layer.replace('.', '_')}", "lora_down", "lora_up"),
        "diffusers": (f"text_encoder.{layer}", "lora_A", "lora_B"),
        "old": (f"text_encoder.{layer}", "lora_linear_layer.down", "lora_linear_layer.up"),
        "older": (f"text_encoder.{layer[:-6]}to_q_lora", "down", "up"),
        "onetrainer": (f"lora_te1.{layer}", "lora_down", "lora_up"),
    }
    stem, down, up = names[spelling]
    second = stem.replace("te1", "te2").replace("text_encoder.", "text_encoder_2.")
    state: State = {}
    for name, width in ((stem, 32), (second, 48)):
        state[f"{name}.{down}.weight"] = torch.randn(2, width)
        state[f"{name}.{up}.weight"] = torch.randn(width, 2)
    save_file(state, path)
    return path


@pytest.mark.parametrize("spelling", ["kohya", "diffusers", "old", "older", "onetrainer"])
def test_lora_changes_both_text_encoders(spelling: str, tmp_path: Path) -> None:
    path = text_lora(tmp_path / "lora.safetensors", spelling)
    model = tiny_model()
    lora = load_lora(path, model)
    weights = AdapterMerger(model)
    state = load_file(path)
    for part, encoder in zip(("text_encoder", "text_encoder_2"), model.text_encoders, strict=True):
        [(module, _)] = lora.changes[part].items()
        layer = encoder.model.get_submodule(module)
        assert isinstance(layer, nn.Linear)
        before = layer.weight.clone()
        weights.use(part, (Adapter(lora, text_scale=0.5),))
        index = 2 if part.endswith("2") else 0
        down, up = list(state.values())[index], list(state.values())[index + 1]
        if down.shape[0] != 2:
            down, up = up, down
        torch.testing.assert_close(layer.weight, before + 0.5 * up @ down)


def two(model: Model, folder: Path) -> list[Adapter]:
    adapters: list[Adapter] = []
    for seed, scale, targets in ((3, 0.7, LINEAR), (4, -0.4, ".*")):
        state, _ = trained("lora", seed, LINEAR if targets == LINEAR else CONVOLUTION)
        if seed == 4:
            state |= trained("lora", seed)[0]
        save_file(with_alphas(state), folder / f"{seed}.safetensors")
        adapters.append(Adapter(load_lora(folder / f"{seed}.safetensors", model), scale))
    return adapters


def test_two_loras_add_up(tmp_path: Path) -> None:
    model = tiny_model()
    base = {k: v.clone() for k, v in unpacked_state(model.unet).items()}
    a, b = two(model, tmp_path)
    mine = merged(model, a, b)
    for name in list_weight_shapes(model.unet):
        key, weight = f"{name}.weight", base[f"{name}.weight"]
        total = weight.clone()
        for adapter in (a, b):
            if change := adapter.lora.changes["unet"].get(name):
                total += adapter.scale * change.to_dense(weight)
        torch.testing.assert_close(mine[key], total)


def test_lora_given_twice_adds_up(tmp_path: Path) -> None:
    a, _ = two(tiny_model(), tmp_path)
    lora = a.lora
    assert_same(
        merged(tiny_model(), Adapter(lora, 0.8), Adapter(lora, 0.2)),
        merged(tiny_model(), Adapter(lora, 1.0)),
    )


def test_blocks_have_separate_scales(tmp_path: Path) -> None:
    model = tiny_model()
    base = {k: v.clone() for k, v in unpacked_state(model.unet).items()}
    a, _ = two(model, tmp_path)
    only = Adapter(a.lora, 1.0, blocks=(("down_blocks", 0.0), ("up_blocks", 0.0)))
    changed = {k for k, v in merged(model, only).items() if not torch.equal(v, base[k])}
    assert changed
    assert all(k.startswith("mid_block.") for k in changed)


def test_thousand_switches_keep_base_weights(tmp_path: Path) -> None:
    model = tiny_model()
    base = {k: v.clone() for k, v in unpacked_state(model.unet).items()}
    weights = AdapterMerger(model)
    a, b = two(model, tmp_path)
    sets = [(a,), (a, b), (b,), ()]
    for n in range(1000):
        weights.use("unet", sets[n % 4])
    assert all(torch.equal(v, base[k]) for k, v in unpacked_state(model.unet).items())
    weights.use("unet", (a, b))
    again = {k: v.clone() for k, v in unpacked_state(model.unet).items()}
    fresh = merged(tiny_model(), a, b)
    assert all(torch.equal(v, fresh[k]) for k, v in again.items())


def test_interrupted_merge_leaves_no_lora_in_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model()
    base = {k: v.clone() for k, v in unpacked_state(model.unet).items()}
    weights = AdapterMerger(model)
    a, b = two(model, tmp_path)
    for before in ((), (b,)):
        weights.use("unet", before)
        with monkeypatch.context() as patched:
            calls, place = itertools.count(), weights._get_slot  # pyright: ignore[reportPrivateUsage]

            def full(part: str, module: str, calls: Any = calls, place: Any = place) -> Any:
                if next(calls) == 3:
                    raise torch.OutOfMemoryError("tried to allocate 2 GiB")
                return place(part, module)

            patched.setattr(weights, "_get_slot", full)
            with pytest.raises(torch.OutOfMemoryError):
                weights.use("unet", (a,))
        assert any(not torch.equal(v, base[k]) for k, v in unpacked_state(model.unet).items())
        weights.use("unet", ())
        assert all(torch.equal(v, base[k]) for k, v in unpacked_state(model.unet).items())


# Invalid files


def spoilt(change: Callable[[State], object], folder: Path) -> Path:
    state = with_alphas(trained("lora")[0])
    change(state)
    path = folder / "lora.safetensors"
    save_file({k: v.contiguous() for k, v in state.items()}, path)
    return path


def put(suffix: str, value: Callable[[Tensor], Tensor]) -> Callable[[State], object]:
    def change(state: State) -> None:
        key = next(k for k in state if k.endswith(suffix))
        state[key] = value(state[key])

    return change


def add(key: str) -> Callable[[State], object]:
    def change(state: State) -> None:
        state[key] = torch.zeros(2, 2)

    return change


def drop(suffix: str) -> Callable[[State], object]:
    def change(state: State) -> None:
        del state[next(k for k in state if k.endswith(suffix))]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("lora_A.weight", lambda t: t * torch.nan), "not finite"),
        (put("lora_A.weight", lambda t: (t * 100).to(torch.int8)), "whole numbers"),
        (put("lora_A.weight", lambda t: t[:0]), "is empty"),
        (
            put("lora_A.weight", lambda t: torch.zeros(100_000, t.shape[1])),
            "rank 4 up and 100000 down",
        ),
        (put("lora_A.weight", lambda t: t[:, :-1]), "does not fit a weight of"),
        (drop("lora_B.weight"), "has no up"),
        (
            add("unet.nothing.lora_A.weight"),
            r"1 keys match no layer of tiny: unet\.nothing\.lora_A\.weight",
        ),
        (add("something"), "1 keys match no layer of tiny: something"),
        (dict[str, Tensor].clear, "not a LoRA that Overpaint knows; its keys are none"),
    ],
)
def test_damaged_lora_is_rejected(
    change: Callable[[State], object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_lora(spoilt(change, tmp_path), tiny_model())


@pytest.mark.parametrize("leaf", ["lora_A.weight", "lora_B.weight"])
def test_lora_with_a_tensor_without_axes_is_rejected(leaf: str, tmp_path: Path) -> None:
    path = spoilt(put(leaf, lambda t: t.flatten()[0].clone()), tmp_path)
    with pytest.raises(CheckpointError, match=r"lora\.safetensors: .* is damaged"):
        load_lora(path, tiny_model())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "lora_adapter_metadata is not a map"),
        ("5", "lora_adapter_metadata is not a map"),
        ('{"unet.lora_alpha": {"a": 1}}', "lora_alpha is"),
        ('{"lora_alpha": "much"}', "lora_alpha is much, not a number"),
        ('{"lora_alpha": NaN}', "lora_alpha is nan"),
        ('{"lora_alpha": 4, "r": -4, "use_rslora": true}', "r is -4; it must be above 0"),
        ('{"lora_alpha": 4, "rank_pattern": {"a": -4}}', "a is -4; it must be above 0"),
    ],
)
def test_lora_with_metadata_of_another_shape_is_rejected(
    text: str, message: str, tmp_path: Path
) -> None:
    path = spoilt(dict[str, Tensor].copy, tmp_path)
    save_file(load_file(path), path, {"lora_adapter_metadata": text})
    with pytest.raises(CheckpointError, match=message):
        load_lora(path, tiny_model())


def test_unmatched_keys_are_listed_when_lenient(tmp_path: Path) -> None:
    path = spoilt(add("something"), tmp_path)
    assert load_lora(path, tiny_model(), lenient=True).unused == ("something",)


@pytest.mark.parametrize(
    ("key", "shape", "what"),
    [
        ("lora_unet_x_attn2_to_k.lora_down.weight", (4, 768), r"Stable Diffusion 1\.5"),
        ("lora_unet_x_attn2_to_k.lora_down.weight", (4, 1024), "Stable Diffusion 2"),
        ("lora_unet_x_attn2_to_k.lora_down.weight", (4, 2048), "for SDXL, whose prompts are 2048"),
        ("lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight", (4, 8), "Flux"),
        ("transformer.transformer_blocks.0.attn.to_q.lora_A.weight", (4, 8), "Diffusion 3"),
    ],
)
def test_lora_for_another_model_is_rejected_by_name(
    key: str, shape: tuple[int, int], what: str, tmp_path: Path
) -> None:
    save_file({key: torch.zeros(shape)}, tmp_path / "lora.safetensors")
    with pytest.raises(CheckpointError, match=f"a LoRA for.*{what}|{what}"):
        load_lora(tmp_path / "lora.safetensors", tiny_model())


def test_pickled_lora_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "lora.pt").write_bytes(b"PK\x03\x04")
    with pytest.raises(CheckpointError, match="pickle"):
        load_lora(tmp_path / "lora.pt", tiny_model())


def test_key_of_a_million_letters_is_refused_by_name(tmp_path: Path) -> None:
    """A pattern that looked from each layer's name to the end of the key would take an hour."""
    key = "attn2.to_k" * 100_000
    save_file({key: torch.ones(2, 2)}, tmp_path / "lora.safetensors")
    with pytest.raises(CheckpointError, match="not a LoRA that Overpaint knows; its keys are attn"):
        load_lora(tmp_path / "lora.safetensors", tiny_model())
