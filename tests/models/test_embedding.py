"""Tests of textual inversion: file layouts, use in prompts, and the pooled output."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from overpaint.diffusion.prompt import encode_prompt, encode_prompt_pair
from overpaint.errors import CheckpointError, ModelNotFoundError, RequestError
from overpaint.models.addons import Addons
from overpaint.models.embedding import Embedding, load_embedding
from overpaint.models.library.library import Library
from overpaint.models.library.sources import list_sources
from overpaint.models.lora import load_lora
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


@pytest.mark.parametrize("number", [0, 1])
def test_embedding_of_one_encoder_is_ignored_by_the_other(number: int, tmp_path: Path) -> None:
    model = tiny_model()
    part = ("text_encoder", "text_encoder_2")[number]
    save_file({"<toy>": words(model, "red", "house")[number]}, tmp_path / "e.safetensors")
    toy = load_embedding(tmp_path / "e.safetensors", "toy", model)
    assert set(toy.vectors) == {part}
    assert toy.ignored_by == (("text_encoder_2", "text_encoder")[number],)
    tagged = encode_prompt(model, "a <embedding:toy> on green", embeddings=(toy,))
    prompts = ["a on green", "a on green"]
    prompts[number] = "a red house on green"
    torch.testing.assert_close(tagged.tokens, encode_prompt(tiny_model(), *prompts).tokens)
    assert any("no vectors for" in notice for notice in Addons(embeddings=(toy,)).notices)


def test_pair_of_diffusers_is_added_as_one_embedding(tmp_path: Path) -> None:
    store = Library(tmp_path / "home")
    paths: list[Path] = []
    for stem, width in zip(("learned_embeds", "learned_embeds_2"), WIDTHS, strict=True):
        paths.append(tmp_path / f"{stem}-steps-500.safetensors")
        save_file({"<toyword>": torch.randn(1, width)}, paths[-1])
    assert list_sources(paths) == list_sources([tmp_path]) == paths[:1]
    entry = store.add(paths[1])
    assert (entry.name, entry.kind, entry.keys) == ("toyword", "embedding", 2)
    found = load_embedding(entry.path, "toyword", tiny_model())
    assert torch.equal(found.vectors["text_encoder"], load_file(paths[0])["<toyword>"])
    assert torch.equal(found.vectors["text_encoder_2"], load_file(paths[1])["<toyword>"])


def test_pti_file_of_cog_is_added(tmp_path: Path) -> None:
    path = write(tmp_path / "embeddings.pti", 2, NAMES["pti"])
    entry = Library(tmp_path / "home").add(path)
    assert (entry.name, entry.kind) == ("embeddings", "embedding")
    assert load_embedding(entry.path, "embeddings", tiny_model()).length == 2


def test_embedding_in_a_lora_is_found_by_its_name(tmp_path: Path) -> None:
    store = Library(tmp_path / "home")
    for number, name in enumerate(("ink", "pen")):
        state = {
            f"bundle_emb.<toy>.clip_{x}": torch.full((2, width), float(number))
            for x, width in zip("lg", WIDTHS, strict=True)
        }
        stem = "lora_unet_mid_block_attentions_0_proj_in"
        shape = tiny_model().unet.state_dict()["mid_block.attentions.0.proj_in.weight"].shape
        state[f"{stem}.diff"] = torch.zeros(shape)
        save_file(state, tmp_path / f"{name}.safetensors")
        assert store.add(tmp_path / f"{name}.safetensors").embeddings == ("<toy>",)
        model = tiny_model()
        load_lora(tmp_path / f"{name}.safetensors", model)  # the bundle is no unused key
        loader = Painter(model, store).addon_loader
        asked = Request(prompt=f"a <embedding:toy> <lora:{name}:0.5>")
        [toy] = loader.load(asked).embeddings
        assert (toy.vectors["text_encoder"] == number).all()
    with pytest.raises(ModelNotFoundError, match="'toy' fits several files: ink, pen"):
        store.find("toy", "embedding")


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
    with pytest.raises(ModelNotFoundError, match="Unknown embedding 'inc'"):
        painter.run(Request(prompt="a <embedding:inc>"))


def test_unknown_embedding_is_rejected() -> None:
    with pytest.raises(RequestError, match="prompt: Embedding 'ink' is not loaded"):
        encode_prompt(tiny_model(), "a <embedding:ink>")


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"emb_params": torch.zeros(2, 768)}, r"for Stable Diffusion 1\.5 or 2"),
        ({"<toy>": torch.zeros(2, 9)}, "an embedding for another"),
        ({"bundle_emb.x.clip_l": torch.zeros(2, WIDTHS[0]), "a": torch.zeros(1)}, "not an embedd"),
        (
            {"clip_l": torch.zeros(2, WIDTHS[0]), "clip_l_out": torch.zeros(2, WIDTHS[0])},
            "changes the output of a text encoder",
        ),
        ({"<toy>": torch.tensor(1.0)}, "has 0 axes"),
        ({"clip_l": torch.tensor(1.0), "clip_g": torch.zeros(1, WIDTHS[1])}, "has 0 axes"),
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
