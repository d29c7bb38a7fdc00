"""Patterns of tensor keys that identify the kind of a weight file, and keys in messages."""

from collections.abc import Iterable, Mapping

UNET = "model.diffusion_model."
VAE = "first_stage_model."
FIRST_ENCODER = "conditioner.embedders.0.transformer."
SECOND_ENCODER = "conditioner.embedders.1.model."
REFINER_ENCODER = "conditioner.embedders.0.model."

PART_PREFIXES: Mapping[str, tuple[str, ...]] = {
    "unet": (UNET,),
    "vae": (VAE,),
    "text_encoder": (FIRST_ENCODER,),
    "text_encoder_2": (SECOND_ENCODER, REFINER_ENCODER),
}
"""The prefixes of each part's keys in a checkpoint."""

LORA_KEYS = (
    r"lora_[A-Za-z0-9]|[._]lora\.|_lora\.|\.(hada|lokr)_|\.dora_scale|\.b?oft_|\.ia3_|vera_lambda"
    r"|\.[wb]_norm$|\.diff(_b)?$|\.on_input$|\.[ab][12]\.weight$|^bundle_emb\."
)
"""Matches at least one key of every LoRA."""

UNET_KEYS = r"^(unet\.)?(input_blocks\.0\.0\.weight$|down_blocks\.\d+\.resnets\.)"
"""Matches at least one key of every UNet alone, in the original or diffusers' layout."""

VAE_KEYS = r"^(first_stage_model\.|vae\.)?(encoder|decoder)\.conv_in\.weight$"
"""Matches at least one key of every VAE of Stable Diffusion, in either layout."""

TINY_DECODER_KEYS = r"^(decoder\.layers|3\.conv)\.0\."
"""Matches a key of every tiny decoder, in diffusers' layout or the original one."""

TEXT_ENCODER_KEYS = r"^(text_model\.encoder\.layers\.0|transformer\.resblocks\.0)\."
"""Matches at least one key of every CLIP text encoder alone, of transformers or OpenCLIP."""

MAX_KEY_CHARS = 200
"""Characters of a key in messages."""


def sample_keys(names: Iterable[str], most: int = 5) -> str:
    """Format the first few names and the number of further names for a message."""
    listed = list(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(name[:MAX_KEY_CHARS] for name in listed[:most]) + more
