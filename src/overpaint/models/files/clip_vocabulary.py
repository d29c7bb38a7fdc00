"""CLIP tokenizers: from a folder, or from the vocabulary in this package.

Single-file checkpoints need the packaged vocabulary, because they do not contain a tokenizer.
"""

import importlib.resources
from pathlib import Path

from transformers import CLIPTokenizer

from overpaint.errors import CheckpointError

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


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """Load the CLIP tokenizer of a folder.

    Raises:
        CheckpointError: The tokenizer is missing or damaged.
    """
    have = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set[str]()
    if "tokenizer.json" not in have and not have >= {"vocab.json", "merges.txt"}:
        raise CheckpointError(f"{folder} has neither vocab.json and merges.txt nor tokenizer.json")
    try:
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises plain exceptions
        raise CheckpointError(f"{folder}: {error}") from error
