import functools
import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from overpaint.errors import CheckpointError
from overpaint.models.checkpoint import (
    build_model,
    load_model,
    open_single_file,
)
from overpaint.models.devices import choose_device
from overpaint.models.diffusers_folder import parse_noise_config
from overpaint.models.family import Configs
from overpaint.models.files import single_file
from overpaint.models.files.safetensors_io import open_weights
from overpaint.models.model import Model
from overpaint.models.noise_config import NoiseConfig
from tests.models import original
from tests.models.original import State, tiny_configs, write_safetensors
from tests.tiny import tiny_folder, tiny_model

Modules = Mapping[str, torch.nn.Module]


@pytest.fixture(scope="module")
def made() -> tuple[Configs, Modules]:
    configs = tiny_configs()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return configs, original.build(configs)


@pytest.fixture(scope="module")
def state(made: tuple[Configs, Modules]) -> State:
    return original.original_layout(*made)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_folder(tmp_path / "tiny")


def write_single(path: Path, state: State, **metadata: str) -> Path:
    return write_safetensors(path / "model.safetensors", state, torch.float32, metadata)


def load_single(path: Path, configs: Configs, dtype: str = "fp32") -> Model:
    source = open_single_file(open_weights(path), configs)
    return build_model("single", source, choose_device("cpu", dtype, None, small=True))


def parts(model: Model) -> dict[str, torch.nn.Module]:
    encoders = {f"text_encoder_{n}": e.model for n, e in enumerate(model.text_encoders)}
    return {"unet": model.unet, "vae": model.vae, **encoders}


def assert_same_modules(first: Model, second: Model) -> None:
    """Assert that parameters and buffers are equal bit for bit."""
    assert parts(first).keys() == parts(second).keys()
    for one, other in zip(parts(first).values(), parts(second).values(), strict=True):
        ours = dict([*one.named_parameters(), *one.named_buffers()])
        theirs = dict([*other.named_parameters(), *other.named_buffers()])
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            assert tensor.dtype == theirs[name].dtype
            assert torch.equal(tensor, theirs[name]), name


def change(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_folder_loads_as_reference_model(folder: Path):
    generator = torch.get_rng_state()
    model, reference = load_model(folder, device="cpu"), tiny_model()
    assert torch.equal(torch.get_rng_state(), generator)  # nothing was drawn at random
    assert_same_modules(model, reference)
    assert model.family.name == "miniature"
    assert model.noise == NoiseConfig()
    assert (model.native_size, model.dtype) == (128, torch.float32)
    assert (model.name, len(model.sha256)) == (str(folder), 64)
    assert not model.zero_empty_negative
    for module in parts(model).values():
        assert not module.training
        assert not any(parameter.requires_grad for parameter in module.parameters())
    assert model.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    for ours, theirs in zip(model.text_encoders, reference.text_encoders, strict=True):
        assert ours.tokenizer("a red cat!").input_ids == theirs.tokenizer("a red cat!").input_ids
        assert ours.tokenizer.pad_token == theirs.tokenizer.pad_token


def test_single_file_loads_same_modules_as_folder(
    tmp_path: Path, made: tuple[Configs, Modules], state: State
):
    folder = original.write_folder(tmp_path / "folder", *made, torch.float32)
    single = load_single(write_single(tmp_path, state), made[0])
    assert_same_modules(single, load_model(folder, device="cpu"))
    assert single.notices == ()


def test_single_file_with_another_vocabulary_beside_it_uses_the_packaged_one(
    tmp_path: Path, made: tuple[Configs, Modules], state: State
):
    (tmp_path / "vocab.json").write_text('{"!": 0}')
    (tmp_path / "merges.txt").write_text("#version\na b\n")
    model = load_single(write_single(tmp_path, state), made[0])
    assert [len(encoder.tokenizer) for encoder in model.text_encoders] == [49408, 49408]


def test_single_file_loads_written_tensors(
    tmp_path: Path, made: tuple[Configs, Modules], state: State
):
    model = load_single(write_single(tmp_path, state), made[0])
    for module, wrote in zip(parts(model).values(), made[1].values(), strict=True):
        expected = wrote.state_dict()
        assert module.state_dict().keys() == expected.keys()
        for name, tensor in module.state_dict().items():
            assert torch.equal(tensor, expected[name]), name


def test_dtype_fp16_keeps_vae_in_bf16(tmp_path: Path, made: tuple[Configs, Modules], state: State):
    model = load_single(write_single(tmp_path, state), made[0], "fp16")
    kinds = {part: next(module.parameters()).dtype for part, module in parts(model).items()}
    assert kinds.pop("vae") == torch.bfloat16  # never black
    assert set(kinds.values()) == {torch.float16}
    weight = made[1]["unet"].get_parameter("conv_in.weight")
    assert torch.equal(model.unet.conv_in.weight, weight.half())


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("model.diffusion_model.out.2.bias", r"1 missing: conv_out\.bias"),
        (
            "model.diffusion_model.label_emb.0.0.weight",
            r"1 missing keys: .*label_emb\.0\.0\.weight",
        ),
        ("first_stage_model.quant_conv.bias", r"1 missing: quant_conv\.bias"),
        (
            "conditioner.embedders.0.transformer.text_model.final_layer_norm.bias",
            r"1 missing: final_layer_norm\.bias",
        ),
        ("conditioner.embedders.1.model.text_projection", "1 missing keys: .*text_projection"),
        (
            "conditioner.embedders.1.model.transformer.resblocks.1.attn.in_proj_bias",
            r"3 missing: text_model\.encoder\.layers\.1\.self_attn",
        ),
    ],
)
def test_missing_key_is_named_in_error(
    tmp_path: Path, made: tuple[Configs, Modules], state: State, missing: str, message: str
):
    path = write_single(tmp_path, {key: t for key, t in state.items() if key != missing})
    with pytest.raises(CheckpointError, match=message):
        load_single(path, made[0])


@pytest.mark.parametrize(
    "extra",
    [
        "something.else",
        "model.diffusion_model.new",
        "model.diffusion_model.input_blocks.1.0.in_layers.0.new",
        "first_stage_model.new",
        "first_stage_model.encoder.mid.block_1.norm1.new",
        "conditioner.embedders.0.transformer.new",
        "conditioner.embedders.1.model.new",
        "conditioner.embedders.1.model.transformer.resblocks.0.new",
    ],
)
def test_unexpected_key_is_named_in_error(
    tmp_path: Path, made: tuple[Configs, Modules], state: State, extra: str
):
    path = write_single(tmp_path, state | {extra: torch.zeros(1)})
    with pytest.raises(CheckpointError, match=f"1 unexpected.*{extra}"):
        load_single(path, made[0])


def test_different_shape_is_named_in_error(
    tmp_path: Path, made: tuple[Configs, Modules], state: State
):
    changed = state | {"first_stage_model.quant_conv.weight": torch.zeros(8, 8, 3, 3)}
    with pytest.raises(CheckpointError, match=r"quant_conv\.weight is \[8, 8, 3, 3\], expected"):
        load_single(write_single(tmp_path, changed), made[0])


def test_ignored_keys_are_accepted(tmp_path: Path, made: tuple[Configs, Modules], state: State):
    more = {
        "denoiser.sigmas": torch.zeros(1000),
        "conditioner.embedders.0.logit_scale": torch.zeros(1),
        "model_ema.diffusion_modelinput_blocks00weight": torch.zeros(1),
        "model_ema.decay": torch.zeros(1),
        "v_pred": torch.zeros(0),
        "ztsnr": torch.zeros(0),
    }
    model = load_single(write_single(tmp_path, state | more), made[0])
    assert len(model.notices) == 1
    assert "2 tensors not used (a moving average" in model.notices[0]
    assert model.noise == NoiseConfig(prediction="v_prediction", zero_terminal_snr=True)


@pytest.mark.parametrize(
    ("metadata", "prediction"),
    [
        ({}, "epsilon"),
        ({"modelspec.prediction_type": "epsilon"}, "epsilon"),
        ({"modelspec.prediction_type": "v"}, "v_prediction"),
        ({"modelspec.predict_key": "v"}, "v_prediction"),
    ],
)
def test_single_file_metadata_sets_noise_config(
    tmp_path: Path, metadata: dict[str, str], prediction: str
):
    path = write_safetensors(tmp_path / "a.safetensors", {}, torch.float32, metadata)
    assert single_file.read_noise_config(open_weights(path)) == NoiseConfig(prediction=prediction)  # pyright: ignore[reportArgumentType]


def test_refiner_has_only_second_text_encoder(tmp_path: Path):
    configs = tiny_configs(refiner=True)
    modules = original.build(configs)
    state = original.original_layout(configs, modules)
    converted, _ = single_file.split_checkpoint(open_weights(write_single(tmp_path, state)))
    assert converted.keys() == {"unet", "vae", "text_encoder_2"}
    for part, module in modules.items():
        assert converted[part].keys() == module.state_dict().keys()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["double_blocks.0.img_attn.proj.weight"], "a Flux checkpoint"),
        (["model.diffusion_model.joint_blocks.0.x.weight"], "a Stable Diffusion 3 checkpoint"),
        (["lora_unet_down_blocks_0.lora_up.weight"], "a LoRA"),
        (["unet.down_blocks.0.to_q.lora.up.weight"], "a LoRA"),
        (["control_model.input_blocks.0.0.weight"], "a ControlNet"),
        (["text_model.encoder.layers.0.mlp.fc1.weight"], "a text encoder"),
        (["decoder.conv_in.weight"], "a VAE"),
        (["edm_mean"], "EDM"),
        (["weight"], r"no model\.diffusion_model\.\* keys"),
    ],
)
def test_file_of_another_kind_is_rejected_by_name(tmp_path: Path, keys: list[str], message: str):
    save_file({key: torch.zeros(2, 2) for key in keys}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("width", "message"),
    [
        (768, r"Stable Diffusion 1\.5 checkpoint \(cross-attention width 768"),
        (1024, "Stable Diffusion 2 checkpoint"),
    ],
)
def test_older_stable_diffusion_is_rejected_by_name(tmp_path: Path, width: int, message: str):
    start = "model.diffusion_model.input_blocks"
    state = {
        f"{start}.0.0.weight": torch.zeros(320, 4, 3, 3),
        f"{start}.1.1.transformer_blocks.0.attn2.to_k.weight": torch.zeros(320, width),
    }
    save_file(state, tmp_path / "old.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path / "old.safetensors")


def test_sd15_folder_is_rejected_by_name(folder: Path):
    change(folder / "unet" / "config.json", addition_embed_type=None, cross_attention_dim=768)
    with pytest.raises(CheckpointError, match=r"Stable Diffusion 1\.5"):
        load_model(folder)


def test_folder_of_another_kind_is_rejected(tmp_path: Path, folder: Path):
    (folder / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(CheckpointError, match=r"a FluxPipeline without unet"):
        load_model(folder)
    with pytest.raises(CheckpointError, match=r"no model_index\.json"):
        load_model(tmp_path)


def test_folder_with_pickled_weights_is_rejected(folder: Path):
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(CheckpointError, match=r"only pickles \(diffusion_pytorch_model\.bin\)"):
        load_model(folder)


@pytest.mark.parametrize(
    "name",
    ["unet/config.json", "scheduler/scheduler_config.json", "tokenizer/merges.txt"],
)
def test_incomplete_folder_is_rejected(folder: Path, name: str):
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=Path(name).name):
        load_model(folder)


def test_unreadable_config_is_rejected(folder: Path):
    (folder / "vae" / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"vae.config\.json cannot be read"):
        load_model(folder)


DEEP: list[Any] = functools.reduce(lambda inner, _: [inner], range(900), [1])


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("unet", {"layers_per_block": 0}, "layers_per_block is 0"),
        ("unet", {"layers_per_block": 200_000}, "layers_per_block is 200000"),
        ("unet", {"layers_per_block": "2"}, "layers_per_block is 2; it must be a whole number"),
        ("unet", {"layers_per_block": True}, "layers_per_block is True"),
        ("unet", {"layers_per_block": 100, "transformer_layers_per_block": 100}, "asks for"),
        ("unet", {"transformer_layers_per_block": [1, [200_000]]}, "per_block is 200000"),
        ("unet", {"block_out_channels": [10**9, 64]}, "block_out_channels is 1000000000"),
        ("unet", {"block_out_channels": [32] * 200_000}, "block_out_channels has 200,000 items"),
        ("unet", {"block_out_channels": 320}, "block_out_channels is 320, not a list"),
        ("unet", {"transformer_layers_per_block": DEEP}, "per_block is lists in lists"),
        ("unet", {"cross_attention_dim": -64}, "cross_attention_dim is -64"),
        ("unet", {"attention_head_dim": 0}, "attention_head_dim is 0"),
        ("unet", {"sample_size": -16}, "sample_size is -16"),
        ("vae", {"latent_channels": 10**9}, "latent_channels is 1000000000"),
        ("vae", {"norm_num_groups": 0}, "norm_num_groups is 0"),
        ("text_encoder", {"num_hidden_layers": 200_000}, "num_hidden_layers is 200000"),
        ("text_encoder", {"num_hidden_layers": -1}, "num_hidden_layers is -1"),
        ("text_encoder", {"hidden_size": 10**9}, "hidden_size is 1000000000"),
        ("text_encoder_2", {"vocab_size": 10**12}, "vocab_size is 1000000000000"),
        ("scheduler", {"num_train_timesteps": 10**9}, "num_train_timesteps is 1000000000"),
    ],
)
def test_config_of_impossible_sizes_is_rejected_before_anything_is_built(
    folder: Path,
    part: str,
    changes: dict[str, Any],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(torch.nn.Module, "__init__", None)
    name = "scheduler_config.json" if part == "scheduler" else "config.json"
    change(folder / part / name, **changes)
    with pytest.raises(CheckpointError, match=f"{part}.*: .*{message}"):
        load_model(folder)


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("unet", {"norm_num_groups": 7}),
        ("unet", {"dropout": "much"}),
        ("unet", {"down_block_types": "CrossAttnDownBlock2D"}),
        ("vae", {"act_fn": 5}),
        ("text_encoder", {"hidden_act": "nothing"}),
        ("text_encoder", {"num_attention_heads": 7}),
        ("scheduler", {"beta_start": -1}),
        ("scheduler", {"beta_end": "NaN"}),
    ],
)
def test_config_of_which_nothing_can_be_built_is_rejected(
    folder: Path, part: str, changes: dict[str, Any]
):
    name = "scheduler_config.json" if part == "scheduler" else "config.json"
    change(folder / part / name, **changes)
    with pytest.raises(CheckpointError, match=part):
        load_model(folder)


@pytest.mark.parametrize("entry", [5, None, {}, [], "CLIPTextModel"])
def test_model_index_of_another_shape_is_rejected(folder: Path, entry: object):
    change(folder / "model_index.json", text_encoder=entry, text_encoder_2=entry)
    with pytest.raises(CheckpointError):
        load_model(folder)


def test_model_index_cannot_name_a_folder_elsewhere(folder: Path):
    change(folder / "model_index.json", _shares_with="../../secret")
    shutil.rmtree(folder / "vae")
    with pytest.raises(CheckpointError, match="_shares_with must be the name of a folder"):
        load_model(folder)


@pytest.mark.parametrize("text", ["[" * 100_000, " " * (2**20 + 1)])
def test_config_that_is_too_deep_or_large_is_rejected(folder: Path, text: str):
    (folder / "vae" / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"vae.config\.json"):
        load_model(folder)


@pytest.mark.parametrize("text", ["{}", "[", '{"model": 5}', '{"version": "1.0", "model": {}}'])
def test_damaged_tokenizer_is_rejected_by_name(folder: Path, text: str):
    for file in (folder / "tokenizer").iterdir():
        file.unlink()
    (folder / "tokenizer" / "tokenizer.json").write_text(text)
    with pytest.raises(CheckpointError, match="tokenizer"):
        load_model(folder)


@pytest.mark.parametrize("suffix", ["in_proj_weight", "attn1.to_q.weight", "text_projection"])
def test_single_file_with_a_tensor_without_axes_is_rejected(
    tmp_path: Path, made: tuple[Configs, Modules], state: State, suffix: str
):
    key = next(key for key in state if key.endswith(suffix))
    path = write_single(tmp_path, state | {key: torch.tensor(1.0)})
    with pytest.raises(CheckpointError):
        load_single(path, made[0])


def test_folder_with_mismatched_weights_is_rejected(folder: Path):
    change(folder / "unet" / "config.json", layers_per_block=2)
    with pytest.raises(CheckpointError, match=r"the unet does not fit; keys \d+ missing: .* more"):
        load_model(folder)


def test_tokenizer_larger_than_encoder_is_rejected(folder: Path):
    change(folder / "text_encoder" / "config.json", vocab_size=100)
    with pytest.raises(CheckpointError, match="tokenizer has 623 tokens, the encoder 100"):
        load_model(folder)


def test_second_text_encoder_pools_at_end_token(folder: Path):
    change(folder / "text_encoder_2" / "config.json", eos_token_id=2)
    encoder = load_model(folder, device="cpu").text_encoders[1]
    assert encoder.model.config.eos_token_id == encoder.tokenizer.eos_token_id


def test_folder_with_variants_and_shards_loads(folder: Path):
    unet = folder / "unet"
    whole = unet / "diffusion_pytorch_model.safetensors"
    tensors = {key: stored.read() for key, stored in open_weights(whole).tensors.items()}
    names = list(tensors)
    for number, keys in ((1, names[::2]), (2, names[1::2])):
        shard = unet / f"diffusion_pytorch_model.fp16-0000{number}-of-00002.safetensors"
        save_file({key: tensors[key].half() * 2 for key in keys}, shard)
    weight = tensors["conv_in.weight"]
    exact = load_model(folder, device="cpu", dtype="fp32")
    half = load_model(folder, device="cpu", dtype="fp16")
    assert torch.equal(exact.unet.conv_in.weight, weight)
    assert torch.equal(half.unet.conv_in.weight, weight.half() * 2)


def test_preview_map_of_folder_is_read(folder: Path):
    rows = [[0.1, 0.2, 0.3]] * 4
    fitted = {"latent_rgb_factors": rows, "latent_rgb_bias": [0.4, 0.5, 0.6]}
    (folder / "preview.json").write_text(json.dumps(fitted))
    preview = load_model(folder, device="cpu").preview
    assert preview is not None
    assert preview.factors == ((0.1, 0.2, 0.3),) * 4
    assert preview.bias == (0.4, 0.5, 0.6)


def test_noise_config_is_read_from_scheduler():
    known = {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": 500,
        "beta_start": 0.1,
        "beta_end": 0.2,
        "beta_schedule": "linear",
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
    }
    assert parse_noise_config(known) == NoiseConfig(
        500, 0.1, 0.2, "linear", "v_prediction", True, 0
    )
    for changes, message in (
        ({"_class_name": "EDMEulerScheduler"}, "trained for EDM"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "trained for Flow"),
        ({"trained_betas": [0.1]}, "explicit betas"),
        ({"prediction_type": "flow"}, "prediction_type is 'flow'"),
        ({"beta_schedule": "cosine"}, "beta_schedule is 'cosine'"),
        ({"beta_start": None}, "float"),
        ({"steps_offset": math.inf}, "OverflowError"),
    ):
        with pytest.raises(CheckpointError, match=message):
            parse_noise_config(known | changes)
