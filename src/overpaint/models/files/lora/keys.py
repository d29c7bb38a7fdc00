"""Read the keys of LoRA files: the module and the role of a tensor.

Trainers name modules after diffusers' or the original layout, with dots or underscores, and with
separate prefixes. Modules are therefore compared by `flatten_name`.
"""

import re
from collections.abc import Iterable, Iterator

ROLES: dict[str, str] = {
    r"lora_B(\.[\w-]+)?\.bias|lora_up\.bias": "up_bias",
    r"lora_down(\.weight)?|lora_A(\.[\w-]+)?(\.weight)?|(lora|lora_layer|lora_linear_layer)"
    r"\.down\.weight": "down",
    r"lora_up(\.weight)?|lora_B(\.[\w-]+)?(\.weight)?|(lora|lora_layer|lora_linear_layer)"
    r"\.up\.weight": "up",
    r"lora_mid\.weight": "mid",
    r"alpha": "alpha",
    r"scalar": "scalar",
    r"dora_scale|lora_magnitude_vector(\.[\w-]+)?(\.weight)?": "magnitude",
    r"hada_w[12]_[ab]|hada_t[12]|lokr_w[12](_[ab])?|lokr_t2": "",
    r"oft_blocks|rescale|on_input|[wb]_norm|diff|diff_b": "",
    r"[ab][12]\.weight": "",
    r"weight": "factors",
}
"""Patterns of a key's end, and the role that they stand for; "" keeps the text.

The first match counts."""

_BUNDLED = re.compile(r"bundle_emb\.(?P<name>.+?)\.(?P<part>string_to_param\.\*|[^.]+)")

FOREIGN_ADAPTERS: tuple[tuple[str, str], ...] = (
    (r"\.boft_[RPs](\.|$)", "a BOFT adapter in PEFT's layout"),
    (r"\.oft_[Rr](\.|$)", "an OFT adapter in the layout of PEFT or OneTrainer"),
    (r"\.oft_diag$", "an OFT adapter in the first layout of LyCORIS"),
    (r"\.ia3_l(\.|$)", "an IA3 adapter in PEFT's layout"),
    (r"(^|\.)vera_(lambda|A|B)", "a VeRA adapter"),
    (r"\.(lora_E|ranknum)(\.|$)", "an AdaLoRA adapter"),
    (r"\.fourierft_spectrum", "a FourierFT adapter"),
    (r"\.waveft_spectrum", "a WaveFT adapter"),
    (r"\.hra_u(\.|$)", "an HRA adapter"),
    (r"\.hira_[AB]", "a HiRA adapter"),
    (r"vblora_", "a VB-LoRA adapter"),
    (r"randlora_", "a RandLoRA adapter"),
    (r"\.c3a_kernel", "a C3A adapter"),
    (r"\.(miss|bone)_block", "a MiSS adapter"),
    (r"\.shira_weight", "a SHiRA adapter"),
    (r"\.road_(theta|alpha)", "a RoAd adapter"),
    (r"\.delora_", "a DeLoRA adapter"),
    (r"\.glora_[AB]", "a GLoRA adapter in PEFT's layout"),
    (r"\.lora_embedding_[AB]", "a LoRA of an embedding table"),
    (r"\.bias_(indices|values|size)$", "a LoRA with LyCORIS' sparse bias"),
)
"""Patterns of keys of adapters that Overpaint cannot read, and the kinds of adapters."""

_ROLE = "|".join(f"(?:{pattern})" for pattern in ROLES)
_KEY = re.compile(rf"(?P<stem>.+?)\.(?P<role>{_ROLE})")


def split_lora_key(key: str) -> tuple[str, str] | None:
    """Return the module's name in the file and the role of a tensor, or None for other keys."""
    plain = key.replace(".processor.", ".")
    plain = re.sub(r"_lora\.(down|up)\.weight$", r".lora.\1.weight", plain)
    if not (match := _KEY.fullmatch(plain)):
        return None
    text = match["role"]
    role = next(role for pattern, role in ROLES.items() if re.fullmatch(pattern, text))
    stem = match["stem"].removeprefix("base_model.model.")
    return stem, role or text.removesuffix(".weight")


def strip_brackets(name: str) -> str:
    """Return the name of an embedding without the angle brackets of its token."""
    return name.removeprefix("<").removesuffix(">")


def split_bundled_key(key: str) -> tuple[str, str] | None:
    """Return the name and the encoder of an embedding in a LoRA file, or None for other keys."""
    match = _BUNDLED.fullmatch(key)
    return (match["name"], match["part"]) if match else None


def list_bundled_embeddings(keys: Iterable[str]) -> tuple[str, ...]:
    """Return the names of the embeddings in a LoRA file, each once."""
    split = filter(None, map(split_bundled_key, keys))
    return tuple(dict.fromkeys(name for name, _ in split))


def describe_foreign_adapter(keys: Iterable[str]) -> str | None:
    """Return what an adapter is that Overpaint cannot read, or None for other files."""
    listed = list(keys)
    for pattern, what in FOREIGN_ADAPTERS:
        if any(re.search(pattern, key) for key in listed):
            return what
    return None


def flatten_name(name: str) -> str:
    """Return a module's name with underscores in place of dots, as in kohya's files."""
    return name.replace(".", "_")


def list_unet_aliases(name: str, original: str) -> Iterator[str]:
    """Yield the flat names of a UNet module in files, from its name in both layouts."""
    for own in {flatten_name(name), flatten_name(original)}:
        spellings = (own, own.removesuffix("_0")) if own.endswith("to_out_0") else (own,)
        for spelling in spellings:
            for prefix in UNET_PREFIXES:
                yield prefix + spelling


def list_encoder_aliases(name: str, number: int) -> Iterator[str]:
    """Yield the flat names of a module of text encoder 1 or 2, from its name in transformers."""
    inner = name.removeprefix("text_model.")  # transformers 5 leaves it out
    named = inner if inner.startswith("text_projection") else f"text_model.{inner}"
    old = re.sub(r"self_attn\.(\w+?)_proj$", r"self_attn.to_\1", named)
    for own in {flatten_name(spelling) for spelling in (inner, named, old)}:
        for prefix in ENCODER_PREFIXES[number - 1]:
            yield prefix + own


UNET_PREFIXES = (
    "lora_unet_",
    "unet_",
    "",
    "diffusion_model_",
    "model_diffusion_model_",
    "lycoris_",
    "lycoris_unet_",
)
"""Prefixes of a UNet module: kohya, diffusers and OMI, PEFT, ComfyUI, LyCORIS."""

ENCODER_PREFIXES = (
    (
        "lora_te1_",
        "text_encoder_",
        "text_encoders_clip_l_transformer_",
        "clip_l_transformer_",
        "clip_l_",
        "lycoris_te1_",
        "",
    ),
    (
        "lora_te2_",
        "text_encoder_2_",
        "text_encoders_clip_g_transformer_",
        "clip_g_transformer_",
        "clip_g_",
        "lycoris_te2_",
        "",
    ),
)
"""Prefixes of a module of each text encoder; PEFT's files have none."""
