"""A loaded checkpoint on a device."""

import copy
import threading
from collections.abc import Callable, Generator, Hashable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from overpaint.models.cache import Cache
from overpaint.models.latent_preview import LatentPreview
from overpaint.models.noise_config import NoiseConfig
from overpaint.nn.device_memory import DeviceMemory
from overpaint.nn.eight_bits import list_weight_readers
from overpaint.nn.kernels import EightBits
from overpaint.nn.packed import unpacked_state

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.autoencoders.vae import DecoderTiny
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    from overpaint.models.family import Family

T = TypeVar("T")


@dataclass(frozen=True)
class TextEncoder:
    """A CLIP text encoder with its tokenizer."""

    tokenizer: "CLIPTokenizer"
    model: "CLIPTextModel | CLIPTextModelWithProjection"


@dataclass(frozen=True)
class PartFile:
    """The file of a part that is not in the checkpoint.

    Attributes:
        name: The name of the file.
        sha256: The digest of the file, or of a folder's weight files.
    """

    name: str
    sha256: str


@dataclass(frozen=True)
class SeparateVae:
    """A VAE that requests can use in place of the model's own.

    Attributes:
        module: The VAE, on the model's device.
        file: Its file.
        lock: A thread must hold it to run the VAE.
    """

    module: "AutoencoderKL"
    file: PartFile
    lock: threading.RLock = field(default_factory=threading.RLock, repr=False)


@dataclass(frozen=True)
class TinyDecoder:
    """A tiny decoder on a model's device: see `overpaint.models.tiny_decoder`.

    Attributes:
        name: The name of its file.
        sha256: The digest of its file, or of a folder's weight files.
        module: Maps latents in the UNet's scale to pixels in -1..1.
    """

    name: str
    sha256: str
    module: "DecoderTiny"

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """Return the pixels [1, 3, 8 h, 8 w] of a latent [1, C, h, w] in fp32, within -1..1."""
        weight = next(self.module.parameters())
        return self.module(latent.to(weight.device, weight.dtype)).float().clamp(-1, 1)


@dataclass
class Model:
    """A checkpoint on a device. All modules are in evaluation mode, without gradients.

    Attributes:
        name: The name that the user gave.
        family: The family of the checkpoint.
        sha256: The digest of the single file, or of a folder's weight files in name order.
        unet: The UNet.
        vae: The VAE. Its dtype can be wider than `dtype`.
        text_encoders: SDXL's two text encoders, or the refiner's only one (SDXL's second).
        noise: The noise schedule of training.
        native_size: The side in pixels of the training pictures.
        device: The device of all modules.
        dtype: The dtype of the UNet and the text encoders.
        eight_bits: The number format of the UNet's weights with 8 bits, if it has such.
        zero_empty_negative: Whether zeros replace the encoding of an empty negative prompt
            (`force_zeros_for_empty_prompt` in the model index).
        preview: The linear map for previews, if any.
        tiny_decoder: The tiny decoder for previews and for requests, once it is loaded.
        notices: Messages from loading.
        metadata: The metadata in the header of a single file.
        parts: The files of parts ("unet", "vae", "text_encoder", "text_encoder_2") that replace
            those of the checkpoint; `sha256` does not count them.
        vae_lock: A thread must hold it to run the VAE; others can run the UNet at that time.
        text_lock: A thread must hold it to run the text encoders, since LoRAs and embeddings change
            them for a prompt.
        device_memory: Keeps the weights of the modules on the device within a number of bytes. None
            if all of them stay there.
        cache: The cache for `remember`. Several models can share one cache.
    """

    name: str
    family: "Family"
    sha256: str
    unet: "UNet2DConditionModel"
    vae: "AutoencoderKL"
    text_encoders: tuple[TextEncoder, ...]
    noise: NoiseConfig
    native_size: int
    device: torch.device
    dtype: torch.dtype
    eight_bits: EightBits | None = None
    zero_empty_negative: bool = False
    preview: LatentPreview | None = None
    tiny_decoder: TinyDecoder | None = None
    notices: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    parts: Mapping[str, PartFile] = field(default_factory=dict[str, PartFile])
    vae_lock: threading.RLock = field(default_factory=threading.RLock, repr=False)
    text_lock: threading.RLock = field(default_factory=threading.RLock, repr=False)
    device_memory: DeviceMemory | None = None
    # `dataclasses.replace` makes a copy with an empty cache.
    cache: Cache = field(default_factory=Cache, init=False, repr=False)
    _own: dict[str, Any] = field(default_factory=dict[str, Any], init=False, repr=False)
    _making: threading.RLock = field(default_factory=threading.RLock, init=False, repr=False)

    def remember(self, kind: str, key: Hashable, make: Callable[[], T]) -> T:
        """Return the cached result for a key, or call `make` and cache its result.

        Args:
            kind: The kind of result. Each kind has separate keys.
            key: All inputs of the result besides the model, by content.
            make: A function that computes the result.
        """
        parts = tuple(sorted((part, own.sha256) for part, own in self.parts.items()))
        mine = (self.name, self.sha256, parts, self.device, self.dtype)
        return self.cache.remember(kind, (mine, key), make)

    def make_once(self, what: str, make: Callable[[], T]) -> T:
        """Call `make` at the first call for a name, and return that result at every call.

        The result stays in memory as long as the model.
        """
        with self._making:
            if what not in self._own:
                self._own[what] = make()
            return self._own[what]

    def list_unet_weights(self) -> dict[str, Callable[[], torch.Tensor]]:
        """Return functions that return the weights of the UNet in plain layout, by name."""
        if self.device_memory:
            found = self.device_memory.list_readers(self.unet)
        else:
            found = {name: own.detach for name, own in unpacked_state(self.unet).items()}
        return found | list_weight_readers(self.unet)

    @contextmanager
    def vae_in_dtype(self, dtype: torch.dtype) -> Generator[None]:
        """Let the VAE compute in another dtype within the `with` block."""
        before: torch.dtype = self.vae.dtype
        self._cast_vae(dtype)
        try:
            yield
        finally:
            self._cast_vae(before)

    def _cast_vae(self, dtype: torch.dtype) -> None:
        if self.device_memory:
            # The weights change there, or the dtype in which they are read.
            self.device_memory.send_home(self.vae)
        torch.nn.Module.to(self.vae, dtype)

    @property
    def dtype_name(self) -> str:
        """The name of the dtype, or of the number format of weights with 8 bits."""
        return self.eight_bits or str(self.dtype).removeprefix("torch.")

    @property
    def separate_vae_name(self) -> str | None:
        """The name of the VAE that replaces the checkpoint's, if any."""
        return self.parts["vae"].name if "vae" in self.parts else None

    def with_vae(self, vae: SeparateVae) -> "Model":
        """Return this model with another VAE. All else is shared, also the cache."""
        other = copy.copy(self)
        other.vae, other.vae_lock = vae.module, vae.lock
        other.parts = {**self.parts, "vae": vae.file}
        return other

    @property
    def encoders_by_part(self) -> dict[str, TextEncoder]:
        """The text encoders by part name, "text_encoder" and "text_encoder_2"."""
        names = ("text_encoder", "text_encoder_2")[-len(self.text_encoders) :]
        return dict(zip(names, self.text_encoders, strict=True))

    @property
    def guidance_width(self) -> int:
        """The width of the embedded guidance scale that the UNet takes, or 0 without one.

        Such a UNet (LCM) needs no unconditional row.
        """
        return int(self.unet.config.get("time_cond_proj_dim") or 0)

    @property
    def vae_factor(self) -> int:
        """Pixels per latent cell along each axis."""
        return 2 ** (len(self.vae.config["block_out_channels"]) - 1)
