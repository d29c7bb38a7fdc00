"""Load checkpoints strictly, and without a second copy in memory.

Modules are built on the meta device, which takes no memory. Each tensor is then read into its final
place and dtype. Loading therefore needs memory for the model and one tensor.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from overpaint.errors import CheckpointError
from overpaint.models.checkpoint_source import CheckpointSource, Tensors
from overpaint.models.devices import DeviceChoice, choose_device
from overpaint.models.diffusers_folder import open_folder
from overpaint.models.family import Configs
from overpaint.models.few_step import KNOWN_FILES
from overpaint.models.files import single_file
from overpaint.models.files.clip_vocabulary import load_clip_tokenizer
from overpaint.models.files.config_limits import check_config
from overpaint.models.files.digests import compute_sha256
from overpaint.models.files.part_names import describe_missing_parts
from overpaint.models.files.safetensors_io import (
    WeightsFile,
    check_tensors,
    open_weights,
)
from overpaint.models.files.unet_config import infer_unet_config
from overpaint.models.library import catalog
from overpaint.models.library.folder_configs import get_native_size, read_folder_configs
from overpaint.models.model import Model, SeparateVae, TextEncoder
from overpaint.models.placement import place_weights
from overpaint.models.separate_parts import (
    PartPath,
    SeparatePart,
    SeparateParts,
    make_part_files,
    open_separate_part,
)
from overpaint.nn.blocks import install_blocks
from overpaint.nn.device_memory import DeviceMemory
from overpaint.nn.packed import pack_network
from overpaint.nn.weight_blocks import Work
from overpaint.system.progress import expect_bytes

WORK_OF_PARTS: Mapping[str, Work] = {"unet": "step", "vae": "decode"}
"""The work of the parts that are not text encoders."""


def load_model(
    name: str | PathLike[str],
    *,
    device: str | torch.device | DeviceChoice = "auto",
    dtype: str = "auto",
    vae_dtype: str | None = None,
    parts: Mapping[str, PartPath] | None = None,
    known: Callable[[], Iterable[str]] = catalog.list_checkpoint_names,
    memory: DeviceMemory | None = None,
) -> Model:
    """Load a checkpoint.

    Args:
        name: "miniature", "sdxl" or another name in `catalog.list_models`, a diffusers folder, a
            .safetensors file in SDXL's original layout, or a hub id "owner/name". With `parts`
            also the file of a UNet alone.
        device: See `devices.choose_device`. Or a choice, with dtypes in place of the other two.
        dtype: See `devices.choose_device`.
        vae_dtype: See `devices.choose_device`.
        parts: Files or folders of parts ("unet", "vae", "text_encoder", "text_encoder_2") that
            replace those of the checkpoint, or are missing from it.
        known: Lists the names of checkpoints, for suggestions in errors.
        memory: The memory of the device if it is limited; see `place_weights`.

    Raises:
        ModelNotFoundError: No model has that name, or the file of a part does not exist.
        CheckpointError: The file is not an SDXL checkpoint, is a pickle or damaged, or its keys or
            shapes differ from those of its configs. Or it lacks a part.
        RequestError: The device or dtype is unknown.
        DeviceError: This machine does not have the device.
    """
    path = catalog.resolve_model(fspath(name), known=known)
    separate = {
        part: open_separate_part(part, own.path, own.name) for part, own in (parts or {}).items()
    }
    weights = None if path.is_dir() else open_weights(path)
    configs = read_folder_configs(path) if weights is None else single_file.recognize_file(weights)
    if isinstance(device, DeviceChoice):
        placement = device
    else:
        small = configs.family.name.startswith("miniature")
        placement = choose_device(device, dtype, vae_dtype, small=small)
    if weights is None:
        half = placement.dtype != torch.float32
        source = open_folder(path, configs, half=half, without=separate)
    else:
        source = open_single_file(weights, configs)
    source = replace_parts(source, separate)
    check_complete(source, path)
    return build_model(fspath(name), source, placement, memory)


def replace_parts(source: CheckpointSource, separate: SeparateParts) -> CheckpointSource:
    """Return a checkpoint with parts from their own files.

    Raises:
        CheckpointError: A UNet has blocks that cannot be built.
    """
    configs, noise = source.configs, source.noise
    for part, own in separate.items():
        if part == "vae":
            check_vae_config(own, configs.vae)
        configs = _replace_config(configs, part, own)
        noise = own.noise or noise
    return replace(
        source,
        configs=configs,
        noise=noise,
        tensors={**source.tensors, **{part: own.tensors for part, own in separate.items()}},
        separate=make_part_files(separate),
    )


def _replace_config(configs: Configs, part: str, own: SeparatePart) -> Configs:
    """Return the configs with that of a separate part, which a file alone does not have."""
    if part == "unet":
        return replace(configs, unet=own.config or infer_unet_config(own.tensors, configs.unet))
    if own.config is None:
        return configs
    if part == "vae":
        return replace(configs, vae=own.config)
    return replace(configs, text_encoders={**configs.text_encoders, part: own.config})


def check_vae_config(vae: SeparatePart, config: Mapping[str, Any]) -> None:
    """Check that the UNet of a checkpoint knows the latents of a separate VAE.

    Raises:
        CheckpointError: Its config differs from that of the checkpoint's VAE.
    """
    for key in ("latent_channels", "scaling_factor"):
        if vae.config is not None and vae.config.get(key) != config.get(key):
            raise CheckpointError(
                f"{vae.files[0].parent}: this VAE is for other models: its {key} is "
                f"{vae.config.get(key)}, not {config.get(key)}"
            )


def load_separate_vae(file: PartPath, model: Model) -> SeparateVae:
    """Load a VAE that requests can use in place of a model's own.

    Raises:
        CheckpointError: The file is damaged, or has no VAE that fits the model.
    """
    own = open_separate_part("vae", file.path, file.name)
    config: dict[str, Any] = dict(model.vae.config)
    check_vae_config(own, config)
    module: AutoencoderKL = _build_on_meta(AutoencoderKL, own.config or config, "vae")
    place_weights(
        module,
        own.tensors,
        part="vae",
        work="decode",
        device=model.device,
        dtype=model.vae.dtype,
        memory=model.device_memory,
    )
    return SeparateVae(module, make_part_files({"vae": own})["vae"])


def check_complete(source: CheckpointSource, path: Path) -> None:
    """Check, before any tensor is read, that a checkpoint has all its parts.

    Raises:
        CheckpointError: A part is missing.
    """
    needed = ("unet", "vae", *source.configs.text_encoders)
    if missing := [part for part in needed if not source.tensors.get(part)]:
        raise CheckpointError(describe_missing_parts(path, missing))


def build_model(
    name: str,
    source: CheckpointSource,
    placement: DeviceChoice,
    memory: DeviceMemory | None = None,
) -> Model:
    """Build the modules and read the tensors into them.

    Args:
        name: The name that the user gave.
        source: The checkpoint.
        placement: The device and the dtypes.
        memory: See `load_model`.

    Raises:
        CheckpointError: The keys or shapes differ from those of the configs.
    """
    configs, device, dtype = source.configs, placement.device, placement.dtype
    family = configs.family
    unet: UNet2DConditionModel = _build_on_meta(UNet2DConditionModel, configs.unet, "unet")
    vae: AutoencoderKL = _build_on_meta(AutoencoderKL, configs.vae, "vae")
    modules: dict[str, Any] = {"unet": unet, "vae": vae}
    for part, config in configs.text_encoders.items():
        modules[part] = _build_text_encoder(part, config, source.tokenizers[part])
    stored = {part: _rename_for_module(own, source.tensors[part]) for part, own in modules.items()}
    for part, module in modules.items():  # all of them, before reading gigabytes
        check_tensors(module, stored[part], part=part)
    has_values = device.type != "meta"
    if has_values and not (memory and memory.reads_files):
        expect_bytes(sum(tensor.file_bytes for own in stored.values() for tensor in own.values()))
    install_blocks(unet)
    for part, module in modules.items():
        place_weights(
            module,
            stored[part],
            part=part,
            work=WORK_OF_PARTS.get(part, "encode"),
            device=device,
            dtype=placement.vae_dtype if part == "vae" else dtype,
            memory=memory,
            eight_bits=placement.eight_bits if part == "unet" else None,
        )
        if part == "unet" and memory is None:
            pack_network(unet)
    encoders = [TextEncoder(source.tokenizers[p], modules[p]) for p in configs.text_encoders]
    sha256 = compute_sha256(source.files) if has_values else ""
    known = KNOWN_FILES.get(sha256)
    model = Model(
        name=name,
        family=family,
        sha256=sha256,
        unet=unet,
        vae=vae,
        text_encoders=tuple(encoders),
        noise=source.noise,
        native_size=(known and known.native_size) or get_native_size(configs),
        device=device,
        dtype=dtype,
        eight_bits=placement.eight_bits,
        zero_empty_negative=bool(configs.model_index.get("force_zeros_for_empty_prompt", True)),
        preview=source.preview or family.preview,
        notices=source.notices,
        metadata=source.metadata,
        parts=source.separate,
        device_memory=memory,
    )
    if memory:
        model.notices += (memory.describe(),)
    return model


def open_single_file(weights: WeightsFile, configs: Configs) -> CheckpointSource:
    """Open a single file in SDXL's original layout, or a UNet alone.

    Args:
        weights: The file.
        configs: The configs of its family. That of the UNet follows from its tensors.

    Raises:
        CheckpointError: A key belongs to no part.
    """
    tensors, notices = single_file.split_checkpoint(weights)
    try:
        unet = infer_unet_config(tensors.get("unet", {}), configs.unet)
    except CheckpointError as error:
        raise CheckpointError(f"{weights.path}: {error}") from error
    return CheckpointSource(
        configs=replace(configs, unet=unet),
        tensors=tensors,
        tokenizers={part: load_clip_tokenizer(part) for part in configs.text_encoders},
        noise=single_file.read_noise_config(weights),
        files=(weights.path,),
        notices=notices,
        metadata=weights.metadata,
    )


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

    The names of other modules stay.

    Names in files start with `text_model.`. Since transformers 5.6, names in the module without a
    projection do not. Old files also contain position ids, the numbers 0 to 76.
    """
    needed = {k: v for k, v in stored.items() if not k.endswith("embeddings.position_ids")}
    if hasattr(module, "text_model"):
        return needed
    return {name.removeprefix("text_model."): tensor for name, tensor in needed.items()}


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
