"""Load checkpoints strictly, and without a second copy in memory.

Modules are built on the meta device, which takes no memory. Each tensor is then read into its final
place and dtype. Loading therefore needs memory for the model and one tensor.
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
from overpaint.models.files.config_limits import check_config
from overpaint.models.files.digests import compute_sha256
from overpaint.models.files.json_config import read_json_config
from overpaint.models.files.safetensors_io import LazyTensor, WeightsFile, fill_module, open_weights
from overpaint.models.latent_preview import LatentPreview
from overpaint.models.library import catalog
from overpaint.models.library.index import NAME_PATTERN
from overpaint.models.model import Model, TextEncoder
from overpaint.models.noise_config import NoiseConfig, Prediction
from overpaint.nn.blocks import install_blocks
from overpaint.nn.packed import pack_network

Tensors = Mapping[str, LazyTensor]

TOKENIZER_FOLDERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
"""The text encoders, and the folders of their tokenizers."""

UNSUPPORTED_SCHEDULERS = ("EDM", "FlowMatch")
"""Prefixes of schedulers whose formulation of noise differs from SDXL's."""


@dataclass(frozen=True)
class CheckpointSource:
    """A checkpoint whose tensors are not read yet.

    Attributes:
        configs: The configs of its parts.
        tensors: The tensors by part and state dict name.
        tokenizers: The tokenizers by text encoder.
        noise: The noise schedule of training.
        files: The weight files, in the order of hashing.
        preview: The linear map for previews in the checkpoint, if any.
        notices: Messages about the checkpoint.
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
        name: "miniature", "sdxl" or another name in `catalog.list_models`, a diffusers folder, a
            .safetensors file in SDXL's original layout, or a hub id "owner/name".
        device: See `devices.choose_device`.
        dtype: See `devices.choose_device`.
        vae_dtype: See `devices.choose_device`.

    Raises:
        ModelNotFoundError: No model has that name.
        CheckpointError: The file is not an SDXL checkpoint, is a pickle or damaged, or its keys or
            shapes differ from those of its configs.
        RequestError: The device or dtype is unknown.
        DeviceError: This machine does not have the device.
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
    """Load a small decoder for previews from the folder of an AutoencoderTiny, such as TAESDXL.

    Raises:
        ModelNotFoundError: The folder does not exist.
        CheckpointError: The keys or shapes differ from those of the config.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ModelNotFoundError(f"the preview decoder's folder {folder} does not exist")
    decoder: AutoencoderTiny = _build_on_meta(
        AutoencoderTiny, read_json_config(folder / "config.json"), "preview decoder"
    )
    stored, _ = _open_part(folder, half=dtype != torch.float32)
    fill_module(decoder, stored, part="preview decoder", device=device, dtype=dtype)
    return decoder


def build_model(name: str, source: CheckpointSource, placement: DeviceChoice) -> Model:
    """Build the modules and read the tensors into them.

    Raises:
        CheckpointError: The keys or shapes differ from those of the configs.
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
    """Read the configs of a diffusers folder.

    Raises:
        CheckpointError: A config is missing or unreadable, or the folder is of another kind.
    """
    if not (folder / "model_index.json").is_file():
        raise CheckpointError(f"{folder} is not a diffusers folder: it has no model_index.json")
    index = read_json_config(folder / "model_index.json")
    encoders = [part for part in TOKENIZER_FOLDERS if _has_part(index, part)]
    if missing := [part for part in ("unet", "vae") if part not in index]:
        kind = index.get("_class_name", "folder")
        raise CheckpointError(f"{folder} is a {kind} without {missing[0]}; Overpaint runs SDXL")
    where = {part: _locate_part(folder, part, index) for part in ("unet", "vae", *encoders)}
    parts = {part: read_json_config(own / "config.json") for part, own in where.items()}
    scheduler = read_json_config(_locate_part(folder, "scheduler", index) / "scheduler_config.json")
    try:
        for part, config in (*parts.items(), ("scheduler", scheduler)):
            check_config(config, part)
        return parse_configs(parts | {"scheduler": scheduler, "model_index": index})
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from error


def open_folder(folder: Path, configs: Configs, *, half: bool) -> CheckpointSource:
    """Open the weights and tokenizers of a diffusers folder.

    Args:
        folder: The folder.
        configs: The folder's configs.
        half: Prefer the 16-bit variant of each part.

    Raises:
        CheckpointError: Weights or a tokenizer are missing or damaged.
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
    """Return the path of a part: in the folder, or in a sibling folder that shares its parts.

    Overpaint adds the key `_shares_with` to model_index.json, so that the miniature's inpainting
    model and refiner need no copies of the autoencoder and text encoders.
    """
    own, shared = folder / part, index.get("_shares_with")
    if own.exists() or shared is None:
        return own
    if not isinstance(shared, str) or not NAME_PATTERN.fullmatch(shared):
        raise CheckpointError(f"{folder}: _shares_with must be the name of a folder beside it")
    return folder.parent / shared / part


def _has_part(index: Mapping[str, Any], part: str) -> bool:
    """Return whether a model index has a part: a library and a class, which can be null."""
    entry = index.get(part)
    return isinstance(entry, list) and bool(entry) and entry[0] is not None


def open_single_file(weights: WeightsFile, configs: Configs) -> CheckpointSource:
    """Open a single file in SDXL's original layout.

    Raises:
        CheckpointError: A key belongs to no part.
    """
    try:
        tensors, notices = single_file.convert_checkpoint(weights, configs)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        # The converters slice and transpose tensors, which may have too few axes.
        raise CheckpointError(f"{weights.path}: a tensor has an unknown shape: {error}") from error
    return CheckpointSource(
        configs=configs,
        tensors=tensors,
        tokenizers={part: load_clip_tokenizer(part) for part in configs.text_encoders},
        noise=single_file.read_noise_config(weights),
        files=(weights.path,),
        notices=notices,
    )


def parse_noise_config(scheduler: Mapping[str, Any]) -> NoiseConfig:
    """Read the noise schedule of training from the config of a diffusers scheduler.

    Raises:
        CheckpointError: The formulation differs from SDXL's, or a value is missing or unknown.
    """
    kind = str(scheduler.get("_class_name", ""))
    if kind.startswith(UNSUPPORTED_SCHEDULERS) or scheduler.get("trained_betas") is not None:
        raise CheckpointError(
            f"the model was trained for {kind} or with explicit betas; Overpaint runs SDXL"
        )
    for key, known in (
        ("prediction_type", get_args(Prediction)),
        ("beta_schedule", ("scaled_linear", "linear")),
    ):
        if scheduler.get(key) not in known:
            raise CheckpointError(
                f"scheduler_config.json: {key} is {scheduler.get(key)!r}; "
                f"Overpaint knows {', '.join(known)}"
            )
    try:
        check_config(scheduler, "scheduler_config.json")
        if not 0 < float(scheduler["beta_start"]) <= float(scheduler["beta_end"]) < 1:
            raise ValueError("beta_start and beta_end must be between 0 and 1, in this order")
        return NoiseConfig(
            steps=int(scheduler["num_train_timesteps"]),
            beta_start=float(scheduler["beta_start"]),
            beta_end=float(scheduler["beta_end"]),
            beta_schedule=scheduler["beta_schedule"],
            prediction=scheduler["prediction_type"],
            zero_terminal_snr=bool(scheduler.get("rescale_betas_zero_snr", False)),
            steps_offset=int(scheduler.get("steps_offset", 0)),
        )
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise CheckpointError(f"scheduler_config.json: {error!r}") from error


def get_native_size(configs: Configs) -> int:
    """Return the side in pixels of the pictures that a checkpoint was trained on."""
    side = configs.unet.get("sample_size")
    if not isinstance(side, int):
        return configs.family.native_size
    return side * 2 ** (len(configs.vae["block_out_channels"]) - 1)


def _build_text_encoder(
    part: str, config: Mapping[str, Any], tokenizer: CLIPTokenizer
) -> CLIPTextModel | CLIPTextModelWithProjection:
    """Build a text encoder on the meta device that pools at its tokenizer's end token.

    The config of SDXL's second encoder has `eos_token_id: 2`. With it, transformers pools at the
    largest token id, which is the wrong position if the vocabulary has additional tokens.

    Raises:
        CheckpointError: The tokenizer has more tokens than the encoder.
    """
    if len(tokenizer) > config["vocab_size"]:
        raise CheckpointError(
            f"{part}: its tokenizer has {len(tokenizer)} tokens, the encoder {config['vocab_size']}"
        )
    changed = dict(config) | {"eos_token_id": tokenizer.eos_token_id}
    kind = CLIPTextModelWithProjection if part == "text_encoder_2" else CLIPTextModel
    try:
        with torch.device("meta"):
            return kind(CLIPTextConfig.from_dict(changed))
    except Exception as error:  # transformers raises many types for values that it cannot use
        raise CheckpointError(f"{part}: its config is not valid for CLIP: {error}") from error


def _rename_for_module(module: torch.nn.Module, stored: Tensors) -> Tensors:
    """Rename a text encoder's tensors to the names in the installed transformers.

    Names in files start with `text_model.`. Since transformers 5.6, names in the module without a
    projection do not. Old files also contain position ids, the numbers 0 to 76.
    """
    needed = {k: v for k, v in stored.items() if not k.endswith("embeddings.position_ids")}
    if hasattr(module, "text_model"):
        return needed
    return {name.removeprefix("text_model."): tensor for name, tensor in needed.items()}


def _open_part(folder: Path, *, half: bool) -> tuple[dict[str, LazyTensor], list[Path]]:
    """Return the tensors of one part of a folder, and their files."""
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
    """Read a folder's linear map for previews, if any."""
    if not path.is_file():
        return None
    fitted = read_json_config(path)
    try:
        rows = [(float(r), float(g), float(b)) for r, g, b in fitted["latent_rgb_factors"]]
        red, green, blue = fitted["latent_rgb_bias"]
        return LatentPreview(tuple(rows), (float(red), float(green), float(blue)))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is not a map for previews: {error!r}") from error


def _build_on_meta(kind: Any, config: Mapping[str, Any], part: str) -> Any:
    """Build a diffusers module from its config on the meta device."""
    check_config(config, part)
    try:
        with torch.device("meta"):
            return kind.from_config(dict(config))
    except Exception as error:  # diffusers raises many types for values that it cannot use
        raise CheckpointError(
            f"{part}: its config is not valid for {kind.__name__}: {error}"
        ) from error
