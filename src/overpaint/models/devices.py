"""Choose the device and the dtypes of a model."""

from dataclasses import dataclass
from typing import get_args

import torch

from overpaint.errors import DeviceError, RequestError, did_you_mean
from overpaint.nn.kernels import EightBits, emulates_bf16

DTYPES_BY_NAME: dict[str, torch.dtype] = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}


@dataclass(frozen=True)
class DeviceChoice:
    """The device and dtypes of a model.

    Attributes:
        device: The device of all modules.
        dtype: The dtype of the UNet and the text encoders.
        vae_dtype: The dtype of the VAE.
        eight_bits: The number format of weights with 8 bits, if the UNet has such.
    """

    device: torch.device
    dtype: torch.dtype
    vae_dtype: torch.dtype
    eight_bits: EightBits | None = None


@dataclass(frozen=True)
class DeviceOptions:
    """Where a user wants a model to run.

    Attributes:
        device: See `choose_device`.
        dtype: See `choose_device`.
        vram_gb: The memory of a GPU in GB; None for its free memory.
        ram_gb: The memory of the process in GB if the device is the CPU; None for the free memory.
    """

    device: str | torch.device = "auto"
    dtype: str = "auto"
    vram_gb: float | None = None
    ram_gb: float | None = None


def choose_device(
    device: str | torch.device, dtype: str, vae_dtype: str | None, *, small: bool
) -> DeviceChoice:
    """Choose a device and dtypes by their names.

    Args:
        device: "auto" (CUDA, else Apple's MPS, else the CPU), "cpu", "cuda", "cuda:N" or "mps". Or
            a device of torch; a model on torch's device "meta" has shapes, and no values.
        dtype: "auto", "bf16", "fp16", "fp32", "int8" or "fp8". "auto" chooses fp32 for a small
            model on the CPU, and on a CPU that only emulates bf16; otherwise bf16 if the device
            supports it, otherwise fp16. "int8" and "fp8" are for weights of the UNet; all else
            has the dtype of "auto".
        vae_dtype: "bf16", "fp16", "fp32" or None. None chooses `dtype`, but never fp16,
            because SDXL's VAE overflows to black pictures in fp16. It then chooses bf16 if the
            device supports it, otherwise fp32.
        small: Whether the model is a miniature.

    Raises:
        RequestError: The device or dtype is unknown, or the device does not have the dtype.
        DeviceError: This machine does not have the device.
    """
    where = device if isinstance(device, torch.device) else _find_device(device)
    eight_bits = next((own for own in get_args(EightBits) if own == dtype.lower()), None)
    if eight_bits == "fp8" and where.type == "mps":
        raise RequestError("dtype", "Apple's MPS has no fp8. Use int8.")
    if dtype == "auto" or eight_bits:
        wide = where.type == "cpu" and (small or emulates_bf16(where))
        what = torch.float32 if wide else _half_dtype(where)
    else:
        what = _parse_dtype("dtype", dtype, get_args(EightBits))
    if vae_dtype is not None:
        return DeviceChoice(where, what, _parse_dtype("vae_dtype", vae_dtype), eight_bits)
    wider = torch.bfloat16 if supports_bf16(where) else torch.float32
    return DeviceChoice(where, what, wider if what == torch.float16 else what, eight_bits)


def supports_bf16(device: torch.device) -> bool:
    """Return whether the device has native bfloat16 arithmetic; True for a CPU and "meta"."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type in ("cpu", "meta")


def list_devices() -> list[torch.device]:
    """List the devices of this machine, starting with the choice for "auto"."""
    devices = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append(torch.device("mps"))
    return [*devices, torch.device("cpu")]


def _half_dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if supports_bf16(device) else torch.float16


def _parse_dtype(field: str, name: str, others: tuple[str, ...] = ()) -> torch.dtype:
    if (found := DTYPES_BY_NAME.get(name.lower())) is None:
        known = ("auto", *DTYPES_BY_NAME, *others)
        raise RequestError(field, f"Unknown dtype {name!r}.{did_you_mean(name, known)}")
    return found


def _find_device(name: str) -> torch.device:
    devices = list_devices()
    if name == "auto":
        return devices[0]
    try:
        wanted = torch.device(name)
    except RuntimeError:
        wanted = None
    if wanted is None or wanted.type not in ("cpu", "cuda", "mps"):
        known = ("auto", "cpu", "cuda", "mps")
        raise RequestError("device", f"Unknown device {name!r}.{did_you_mean(name, known)}")
    for device in devices:
        if device.type == wanted.type and wanted.index in (None, device.index or 0):
            return device
    have = ", ".join(str(device) for device in devices)
    raise DeviceError(f"This machine has no device {name!r}; it has {have}. Use --device auto.")
