"""CLIP's tokenizer, which single-file checkpoints do not carry."""

import importlib.resources

from transformers import CLIPTokenizer

PAD_TOKENS = {"text_encoder": "<|endoftext|>", "text_encoder_2": "!"}
"""The padding token of each SDXL text encoder (from SDXL's tokenizer_config.json)."""


def load_clip_tokenizer(part: str) -> CLIPTokenizer:
    """Load the tokenizer of one of SDXL's text encoders from the vocabulary in this package.

    `overpaint/data/clip` holds OpenAI's vocabulary (49,408 tokens) under the MIT license.

    Args:
        part: "text_encoder" or "text_encoder_2".
    """
    folder = importlib.resources.files("overpaint") / "data" / "clip"
    return CLIPTokenizer(
        vocab=str(folder / "vocab.json"),
        merges=str(folder / "merges.txt"),
        pad_token=PAD_TOKENS[part],
        model_max_length=77,
    )
