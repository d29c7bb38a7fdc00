"""CLIP's vocabulary, which single-file checkpoints do not carry."""

import gzip
import json
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import CLIPTokenizer

from overpaint.errors import CheckpointError, ModelNotFoundError

BPE_FILE = "bpe_simple_vocab_16e6.txt.gz"
PACKAGES = ("open_clip", "clip")
"""Python packages that carry OpenAI's BPE file."""

REPOSITORIES = (
    ("openai/clip-vit-large-patch14", ""),
    ("stabilityai/stable-diffusion-xl-base-1.0", "tokenizer/"),
)
"""Hub repositories that carry vocab.json and merges.txt, and the folder in them."""

GET_IT = "pip install --no-deps open_clip_torch"

PAD_TOKENS = {"text_encoder": "<|endoftext|>", "text_encoder_2": "!"}
"""What SDXL's two tokenizers pad with (their tokenizer_config.json)."""

TOKENS = 49408
"""CLIP's vocabulary: 256 bytes, the same ending a word, 48,894 merges, start and end."""


@dataclass(frozen=True)
class Vocabulary:
    """A byte-pair encoding.

    Attributes:
        ids: token to id.
        merges: pairs in order of precedence.
    """

    ids: dict[str, int]
    merges: list[tuple[str, str]]

    def tokenizer(self, part: str) -> CLIPTokenizer:
        """The tokenizer of a text encoder of SDXL, "text_encoder" or "text_encoder_2"."""
        arguments: dict[str, Any] = {
            "vocab": self.ids,
            "merges": self.merges,
            "pad_token": PAD_TOKENS[part],
            "model_max_length": 77,
        }
        return CLIPTokenizer(**arguments)


def find_vocabulary(checkpoint: Path) -> Vocabulary:
    """CLIP's vocabulary for a single-file checkpoint.

    Taken from the first that has it: the file's own folder (vocab.json and merges.txt there or in
    `tokenizer/`, or the BPE file), the hub's cache, an installed package that carries it, the hub.

    Raises:
        ModelNotFoundError: nowhere; names the one command that gets it.
        CheckpointError: what was found is not CLIP's.
    """
    beside = checkpoint.parent
    for folder in (beside / "tokenizer", beside):
        if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            return read_vocabulary(folder)
    if (beside / BPE_FILE).is_file():
        return read_bpe(beside / BPE_FILE)
    if folder := _hub_folder(local=True):
        return read_vocabulary(folder)
    if packaged := _packaged():
        return read_bpe(packaged)
    if folder := _hub_folder(local=False):
        return read_vocabulary(folder)
    raise ModelNotFoundError(
        f"the CLIP vocabulary, which a single file does not carry, was found neither beside "
        f"{checkpoint} (vocab.json and merges.txt) nor in the hub's cache nor in a package, and "
        f"the hub cannot be reached. This gets it: {GET_IT}"
    )


def read_vocabulary(folder: Path) -> Vocabulary:
    """Read `vocab.json` and `merges.txt`.

    Raises:
        CheckpointError: one of them is not what it should be.
    """
    try:
        ids: dict[str, int] = json.loads((folder / "vocab.json").read_text("utf-8"))
        lines = (folder / "merges.txt").read_text("utf-8").splitlines()
        return _checked(Vocabulary(ids, _pairs(line for line in lines if line)), folder)
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder}: vocab.json and merges.txt: {error}") from error


def read_bpe(path: Path) -> Vocabulary:
    """Read OpenAI's BPE file: the merges, from which the tokens follow in CLIP's order.

    The order is that of github.com/openai/CLIP, clip/simple_tokenizer.py: the printable letters
    of the 256 bytes, the same ending a word, the first 48,894 merges, start, end.

    Raises:
        CheckpointError: the file is not that.
    """
    try:
        lines = gzip.decompress(path.read_bytes()).decode("utf-8").splitlines()
        merges = _pairs(lines[: 1 + TOKENS - 2 * 256 - 2])
    except (ValueError, EOFError, OSError) as error:
        raise CheckpointError(f"{path} is not CLIP's BPE file: {error}") from error
    letters = byte_letters()
    tokens = [*letters, *(letter + "</w>" for letter in letters), *map("".join, merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    ids = {token: number for number, token in enumerate(tokens)}
    return _checked(Vocabulary(ids, merges), path)


def byte_letters() -> list[str]:
    """The printable letter that stands for each byte, printable bytes first.

    Bytes that print stand for themselves; the others, in order, for U+0100 onwards.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(byte) for byte in printable] + [chr(0x100 + k) for k in range(256 - len(printable))]


def _pairs(lines: Iterable[str]) -> list[tuple[str, str]]:
    """Merges from lines of two tokens, after a first line that tells the version."""
    merges: list[tuple[str, str]] = []
    for line in list(lines)[1:]:
        first, second = line.split()
        merges.append((first, second))
    return merges


def _checked(vocabulary: Vocabulary, source: Path) -> Vocabulary:
    for token, number in (("!", 0), ("<|startoftext|>", TOKENS - 2), ("<|endoftext|>", TOKENS - 1)):
        if vocabulary.ids.get(token) != number:
            raise CheckpointError(
                f"{source} is not CLIP's vocabulary: {token!r} is "
                f"{vocabulary.ids.get(token)}, should be {number}"
            )
    return vocabulary


def _packaged() -> Path | None:
    """The BPE file of an installed package, found without importing it."""
    for package in PACKAGES:
        spec = find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            if (path := Path(folder) / BPE_FILE).is_file():
                return path
    return None


def _hub_folder(*, local: bool) -> Path | None:
    """A folder of the hub's cache with both files, downloaded into it unless `local`."""
    from huggingface_hub import snapshot_download

    for repository, inside in REPOSITORIES:
        wanted = [f"{inside}vocab.json", f"{inside}merges.txt"]
        try:
            snapshot = snapshot_download(repository, allow_patterns=wanted, local_files_only=local)
        except OSError:
            continue
        if all((Path(snapshot) / name).is_file() for name in wanted):
            return Path(snapshot) / inside
    return None
