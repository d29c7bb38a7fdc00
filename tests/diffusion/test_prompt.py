"""Prompts: A1111's syntax and chunks, the encoders' outputs, the effect of weights."""

from dataclasses import replace
from functools import partial
from itertools import chain, pairwise
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import CLIPTokenizer

from overpaint.diffusion.prompt import (
    CHUNK_TOKENS,
    Chunk,
    EncodedPrompt,
    encode_prompt,
    encode_prompt_pair,
    split_into_chunks,
)
from overpaint.diffusion.prompt_syntax import Segment, parse_prompt
from overpaint.errors import RequestError
from overpaint.models.adapters import Adapter
from overpaint.models.lora import LoraWeights
from overpaint.models.model import Model, TextEncoder
from overpaint.request import Request
from tests.tiny import POOLED, WIDTHS, tiny_model, tiny_pipeline, tiny_tokenizer
from tests.work import count_lines

TOKENIZER = tiny_tokenizer(pad_token="!")
BOS, EOS, PAD = (cast(int, getattr(TOKENIZER, f"{n}_token_id")) for n in ("bos", "eos", "pad"))


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model()


def request(**fields: Any) -> Request:
    return Request.model_validate(fields)


def pairs(text: str) -> list[list[tuple[str, float]]]:
    return [[(s.text, s.weight) for s in passage] for passage in parse_prompt(text)]


# Syntax.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("normal text", [("normal text", 1.0)]),
        ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
        ("((a))", [("a", 1.21)]),
        ("[a]", [("a", 1 / 1.1)]),
        ("[[a]]", [("a", 1 / 1.21)]),
        ("(a:1.5)", [("a", 1.5)]),
        ("(a: 1.5 )", [("a", 1.5)]),
        ("(a:.5)", [("a", 0.5)]),
        ("(a:2.)", [("a", 2.0)]),
        ("(a:0)", [("a", 0.0)]),
        ("(a:-1)", [("a", -1.0)]),
        ("(a:+2)", [("a", 2.0)]),
        ("((a:2):3)", [("a", 6.0)]),
        ("(a (b:2) c:3)", [("a ", 3.0), ("b", 6.0), (" c", 3.0)]),
        # examples of A1111's documentation
        ("(unbalanced", [("unbalanced", 1.1)]),
        (r"\(literal\]", [("(literal]", 1.0)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [
                ("a ", 1.0),
                ("house", 1.3 * 1.1**2),
                (" ", 1.1),
                ("on", 1.0),
                (" a ", 1.1),
                ("hill", 0.55),
                (", sun, ", 1.1),
                ("sky", 1.1**4),
                (".", 1.1),
            ],
        ),
        # unclosed brackets act to the end, unmatched closing ones are text, the two kinds can cross
        ("a ((b (c)", [("a ", 1.0), ("b ", 1.21), ("c", 1.331)]),
        ("a [b", [("a ", 1.0), ("b", 1 / 1.1)]),
        ("a) b] c:1.2) d", [("a) b] c:1.2) d", 1.0)]),
        ("[a:1.2]", [("a:1.2", 1 / 1.1)]),
        ("([a)b]", [("a", 1.0), ("b", 1 / 1.1)]),
        # a colon without a number after it is text
        ("(a:b)", [("a:b", 1.1)]),
        ("(a:1.2.3)", [("a:1.2.3", 1.1)]),
        ("(smile :.)", [("smile :.", 1.1)]),
        ("a:1.2", [("a:1.2", 1.0)]),
        # escaped characters
        (r"\\(a)", [("\\", 1.0), ("a", 1.1)]),
        (r"\[a\]", [("[a]", 1.0)]),
        (r"(a\):2)", [("a)", 2.0)]),
        (r"a\b", [("ab", 1.0)]),
        ("a\\", [("a", 1.0)]),
        ("", []),
        ("()[]", []),
    ],
)
def test_prompt_weights_match_a1111(text: str, expected: list[tuple[str, float]]) -> None:
    (found,) = pairs(text)
    assert [t for t, _ in found] == [t for t, _ in expected]
    assert [w for _, w in found] == pytest.approx([w for _, w in expected])


def test_opposite_brackets_cancel_exactly() -> None:
    assert pairs("([a])") == [[("a", 1.0)]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a BREAK b", [[("a", 1.0)], [("b", 1.0)]]),
        ("a\nBREAK\nb", [[("a", 1.0)], [("b", 1.0)]]),
        ("BREAK a", [[], [("a", 1.0)]]),
        ("a BREAK", [[("a", 1.0)], []]),
        ("(a BREAK b:2)", [[("a", 2.0)], [("b", 2.0)]]),
        ("a BREAKING b, break", [[("a BREAKING b, break", 1.0)]]),
    ],
)
def test_break_starts_a_new_passage(text: str, expected: list[list[tuple[str, float]]]) -> None:
    assert pairs(text) == expected


@pytest.mark.parametrize(
    "text", ["(a:11)", "(a:-10.5)", "(a:1e9)(b:99)", "(" * 30 + "a", "(a:" + "9" * 400 + ")"]
)
def test_weight_out_of_range_is_rejected(text: str) -> None:
    with pytest.raises(RequestError, match=r"^negative_prompt: .*allowed is -10 to 10") as caught:
        parse_prompt(text, "negative_prompt")
    assert caught.value.field == "negative_prompt"


def test_hundred_thousand_brackets_parse_or_are_rejected() -> None:
    deep = 50_000
    assert pairs("([" * deep + "a" + "])" * deep) == [[("a", 1.0)]]
    assert len(parse_prompt("(a[b" * deep)[0]) == 2 * deep
    with pytest.raises(RequestError, match="is inf;"):
        parse_prompt("(" * 2 * deep + "a")


def test_brackets_without_text_give_no_segment() -> None:
    assert pairs("(" * 10_000) == [[]]
    assert pairs("[" * 10_000 + "a") == [[("a", 0.0)]]


@pytest.mark.parametrize("part", ["(a[b", "([a])", "(a:1.1)", "[a", " ", ": ", "1", "a)", "\\"])
def test_parse_time_grows_linearly_with_the_length(part: str) -> None:
    short, long = (count_lines(partial(parse_prompt, part * size)) for size in (200, 400))
    assert long <= 2.1 * short


def test_long_runs_do_not_make_the_pattern_backtrack() -> None:
    for text in (" " * 100_000 + "a", "(a:" + "1" * 99_000, ":" + " " * 99_000 + "1"):
        assert "".join(s.text for s in parse_prompt(text)[0]) == text.removeprefix("(")


@given(st.text(st.characters() | st.sampled_from("()[]\\:.0129 ,BREAK"), max_size=200))
def test_any_text_is_parsed_or_rejected(text: str) -> None:
    try:
        passages = parse_prompt(text)
    except RequestError:
        return
    for passage in passages:
        assert all(s.text and abs(s.weight) <= 10 for s in passage)
        assert all(a.weight != b.weight for a, b in pairwise(passage))


@given(st.text(st.characters(exclude_characters="()[]\\"), max_size=200))
def test_plain_text_is_returned_unchanged(text: str) -> None:
    text = text.replace("BREAK", "")
    assert "".join(s.text for s in parse_prompt(text)[0]) == text


LAYERS = st.sampled_from(["round", "square"]) | st.integers(50, 130).map(lambda n: n / 100)


@given(st.lists(LAYERS, max_size=8))
def test_nested_weights_multiply(layers: list[str | float]) -> None:
    text, weight = "a", 1.0
    for layer in layers:
        if layer == "round":
            text, weight = f"({text})", weight * 1.1
        elif layer == "square":
            text, weight = f"[{text}]", weight / 1.1
        else:
            text, weight = f"({text}:{layer})", weight * float(layer)
    ((segment,),) = parse_prompt(text)
    assert segment.text == "a"
    assert segment.weight == pytest.approx(weight)


# Chunks.


def cut(text: str, tokenizer: CLIPTokenizer = TOKENIZER) -> list[Chunk]:
    found = split_into_chunks(parse_prompt(text), tokenizer)
    assert all(len(c.tokens) == len(c.weights) == 77 for c in found)
    return found


def words(chunk: Chunk) -> list[str]:
    """Return the text of a chunk, without begin, end and padding."""
    inner = chunk.tokens[1 : chunk.tokens.index(EOS)]
    return [t.removesuffix("</w>") for t in TOKENIZER.convert_ids_to_tokens(list(inner))]


def test_short_prompt_is_padded_like_its_tokenizer_pads() -> None:
    for tokenizer in (TOKENIZER, tiny_tokenizer()):
        (chunk,) = cut("a red house", tokenizer)
        reference = tokenizer("a red house", padding="max_length")["input_ids"]
        assert list(chunk.tokens) == reference
        assert chunk.weights == (1.0,) * 77
    assert cut("a")[0].tokens[3:] == (PAD,) * 74 == (0,) * 74


def test_empty_prompt_gives_one_empty_chunk() -> None:
    (chunk,) = cut("")
    assert chunk.tokens == (BOS, EOS, *[PAD] * 75)


@pytest.mark.parametrize(("count", "lengths"), [(75, [75]), (76, [75, 1]), (151, [75, 75, 1])])
def test_prompt_longer_than_a_chunk_continues_in_the_next(count: int, lengths: list[int]) -> None:
    found = cut("red " * count)
    assert [len(words(c)) for c in found] == lengths
    assert all(
        c.tokens[0] == BOS and c.tokens[1 + n] == EOS for c, n in zip(found, lengths, strict=True)
    )


@pytest.mark.parametrize(
    ("before", "after", "first"),
    [
        (60, 20, 61),  # a comma 15 tokens before the end: the chunk ends after it
        (55, 40, 56),  # at the 20th token from the end: near enough
        (54, 40, 75),  # one token too far
        (74, 40, 75),  # the comma is the chunk's last token
        (75, 40, 75),  # the comma is the first token of the next chunk
        (60, 14, 75),  # the whole passage fits
    ],
)
def test_chunk_ends_at_a_near_comma(before: int, after: int, first: int) -> None:
    found = cut("red " * before + "," + " blue" * after)
    assert len(words(found[0])) == first
    assert [*chain(*map(words, found))] == ["red"] * before + [","] + ["blue"] * after


def test_chunk_ends_at_the_last_of_several_commas() -> None:
    found = cut("red " * 60 + ", cat , dog , " + "blue " * 30)
    assert words(found[0])[-1] == ","
    assert words(found[1]) == ["blue"] * 30


def test_comma_of_an_earlier_chunk_is_ignored() -> None:
    found = cut("red " * 70 + ", " + "blue " * 80)
    assert [len(words(c)) for c in found] == [71, 75, 5]


def test_chunk_weights_stay_with_their_tokens() -> None:
    found = cut("red " * 60 + ", " + "blue " * 10 + "(" + "cat " * 10 + ":1.5)")
    assert words(found[1]) == ["blue"] * 10 + ["cat"] * 10
    assert found[0].weights == (1.0,) * 77
    assert found[1].weights == (1.0,) * 11 + (1.5,) * 10 + (1.0,) * 56


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a cat BREAK a dog", [["a", "cat"], ["a", "dog"]]),
        ("BREAK a", [[], ["a"]]),
        ("a BREAK BREAK b", [["a"], [], ["b"]]),
        ("a BREAK", [["a"]]),
        ("BREAK", [[]]),
        ("red " * 75 + "BREAK a", [["red"] * 75, ["a"]]),
    ],
)
def test_break_begins_a_new_chunk(text: str, expected: list[list[str]]) -> None:
    assert [words(c) for c in cut(text)] == expected


@given(st.text(st.sampled_from("a ,.zé猫"), max_size=600))
def test_chunks_contain_every_token(text: str) -> None:
    ids = TOKENIZER(text, add_special_tokens=False, verbose=False)["input_ids"]
    found = [c.tokens[1 : c.tokens.index(EOS)] for c in cut(text)]
    assert [i for tokens in found for i in tokens] == ids
    assert all(len(tokens) <= CHUNK_TOKENS for tokens in found)


# Encoding.


def test_prompt_of_more_chunks_than_allowed_is_rejected_before_it_is_encoded(model: Model) -> None:
    with pytest.raises(RequestError, match="prompt_2: It has 67 chunks of 75 tokens"):
        encode_prompt(model, "a cat", "red " * 75 * 66 + "cat")


def close(ours: Tensor, theirs: Tensor | None) -> None:
    assert theirs is not None
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("prompt_2", [None, "a blue dog"])
@pytest.mark.parametrize("clip_skip", [None, 0, 1, 2])
def test_encoded_prompt_matches_diffusers(
    model: Model, prompt_2: str | None, clip_skip: int | None
) -> None:
    theirs: tuple[Tensor, ...] = cast(Any, tiny_pipeline(model)).encode_prompt(
        "a red house, zebra!",
        prompt_2,
        do_classifier_free_guidance=False,
        clip_skip=clip_skip,
    )
    ours = encode_prompt(model, "a red house, zebra!", prompt_2, clip_skip=clip_skip or 0)
    assert ours.tokens.shape == (1, 77, sum(WIDTHS))
    assert ours.pooled.shape == (1, POOLED)
    close(ours.tokens, theirs[0])
    close(ours.pooled, theirs[2])


@pytest.mark.parametrize("negative", [("", None), ("a cat", None), ("a cat", "a tree")])
def test_encoded_prompt_pair_matches_diffusers(
    model: Model, negative: tuple[str, str | None]
) -> None:
    theirs: tuple[Tensor, ...] = cast(Any, tiny_pipeline(model)).encode_prompt(
        "a red house", "a dog", negative_prompt=negative[0], negative_prompt_2=negative[1]
    )
    ours, uncond = encode_prompt_pair(
        model,
        request(
            prompt="a red house",
            prompt_2="a dog",
            negative_prompt=negative[0],
            negative_prompt_2=negative[1],
        ),
    )
    assert uncond is not None
    for mine, other in zip(
        (ours.tokens, uncond.tokens, ours.pooled, uncond.pooled), theirs, strict=True
    ):
        close(mine, other)


def test_empty_negative_prompt_is_zeros_if_the_checkpoint_requires_it() -> None:
    model = tiny_model(zero_empty_negative=True)
    theirs: tuple[Tensor, ...] = cast(Any, tiny_pipeline(model)).encode_prompt("a red house")
    _, negative = encode_prompt_pair(model, request(prompt="a red house"))
    assert negative is not None
    close(negative.tokens, theirs[1])
    close(negative.pooled, theirs[3])
    assert not negative.tokens.any()
    for given_one in (request(negative_prompt="cat"), request(negative_prompt_2="cat")):
        _, negative = encode_prompt_pair(model, given_one)
        assert negative is not None
        assert negative.tokens.any()
        assert negative.pooled.any()


def test_prompt_pair_without_guidance_has_no_negative(model: Model) -> None:
    assert encode_prompt_pair(model, request(prompt="a", guidance_scale=1.0))[1] is None


def test_long_prompt_is_the_concatenation_of_its_chunks(model: Model) -> None:
    prompt = "red " * 75 + "blue " * 75 + "a cat"
    ours = encode_prompt(model, prompt)
    assert ours.tokens.shape == (1, 3 * 77, sum(WIDTHS))
    for part, text in enumerate(("red " * 75, "blue " * 75, "a cat")):
        close(ours.tokens[:, 77 * part : 77 * (part + 1)], encoded_by_hand(model, text)[0])
    close(ours.pooled, encoded_by_hand(model, "red " * 75)[1])


def test_very_long_prompt_takes_several_encoder_calls(model: Model) -> None:
    ours = encode_prompt(model, "red " * 75 * 9 + "a cat")
    assert ours.tokens.shape == (1, 10 * 77, sum(WIDTHS))
    close(ours.tokens[:, -77:], encoded_by_hand(model, "a cat")[0])


def test_shorter_of_two_prompts_is_padded_with_empty_chunks(model: Model) -> None:
    ours = encode_prompt(model, "a cat", "red " * 80)
    hand = [
        [encoded_by_hand(model, text)[0] for text in texts]
        for texts in (("a cat", ""), ("red " * 75, "red " * 5))
    ]
    expected = torch.cat(
        [
            torch.cat(hand[0], dim=1)[..., : WIDTHS[0]],
            torch.cat(hand[1], dim=1)[..., WIDTHS[0] :],
        ],
        dim=-1,
    )
    close(ours.tokens, expected)


@pytest.mark.parametrize(("prompt", "negative"), [("red " * 160, "a cat"), ("a cat", "red " * 160)])
def test_prompt_pair_has_equal_lengths(model: Model, prompt: str, negative: str) -> None:
    pair = encode_prompt_pair(model, request(prompt=prompt, negative_prompt=negative, clip_skip=1))
    assert pair[1] is not None
    short = pair[1] if negative == "a cat" else pair[0]
    assert pair[0].tokens.shape == pair[1].tokens.shape == (1, 3 * 77, sum(WIDTHS))
    close(short.tokens[:, :77], encode_prompt(model, "a cat", clip_skip=1).tokens)
    for part in (1, 2):
        empty = encode_prompt(model, "", clip_skip=1).tokens
        assert torch.equal(short.tokens[:, 77 * part : 77 * (part + 1)], empty)


def encoded_by_hand(model: Model, text: str) -> tuple[Tensor, Tensor]:
    """Encode one chunk with both encoders, as the transformers documentation does."""
    hidden: list[Tensor] = []
    pooled = torch.empty(0)
    for encoder in model.text_encoders:
        ids = encoder.tokenizer(text, padding="max_length", return_tensors="pt")["input_ids"]
        output: Any = encoder.model(cast(Tensor, ids), output_hidden_states=True)
        hidden.append(output.hidden_states[-2])
        pooled = cast(Tensor, output[0])
    return torch.cat(hidden, dim=-1), pooled


def test_weight_scales_the_distance_from_the_empty_prompt(model: Model) -> None:
    plain, empty = encode_prompt(model, "a red house").tokens, encode_prompt(model, "").tokens
    weighted = encode_prompt(model, "a (red:1.5) [house]")
    expected = plain.clone()
    expected[:, 2] = empty[:, 2] + 1.5 * (plain[:, 2] - empty[:, 2])
    expected[:, 3] = empty[:, 3] + (plain[:, 3] - empty[:, 3]) / 1.1
    close(weighted.tokens, expected)
    assert torch.equal(weighted.tokens[:, [0, 1, *range(4, 77)]], plain[:, [0, 1, *range(4, 77)]])
    assert torch.equal(weighted.pooled, encode_prompt(model, "a red house").pooled)


def test_weight_of_1_changes_no_bit(model: Model) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        fresh = in_dtype(dtype)
        plain = encode_prompt(fresh, "a red house")
        for text in ("a (red:1) house", "([a red house])"):
            assert torch.equal(encode_prompt(fresh, text).tokens, plain.tokens)
        weighted = encode_prompt(fresh, "a red (house:2)")
        assert torch.equal(weighted.tokens[:, :3], plain.tokens[:, :3])
        assert not torch.equal(weighted.tokens[:, 3], plain.tokens[:, 3])
        assert weighted.tokens.dtype == weighted.pooled.dtype == dtype


def in_dtype(dtype: torch.dtype) -> Model:
    model = tiny_model()
    for encoder in model.text_encoders:
        cast(torch.nn.Module, encoder.model).to(dtype)
    return replace(model, dtype=dtype)


def test_weight_of_0_gives_the_empty_prompt(model: Model) -> None:
    assert torch.equal(
        encode_prompt(model, "a (red:0) house").tokens[:, 2], encode_prompt(model, "").tokens[:, 2]
    )


@pytest.mark.parametrize("text", ["a <new> house", "a house"])
def test_pooling_uses_the_end_token_for_every_config(text: str) -> None:
    """For `eos_token_id: 2`, transformers pools at the largest id, which is a new token here."""
    model = tiny_model()
    second = model.text_encoders[1]
    second.tokenizer.add_tokens(["<new>"])
    module = cast(Any, second.model)
    module.resize_token_embeddings(len(second.tokenizer), mean_resizing=False)
    ids = second.tokenizer(text, padding="max_length", return_tensors="pt")["input_ids"]
    right: Tensor = module(ids).text_embeds
    module.text_model.eos_token_id = 2
    assert torch.allclose(module(ids).text_embeds, right) == ("<new>" not in text)
    close(encode_prompt(model, text).pooled, right)


def test_refiner_uses_the_second_encoder_only(model: Model) -> None:
    refiner = replace(model, text_encoders=model.text_encoders[1:])
    both = encode_prompt(model, "a cat", "a dog")
    ours = encode_prompt(refiner, "a cat", "a dog")
    close(ours.tokens, both.tokens[..., WIDTHS[0] :])
    close(ours.pooled, both.pooled)
    close(encode_prompt(refiner, "a dog").tokens, ours.tokens)


def test_clip_skip_beyond_the_layers_is_rejected(model: Model) -> None:
    encode_prompt(model, "a", clip_skip=3)
    with pytest.raises(RequestError, match=r"clip_skip: 4 is out of range; .* 0 to 3") as caught:
        encode_prompt_pair(model, request(clip_skip=4))
    assert caught.value.field == "clip_skip"


@pytest.mark.parametrize("field", ["prompt", "prompt_2", "negative_prompt", "negative_prompt_2"])
def test_prompt_error_names_the_field(model: Model, field: str) -> None:
    with pytest.raises(RequestError) as caught:
        encode_prompt_pair(model, request(**{field: "(a:11)"}))
    assert caught.value.field == field


# Cache.


def counted(model: Model) -> tuple[Model, list[int]]:
    """Return `model` with an empty cache, and a list that grows per call of its last encoder."""
    calls: list[int] = []

    def encoder(**arguments: Any) -> Any:
        calls.append(1)
        return module(**arguments)

    module = cast(Any, model.text_encoders[1].model)
    for name in ("device", "config", "text_projection"):
        setattr(encoder, name, getattr(module, name))
    last = TextEncoder(model.text_encoders[1].tokenizer, cast(Any, encoder))
    return replace(model, text_encoders=(model.text_encoders[0], last)), calls


def test_prompt_used_twice_is_encoded_once(model: Model) -> None:
    model, calls = counted(model)
    first = encode_prompt(model, "a cat")
    assert encode_prompt(model, "a cat") is first
    assert len(calls) == 1
    others: list[EncodedPrompt] = [
        encode_prompt(model, "a dog"),
        encode_prompt(model, "a cat", "a dog"),
        encode_prompt(model, "a cat", clip_skip=1),
    ]
    assert len(calls) == 4
    assert all(not torch.equal(other.tokens, first.tokens) for other in others)


def test_loras_without_text_encoder_changes_share_encodings(model: Model) -> None:
    model, calls = counted(model)
    first = encode_prompt(model, "a cat")
    lora = LoraWeights("style", "ab" * 32, "cd" * 32, {"unet": {}}, {})
    assert encode_prompt(model, "a cat", adapters=(Adapter(lora, 0.5),)) is first
    assert len(calls) == 1


def test_encoded_prompt_has_no_gradient(model: Model) -> None:
    encoded = encode_prompt(model, "a (cat:1.2)")
    assert not encoded.tokens.requires_grad
    assert not encoded.pooled.requires_grad


def test_segment_defaults_to_weight_1() -> None:
    assert Segment("a") == Segment("a", 1.0)
