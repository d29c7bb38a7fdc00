"""Tests of textual inversion: file layouts, use in prompts, and the pooled output."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from overpaint.diffusion.prompt import encode_prompt, encode_prompt_pair
from overpaint.errors import CheckpointError, ModelNotFoundError, RequestError
from overpaint.models.embedding import Embedding, load_embedding
from overpaint.models.library.library import Library
from overpaint.models.model import Model
from overpaint.painter import Painter
from overpaint.request import Request
from tests.tiny import WIDTHS, tiny_model, tiny_refiner

NAMES = {"kohya": ("clip_l", "clip_g"), "pti": ("text_encoders_0", "text_encoders_1")}


def write(path: Path, count: int = 2, names: tuple[str, str] = NAMES["kohya"]) -> Path:
    draw = torch.Generator().manual_seed(count)
    vectors = [torch.randn(count, width, generator=draw) for width in WIDTHS]
    save_file(dict(zip(names, vectors, strict=True)), path)
    return path


def words(model: Model, *tokens: str) -> list[Tensor]:
    """Return the vectors of tokens in the model's vocabulary, for each text encoder."""
    found: list[Tensor] = []
    for encoder in model.text_encoders:
        ids: Any = encoder.tokenizer.convert_tokens_to_ids([f"{t}</w>" for t in tokens])
        table: Any = encoder.model.get_input_embeddings()
        found.append(table.weight[ids].clone())
    return found


@pytest.mark.parametrize("layout", sorted(NAMES))
def test_embedding_in_every_layout_is_read(layout: str, tmp_path: Path) -> None:
    path = write(tmp_path / "e.safetensors", 3, NAMES[layout])
    found = load_embedding(path, "ink", tiny_model())
    assert found.length == 3
    assert found.vectors["text_encoder"].shape == (3, WIDTHS[0])
    assert found.vectors["text_encoder_2"].shape == (3, WIDTHS[1])


@pytest.mark.parametrize(
    "prompt", ["a {} on green", "{}", "(a {}:1.3), a cat", "a cat " * 40 + "{}"]
)
def test_embedding_of_words_encodes_as_those_words(prompt: str) -> None:
    """Compare an embedding of a word's vectors with the word, including the pooled output."""
    model = tiny_model()
    vectors = words(model, "red", "house")
    names = ("text_encoder", "text_encoder_2")
    ink = Embedding("ink", "", dict(zip(names, vectors, strict=True)))
    tagged = encode_prompt(model, prompt.format("<embedding:ink>"), embeddings=(ink,))
    plain = encode_prompt(tiny_model(), prompt.format("red house"))
    torch.testing.assert_close(tagged.tokens, plain.tokens)
    torch.testing.assert_close(tagged.pooled, plain.pooled)
    again = encode_prompt(model, prompt.format("red house"))
    assert torch.equal(again.tokens, plain.tokens)  # the encoder is itself again


def test_embedding_works_in_negative_prompt_and_refiner(tmp_path: Path) -> None:
    path = write(tmp_path / "e.safetensors")
    for model in (tiny_model(), tiny_refiner()):
        ink = load_embedding(path, "ink", model)
        asked = Request(prompt="a cat", negative_prompt="<embedding:ink>, a dog")
        _, negative = encode_prompt_pair(model, asked, embeddings=(ink,))
        _, plain = encode_prompt_pair(model, Request(prompt="a cat", negative_prompt=", a dog"))
        assert negative is not None
        assert plain is not None
        assert (negative.tokens - plain.tokens).abs().max() > 1e-2
        assert (negative.pooled - plain.pooled).abs().max() > 1e-3


def test_embedding_is_found_by_name_in_painter(tmp_path: Path) -> None:
    store = Library(tmp_path)
    store.add(write(tmp_path / "e.safetensors"), "ink")
    painter = Painter(tiny_model(), store)
    asked = Request(prompt="a <embedding:ink>", seed=1, num_inference_steps=2)
    tagged = painter.run(asked)
    plain = painter.run(Request(prompt="a", seed=1, num_inference_steps=2))
    assert tagged.images[0].tobytes() != plain.images[0].tobytes()
    with pytest.raises(ModelNotFoundError, match="unknown embedding 'inc'"):
        painter.run(Request(prompt="a <embedding:inc>"))


def test_unknown_embedding_is_rejected() -> None:
    with pytest.raises(RequestError, match="prompt: embedding 'ink' is not loaded"):
        encode_prompt(tiny_model(), "a <embedding:ink>")


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"emb_params": torch.zeros(2, 768)}, r"for Stable Diffusion 1\.5 or 2"),
        ({"clip_l": torch.zeros(2, WIDTHS[0])}, "no vectors for text_encoder_2"),
        ({"clip_l": torch.zeros(2, 8), "clip_g": torch.zeros(2, 8)}, "an embedding for another"),
        (
            {"clip_l": torch.zeros(2, WIDTHS[0]), "clip_g": torch.zeros(3, WIDTHS[1])},
            "the same number for each",
        ),
        (
            {"clip_l": torch.zeros(2, WIDTHS[0]) * torch.nan, "clip_g": torch.zeros(2, WIDTHS[1])},
            "not finite",
        ),
    ],
)
def test_file_that_is_not_an_embedding_is_rejected(
    state: dict[str, Tensor], message: str, tmp_path: Path
) -> None:
    save_file(state, tmp_path / "e.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load_embedding(tmp_path / "e.safetensors", "ink", tiny_model())
