"""Checkpoints on disk become a `Model` on a device: strictly, and without a second copy.

The modules are built on the meta device, without memory, and each tensor is read straight into
its place in its final dtype, so that loading takes no more memory than the model and one tensor.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any, get_args

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from overpaint.errors import CheckpointError, ModelNotFoundError
from overpaint.models.devices import DeviceChoice, choose_device
from overpaint.models.family import Configs, parse_configs
from overpaint.models.files import single_file, weight_variants
from overpaint.models.files.clip_vocabulary import load_clip_tokenizer, load_tokenizer
from overpaint.models.files.digests import compute_sha256
from overpaint.models.files.json_config import read_json_config
from overpaint.models.files.safetensors_io import LazyTensor, WeightsFile, fill_module, open_weights
from overpaint.models.latent_preview import LatentPreview
from overpaint.models.library import catalog
from overpaint.models.model import Model, TextEncoder
from overpaint.models.noise_config import NoiseConfig, Prediction
from overpaint.nn.blocks import install_blocks
from overpaint.nn.packed import pack_network

Tensors = Mapping[str, LazyTensor]

TOKENIZER_FOLDERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
"""The parts that are text encoders, and the folders of their tokenizers."""

UNSUPPORTED_SCHEDULERS = ("EDM", "FlowMatch")
"""How the names of schedulers begin whose formulation of noise is another than SDXL's."""


@dataclass(frozen=True)
class CheckpointSource:
    """A checkpoint found and described, its tensors not read yet.

    Attributes:
        configs: of its parts.
        tensors: part name to state dict name to tensor.
        tokenizers: part name of a text encoder to its tokenizer.
        noise: how it was trained.
        files: its weights, in the order in which they are hashed.
        preview: the linear map for previews that it carries, if any.
        notices: what there is to say about it.
    """

    configs: Configs
    tensors: Mapping[str, Tensors]
    tokenizers: Mapping[str, CLIPTokenizer]
    noise: NoiseConfig
    files: tuple[Path, ...]
    preview: LatentPreview | None = None
    notices: tuple[str, ...] = ()


def load_model(
    name: str | PathLike[str],
    *,
    device: str = "auto",
    dtype: str = "auto",
    vae_dtype: str | None = None,
) -> Model:
    """Load a checkpoint.

    Args:
        name: "miniature", "sdxl" or another name of `catalogue.known`, a diffusers folder, a
            .safetensors file in SDXL's original layout, or a hub id "owner/name".
        device: see `devices.place`.
        dtype: likewise.
        vae_dtype: likewise.

    Raises:
        ModelNotFoundError: no model has that name.
        CheckpointError: it is no SDXL checkpoint, a pickle, damaged, or its keys or shapes are
            not exactly those that its configs ask for.
        RequestError: an unknown device or dtype.
        DeviceError: this machine has no such device.
    """
    path = catalog.resolve_model(fspath(name))
    weights = None if path.is_dir() else open_weights(path)
    configs = read_folder_configs(path) if weights is None else single_file.recognize_file(weights)
    placement = choose_device(
        device, dtype, vae_dtype, small=configs.family.name.startswith("miniature")
    )
    if weights is None:
        source = open_folder(path, configs, half=placement.dtype != torch.float32)
    else:
        source = open_single_file(weights, configs)
    return build_model(fspath(name), source, placement)


def load_preview_decoder(
    path: str | PathLike[str], *, device: torch.device, dtype: torch.dtype
) -> AutoencoderTiny:
    """Load a small decoder for previews: the folder of an AutoencoderTiny, such as TAESDXL's.

    Raises:
        ModelNotFoundError: no such folder.
        CheckpointError: its keys or shapes are not exactly what its config asks for.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ModelNotFoundError(f"no such folder: {folder} (a preview decoder)")
    decoder: AutoencoderTiny = _build_on_meta(
        AutoencoderTiny, read_json_config(folder / "config.json"), "preview decoder"
    )
    stored, _ = _open_part(folder, half=dtype != torch.float32)
    fill_module(decoder, stored, part="preview decoder", device=device, dtype=dtype)
    return decoder


def build_model(name: str, source: CheckpointSource, placement: DeviceChoice) -> Model:
    """Build the modules and read the tensors into them.

    Raises:
        CheckpointError: keys or shapes are not exactly those that the configs ask for.
    """
    configs, device, dtype = source.configs, placement.device, placement.dtype
    family = configs.family
    unet: UNet2DConditionModel = _build_on_meta(UNet2DConditionModel, configs.unet, "unet")
    vae: AutoencoderKL = _build_on_meta(AutoencoderKL, configs.vae, "vae")
    fill_module(
        unet,
        source.tensors["unet"],
        part="unet",
        device=device,
        dtype=dtype,
        channels_last=device.type in ("cpu", "cuda"),
    )
    install_blocks(unet)
    pack_network(unet)
    fill_module(
        vae,
        source.tensors["vae"],
        part="vae",
        device=device,
        dtype=placement.vae_dtype,
        channels_last=device.type in ("cpu", "cuda"),
    )
    encoders: list[TextEncoder] = []
    for part, config in configs.text_encoders.items():
        tokenizer = source.tokenizers[part]
        module = _build_text_encoder(part, config, tokenizer)
        stored = _rename_for_module(module, source.tensors[part])
        fill_module(module, stored, part=part, device=device, dtype=dtype)
        encoders.append(TextEncoder(tokenizer, module))
    return Model(
        name=name,
        family=family,
        sha256=compute_sha256(source.files),
        unet=unet,
        vae=vae,
        text_encoders=tuple(encoders),
        noise=source.noise,
        native_size=get_native_size(configs),
        device=device,
        dtype=dtype,
        zero_empty_negative=bool(configs.model_index.get("force_zeros_for_empty_prompt", True)),
        preview=source.preview or family.preview,
        notices=source.notices,
    )


def read_folder_configs(folder: Path) -> Configs:
    """The configs of a diffusers folder.

    Raises:
        CheckpointError: one is missing or unreadable, or the folder is of another kind.
    """
    if not (folder / "model_index.json").is_file():
        raise CheckpointError(f"{folder} has no model_index.json, so it is no diffusers folder")
    index = read_json_config(folder / "model_index.json")
    encoders = [part for part in TOKENIZER_FOLDERS if index.get(part, (None,))[0]]
    if missing := [part for part in ("unet", "vae") if part not in index]:
        kind = index.get("_class_name", "folder")
        raise CheckpointError(f"{folder}: a {kind} without {missing[0]}; Overpaint runs SDXL")
    where = {part: _locate_part(folder, part, index) for part in ("unet", "vae", *encoders)}
    parts = {part: read_json_config(own / "config.json") for part, own in where.items()}
    scheduler = read_json_config(_locate_part(folder, "scheduler", index) / "scheduler_config.json")
    try:
        return parse_configs(parts | {"scheduler": scheduler, "model_index": index})
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from error


def open_folder(folder: Path, configs: Configs, *, half: bool) -> CheckpointSource:
    """A diffusers folder.

    Args:
        folder: of the checkpoint.
        configs: of the folder.
        half: rather the 16-bit variant of a part that is there in several.

    Raises:
        CheckpointError: weights or a tokenizer are missing or damaged.
    """
    tensors: dict[str, Tensors] = {}
    files: list[Path] = []
    index = configs.model_index
    for part in ("unet", "vae", *configs.text_encoders):
        tensors[part], own = _open_part(_locate_part(folder, part, index), half=half)
        files += own
    return CheckpointSource(
        configs=configs,
        tensors=tensors,
        tokenizers={
            part: load_tokenizer(_locate_part(folder, TOKENIZER_FOLDERS[part], index))
            for part in configs.text_encoders
        },
        noise=parse_noise_config(configs.scheduler),
        files=tuple(sorted(files)),
        preview=_read_preview(_locate_part(folder, "preview.json", index)),
    )


def _locate_part(folder: Path, part: str, index: Mapping[str, Any]) -> Path:
    """Where a part of a folder is: in it, or in the one beside it that it shares parts with.

    `_shares_with` in model_index.json is ours: the miniature's second networks come without
    copies of its autoencoder and text encoders.
    """
    own, shared = folder / part, index.get("_shares_with")
    return own if own.exists() or shared is None else folder.parent / str(shared) / part


def open_single_file(weights: WeightsFile, configs: Configs) -> CheckpointSource:
    """A single file in SDXL's original layout.

    Raises:
        CheckpointError: a key belongs to no part.
    """
    tensors, notices = single_file.convert_checkpoint(weights, configs)
    return CheckpointSource(
        configs=configs,
        tensors=tensors,
        tokenizers={part: load_clip_tokenizer(part) for part in configs.text_encoders},
        noise=single_file.read_noise_config(weights),
        files=(weights.path,),
        notices=notices,
    )


def parse_noise_config(scheduler: Mapping[str, Any]) -> NoiseConfig:
    """How a model was trained, from the config of a diffusers scheduler.

    Raises:
        CheckpointError: in another formulation than SDXL's, or a value is missing or unknown.
    """
    kind = str(scheduler.get("_class_name", ""))
    if kind.startswith(UNSUPPORTED_SCHEDULERS) or scheduler.get("trained_betas") is not None:
        raise CheckpointError(f"trained for {kind} (or with betas of its own); Overpaint runs SDXL")
    for key, known in (
        ("prediction_type", get_args(Prediction)),
        ("beta_schedule", ("scaled_linear", "linear")),
    ):
        if scheduler.get(key) not in known:
            raise CheckpointError(
                f"scheduler_config.json: {key} is {scheduler.get(key)!r}; "
                f"known are {', '.join(known)}"
            )
    try:
        return NoiseConfig(
            steps=int(scheduler["num_train_timesteps"]),
            beta_start=float(scheduler["beta_start"]),
            beta_end=float(scheduler["beta_end"]),
            beta_schedule=scheduler["beta_schedule"],
            prediction=scheduler["prediction_type"],
            zero_terminal_snr=bool(scheduler.get("rescale_betas_zero_snr", False)),
            steps_offset=int(scheduler.get("steps_offset", 0)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"scheduler_config.json: {error!r}") from error


def get_native_size(configs: Configs) -> int:
    """The side in pixels of the square that a checkpoint was trained on."""
    side = configs.unet.get("sample_size")
    if not isinstance(side, int):
        return configs.family.native_size
    return side * 2 ** (len(configs.vae["block_out_channels"]) - 1)


def _build_text_encoder(
    part: str, config: Mapping[str, Any], tokenizer: CLIPTokenizer
) -> CLIPTextModel | CLIPTextModelWithProjection:
    """A text encoder on the meta device, which pools at its tokenizer's end token.

    SDXL's second encoder says `eos_token_id: 2`, with which transformers pools at the largest
    token id: at the wrong place as soon as the vocabulary has new tokens.

    Raises:
        CheckpointError: the tokenizer has tokens that the encoder does not know.
    """
    if len(tokenizer) > config["vocab_size"]:
        raise CheckpointError(
            f"{part}: its tokenizer has {len(tokenizer)} tokens, the encoder {config['vocab_size']}"
        )
    text_config = CLIPTextConfig.from_dict(dict(config) | {"eos_token_id": tokenizer.eos_token_id})
    kind = CLIPTextModelWithProjection if part == "text_encoder_2" else CLIPTextModel
    with torch.device("meta"):
        return kind(text_config)


def _rename_for_module(module: torch.nn.Module, stored: Tensors) -> Tensors:
    """A text encoder's tensors by the names that the installed transformers gives them.

    Files say `text_model.` before each name; since 5.6 the module without a projection does not.
    Old files also hold the position ids, the numbers 0 to 76.
    """
    needed = {k: v for k, v in stored.items() if not k.endswith("embeddings.position_ids")}
    if hasattr(module, "text_model"):
        return needed
    return {name.removeprefix("text_model."): tensor for name, tensor in needed.items()}


def _open_part(folder: Path, *, half: bool) -> tuple[dict[str, LazyTensor], list[Path]]:
    """The tensors of one part of a folder, and the files they are in."""
    try:
        names = weight_variants.choose_weight_files(
            (entry.name for entry in folder.iterdir()), half=half
        )
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    files = [folder / name for name in names]
    tensors: dict[str, LazyTensor] = {}
    for file in files:
        tensors |= open_weights(file).tensors
    return tensors, files


def _read_preview(path: Path) -> LatentPreview | None:
    """The linear map that a folder carries, if it does."""
    if not path.is_file():
        return None
    fitted = read_json_config(path)
    rows = [(float(r), float(g), float(b)) for r, g, b in fitted["latent_rgb_factors"]]
    red, green, blue = fitted["latent_rgb_bias"]
    return LatentPreview(tuple(rows), (float(red), float(green), float(blue)))


def _build_on_meta(kind: Any, config: Mapping[str, Any], part: str) -> Any:
    """A diffusers module of a config, on the meta device."""
    try:
        with torch.device("meta"):
            return kind.from_config(dict(config))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{part}: its config makes no {kind.__name__}: {error}") from error
