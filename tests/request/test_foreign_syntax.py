"""Prompt syntax of other programs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overpaint.request.foreign_syntax import describe_foreign_syntax


@pytest.mark.parametrize(
    ("prompt", "use", "name"),
    [
        ("a [cat:dog:0.5]", "[cat:dog:0.5]", "prompt editing"),
        ("a [cat:0.5]", "[cat:0.5]", "prompt editing"),
        ("a [cat::5]", "[cat::5]", "prompt editing"),
        ("a [::.5]", "[::.5]", "prompt editing"),
        ("a [red|blue] hat", "[red|blue]", "alternating"),
        ("a cat AND a dog :1.2", "AND", "composable"),
        ("by __artist__", "__artist__", "wildcards"),
        ("by __people/artist*__", "__people/artist*__", "wildcards"),
        ("a {red|blue} hat", "{red|blue}", "variants"),
        ("a {2$$red|blue} hat", "{2$$red|blue}", "variants"),
        ("a {red} hat", "{red}", "NovelAI"),
        ("a 1.5::red hat::", "1.5::", "NovelAI"),
        ("a red++ hat", "red++", "Compel"),
        ("a red+", "red+", "Compel"),
        ("a red--, hat", "red--", "Compel"),
        ("a (red hat)++", "hat)++", "Compel"),
        ("a (red)1.3", "(red)1.3", "Compel"),
        ('("a cat", "a dog").and()', 'dog").and(', "Compel"),
        ('("a cat", "a dog").blend(1, 2)', 'dog").blend(', "Compel"),
        ('a "cat".swap("dog")', '"cat".swap(', "Compel"),
        ("a hat, (embedding:ink:1.2)", "(embedding:ink:1.2", "ComfyUI"),
        ("a <random:red,blue> hat", "<random:red,blue>", "SwarmUI"),
        ("a hat <segment:face> smile", "<segment:face>", "SwarmUI"),
    ],
)
def test_foreign_syntax_is_named_with_its_program(prompt: str, use: str, name: str):
    note = describe_foreign_syntax([None, "", prompt])
    assert note is not None
    assert use in note
    assert name in note
    assert note.count("(") - use.count("(") == 1


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "a cat",
        "((a (red:1.2) cat)) [and] a [dog, small] BREAK a house",
        "<lora:ink:0.8> <embedding:ink> a cat",
        r"\[red|blue\] \{red\|blue\} \__x_\_",
        "snake_case, a well-known cat - black, house--with tree -- two, 16:9, 10+ cats",
        "4k (best quality) 2 cats; ratio 1:2, and: so [sic] [a: b]",
        "AND_THEN, SAND, and",
    ],
)
def test_prompts_in_overpaints_syntax_have_no_note(prompt: str):
    assert describe_foreign_syntax([prompt]) is None


def test_note_on_foreign_syntax_names_each_construct_once():
    note = describe_foreign_syntax(["[a|b] [c|d] __x__ __y__", "[e|f] AND"])
    assert note is not None
    assert "[a|b]" in note
    assert "__x__" in note
    assert "AND" in note
    for later in ("[c|d]", "__y__", "[e|f]"):
        assert later not in note


@given(st.text(st.sampled_from("[](){}|:_+-.<>\\ aA1\n\x1b\ud800")))
def test_any_prompt_is_described(prompt: str):
    note = describe_foreign_syntax([prompt])
    assert note is None or note.isprintable()


@pytest.mark.parametrize(
    "unit", ["[", "[a:", "[1:", "{", "{|", "__", "__a", "[|", ")", "+", "a+", "a-", "1.", "<", "\\"]
)
def test_long_prompts_are_described_in_linear_time(unit: str):
    describe_foreign_syntax([unit * (100_000 // len(unit))])  # a quadratic pattern takes minutes
