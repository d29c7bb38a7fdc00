"""Read safetensors files strictly, one tensor at a time.

The reader of the safetensors library maps the whole file into memory, and touched pages stay
counted against the process. A model converted to another dtype would need twice its size while it
loads. Here the library only validates the file. This module then reads each tensor's bytes into
the memory where the tensor stays.
"""

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from overpaint.errors import CheckpointError
from overpaint.models.files.key_patterns import MAX_KEY_CHARS, sample_keys
from overpaint.models.files.lazy_tensor import LazyTensor
from overpaint.models.files.scaled_fp8 import apply_weight_scales
from overpaint.models.files.suffixes import PICKLE_SUFFIXES, WEIGHT_SUFFIXES
from overpaint.system.malloc import trim_heap

PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""First bytes of a torch zip archive, and of the pickle protocols with a distinct first byte."""

MAX_TENSORS = 100_000
"""Tensors of a file; SDXL has 2,515."""

MAX_AXES = 8

TRIM_INTERVAL_BYTES = 2**27
"""Bytes of tensors that a module reads between two calls of `trim_heap`."""

DTYPES_BY_CODE: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class WeightsFile:
    """The contents of a safetensors file.

    Attributes:
        path: The file.
        tensors: The tensors by key.
        metadata: The metadata in the file's header.
    """

    path: Path
    tensors: dict[str, LazyTensor]
    metadata: dict[str, str]


def open_weights(path: Path) -> WeightsFile:
    """Read the header of a safetensors file.

    Raises:
        CheckpointError: The file is a pickle, is not a complete safetensors file, or holds a
            dtype that Overpaint does not support.
    """
    refuse_pickle(path)
    try:
        with safe_open(path, framework="pt") as checked:
            metadata: dict[str, str] = checked.metadata() or {}
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header: dict[str, Any] = json.loads(file.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a whole safetensors file ({path.stat().st_size:,} bytes): {error}. "
            "Download it again."
        ) from error
    header.pop("__metadata__", None)
    if len(header) > MAX_TENSORS:
        raise CheckpointError(
            f"{path} has {len(header):,} tensors; Overpaint reads up to {MAX_TENSORS:,}"
        )
    tensors: dict[str, LazyTensor] = {}
    for key, entry in header.items():
        if (dtype := DTYPES_BY_CODE.get(entry["dtype"])) is None:
            raise CheckpointError(
                f"{path}: {key} has dtype {entry['dtype']}; Overpaint reads "
                f"{', '.join(DTYPES_BY_CODE)}"
            )
        if len(entry["shape"]) > MAX_AXES:
            raise CheckpointError(
                f"{path}: {key[:MAX_KEY_CHARS]} has {len(entry['shape']):,} axes; Overpaint reads "
                f"tensors of up to {MAX_AXES}"
            )
        shape = torch.Size(entry["shape"])
        offset = 8 + length + entry["data_offsets"][0]
        tensors[key] = LazyTensor(path, key, offset, dtype, shape, shape)
    return WeightsFile(path, apply_weight_scales(tensors, path), metadata)


def count_numbers(path: Path) -> int:
    """Return how many numbers the tensors of a file or a folder of parts have, from the headers.

    Raises:
        CheckpointError: See `open_weights`.
    """
    files = sorted(path.glob("*/*.safetensors")) if path.is_dir() else [path]
    tensors = (own for file in files for own in open_weights(file).tensors.values())
    return sum(own.file_shape.numel() for own in tensors)


def refuse_pickle(path: Path) -> None:
    """Reject pickles, by suffix or, if renamed, by their first bytes.

    Raises:
        CheckpointError: The file is a pickle, or its suffix is not .safetensors.
    """
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    if path.suffix.lower() in PICKLE_SUFFIXES or start.startswith(PICKLE_STARTS):
        renamed = f" renamed to {path.suffix}" if path.suffix in WEIGHT_SUFFIXES else ""
        raise CheckpointError(
            f"{path} is a pickle{renamed}, which can run any program when it is opened; "
            "Overpaint reads safetensors only. Get the .safetensors file of this model."
        )
    if path.suffix.lower() not in WEIGHT_SUFFIXES:
        raise CheckpointError(f"{path} is neither a .safetensors file nor a folder")


def fill_module(
    module: torch.nn.Module,
    stored: Mapping[str, LazyTensor],
    *,
    part: str,
    device: torch.device,
    dtype: torch.dtype,
    channels_last: bool = False,
    names: Collection[str] | None = None,
) -> None:
    """Fill a module that was built on the meta device with a checkpoint's tensors.

    At most one tensor is in memory beside those already in place.

    Args:
        module: The module to fill. It is set to evaluation mode, without gradients.
        stored: The tensors by state dict name; exactly the names of the module.
        part: The name of the module in error messages.
        device: The device of the filled module; on "meta" it gets dtypes, and no values.
        dtype: The dtype for floating-point tensors.
        channels_last: Use the channels-last memory format for 4-D tensors.
        names: The tensors to fill in, which the caller has checked; by default all.

    Raises:
        CheckpointError: A tensor is missing, unexpected or has another shape.
    """
    if names is None:
        check_tensors(module, stored, part=part)
        names = module.state_dict()
    untrimmed = 0
    for name in names:
        tensor = stored[name].read(device)
        untrimmed += tensor.nbytes
        if untrimmed > TRIM_INTERVAL_BYTES:
            trim_heap()
            untrimmed = 0
        four = channels_last and tensor.ndim == 4
        tensor = tensor.to(
            device,
            dtype if tensor.is_floating_point() else tensor.dtype,
            memory_format=torch.channels_last if four else torch.preserve_format,
        )
        owner, _, leaf = name.rpartition(".")
        holder = module.get_submodule(owner)
        if isinstance(getattr(holder, leaf), torch.nn.Parameter):
            tensor = torch.nn.Parameter(tensor, requires_grad=False)
        setattr(holder, leaf, tensor)
    trim_heap()
    number_positions(module, device)
    module.eval()


def number_positions(module: torch.nn.Module, device: torch.device) -> None:
    """Fill in CLIP's position ids, the only buffer that checkpoints can lack."""
    for name, buffer in list(module.named_buffers()):
        if buffer.is_meta:
            owner, _, leaf = name.rpartition(".")
            ids = torch.arange(buffer.shape[-1], device=device).expand(buffer.shape)
            setattr(module.get_submodule(owner), leaf, ids)


def check_tensors(module: torch.nn.Module, stored: Mapping[str, LazyTensor], *, part: str) -> None:
    """Check, before any tensor is read, that tensors have a module's names and shapes.

    Raises:
        CheckpointError: A tensor is missing, unexpected or has another shape.
    """
    expected: Mapping[str, torch.Tensor] = module.state_dict()
    missing = [name for name in expected if name not in stored]
    unexpected = [tensor.key for name, tensor in stored.items() if name not in expected]
    reshaped = [
        f"{stored[name].key} is {list(stored[name].shape)}, expected {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in stored and stored[name].shape != tensor.shape
    ]
    faults = [
        f"{len(names)} {what}: {sample_keys(names)}"
        for what, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", reshaped),
        )
        if names
    ]
    if faults:
        source = next((os.fspath(tensor.path) for tensor in stored.values()), "the checkpoint")
        raise CheckpointError(f"{source}: the {part} does not fit; keys {'; '.join(faults)}")
