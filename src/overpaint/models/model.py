"""The model: what a checkpoint becomes once it is on a device."""

import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from overpaint.models.cache import Cache
from overpaint.models.latent_preview import LatentPreview
from overpaint.models.noise_config import NoiseConfig

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    from overpaint.models.family import Family

T = TypeVar("T")


@dataclass(frozen=True)
class TextEncoder:
    """A CLIP text encoder with its tokenizer."""

    tokenizer: "CLIPTokenizer"
    model: "CLIPTextModel | CLIPTextModelWithProjection"


@dataclass
class Model:
    """A checkpoint on a device.

    Attributes:
        name: as the user gave it.
        family: its row in the family table.
        sha256: of the weights: of the single file, or of a folder's weight files in name order.
        unet: in eval mode, without gradients, as are all modules here.
        vae: its dtype may be wider than the UNet's; see `vae_dtype`.
        text_encoders: the two of SDXL, or the refiner's one (the second).
        noise: how it was trained.
        native_size: the side in pixels of the square it was trained on.
        device: where the modules are.
        dtype: of the UNet and the text encoders.
        zero_empty_negative: an empty negative prompt means zeros instead of its encoding, as
            SDXL base was trained (`force_zeros_for_empty_prompt` in its model index).
        preview: the linear map for previews, when the family has one.
        preview_decoder: a small decoder for previews, when one was loaded.
        notices: what loading has to say.
        vae_lock: held by whoever runs the VAE, which one thread may while others run the UNet.
        cache: results that may be forgotten; see `remember`. Models may share one.
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
    zero_empty_negative: bool = False
    preview: LatentPreview | None = None
    preview_decoder: "AutoencoderTiny | None" = None
    notices: tuple[str, ...] = ()
    vae_lock: threading.RLock = field(default_factory=threading.RLock, repr=False)
    # A changed copy of a model begins anew.
    cache: Cache = field(default_factory=Cache, init=False, repr=False)
    _own: dict[str, Any] = field(default_factory=dict[str, Any], init=False, repr=False)
    _making: threading.RLock = field(default_factory=threading.RLock, init=False, repr=False)

    def remember(self, kind: str, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` returned for this key, made anew if it was forgotten.

        Args:
            kind: of result, each with keys of its own.
            key: all that the result depends on besides the model, by content.
            make: makes it.
        """
        mine = (self.name, self.sha256, self.device, self.dtype)
        return self.cache.remember(kind, (mine, key), make)

    def make_once(self, what: str, make: Callable[[], T]) -> T:
        """What `make` returned when this was first asked for; it stays as long as the model."""
        with self._making:
            if what not in self._own:
                self._own[what] = make()
            return self._own[what]

    @property
    def encoders_by_part(self) -> dict[str, TextEncoder]:
        """The text encoders by the names of their parts, "text_encoder" and "text_encoder_2"."""
        names = ("text_encoder", "text_encoder_2")[-len(self.text_encoders) :]
        return dict(zip(names, self.text_encoders, strict=True))

    @property
    def vae_factor(self) -> int:
        """Pixels per latent cell and side."""
        return 2 ** (len(self.vae.config["block_out_channels"]) - 1)
