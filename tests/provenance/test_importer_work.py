"""Tests that importers do linear work for texts that a stranger made."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from overpaint.provenance.a1111_text import mark_embeddings
from overpaint.provenance.importers import a1111, fooocus, invokeai, swarmui
from overpaint.provenance.importers.collector import ImportedSettings, SettingsCollector
from overpaint.provenance.importers.comfyui.graph import Graph, join_bounded
from overpaint.provenance.importers.comfyui.reader import read_comfyui
from overpaint.request.fields import MAX_PROMPT_CHARS
from tests.work import assert_linear, count_lines


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def sampler(**inputs: Any) -> dict[str, Any]:
    return node("KSampler", seed=1, steps=5, cfg=2, sampler_name="euler", **inputs)


def make_chain(count: int) -> dict[str, Any]:
    """Make nodes without a value, each of which feeds the next."""
    return {f"c{i}": node("Reroute", any=[f"c{i - 1}", 0]) for i in range(1, count)}


def read(graph: dict[str, Any]) -> Callable[[], ImportedSettings | None]:
    text = json.dumps(graph)
    return lambda: read_comfyui(text)


def make_many_ends(count: int) -> dict[str, Any]:
    ends = {f"e{i}": node("SaveImage", images=[f"c{count - 1}", 0]) for i in range(count)}
    return make_chain(count) | ends | {"c0": sampler()}


def make_many_loras(count: int) -> dict[str, Any]:
    """Make LoRAs in a row, whose strengths are links into a long row of other nodes."""
    chain = make_chain(10 * count)
    loras = {
        f"l{i}": node(
            "LoraLoader",
            lora_name=f"a{i}",
            strength_model=[f"c{10 * count - 1}", 0],
            model=[f"l{i - 1}", 0],
        )
        for i in range(count)
    }
    return chain | loras | {"s": sampler(model=[f"l{count - 1}", 0])}


def make_many_encoders(count: int) -> dict[str, Any]:
    """Make a prompt of many texts, each encoded with LoRAs of its own in a shared row."""
    loras = {
        f"l{i}": node("LoraLoader", lora_name=f"a{i}", strength_model=1, clip=[f"l{i - 1}", 0])
        for i in range(count)
    }
    texts = {f"t{i}": node("CLIPTextEncode", text="a", clip=[f"l{i}", 0]) for i in range(count)}
    links = {f"conditioning_{i}": [f"t{i}", 0] for i in range(count)}
    joined = {"j": node("ConditioningCombine", **links)}
    model = {"model": [f"l{count - 1}", 0], "positive": ["j", 0]}
    return loras | texts | joined | {"s": sampler(**model)}


@pytest.mark.parametrize("make", [make_many_ends, make_many_loras, make_many_encoders])
def test_graph_of_comfyui_is_read_in_linear_work(make: Callable[[int], dict[str, Any]]) -> None:
    assert_linear(lambda count: read(make(count)))


class CountedText(str):
    """A text that counts how often its length is read."""

    reads = 0

    def __len__(self) -> int:
        CountedText.reads += 1
        return super().__len__()


def test_texts_are_joined_in_linear_work() -> None:
    texts = [CountedText("a") for _ in range(1000)]
    joined = join_bounded(texts, ", ")
    assert joined == ", ".join("a" * 1000)
    assert CountedText.reads <= 2 * len(texts)  # its truth reads the length too


def test_links_to_one_text_do_not_multiply_it() -> None:
    links = {f"text_{i}": ["t", 0] for i in range(1000)}
    delimiter = "-" * MAX_PROMPT_CHARS
    nodes = {"t": node("Text", text="a" * 60_000), "j": node("JoinStrings", **links)}
    nodes["k"] = node("JoinStrings", delimiter=delimiter, text_a=["j", 0], text_b=["j", 0])
    graph = Graph.parse(json.dumps(nodes))
    joined, again = graph.read_text(["j", 0]), graph.read_text(["k", 0])
    assert joined == ", ".join(["a" * 60_000] * 2)
    assert again == joined


def test_work_of_marking_embeddings_does_not_grow_with_their_number() -> None:
    prompt = "bad hands, bad art " * 20
    few = [f"bad hands {i}" for i in range(10)]
    many = [f"bad hands {i}" for i in range(1000)]
    walks = [
        count_lines(lambda n=names: mark_embeddings(prompt, [*n, "bad"])) for names in (few, many)
    ]
    trees = [
        count_lines(lambda n=names: mark_embeddings("x", [*n, "bad"])) for names in (few, many)
    ]
    assert walks[1] - trees[1] == walks[0] - trees[0]


def test_longest_name_of_an_embedding_that_ends_at_a_word_is_marked() -> None:
    names = ("bad", "bad hands", "Bad Hands 5", "a" * 5000)
    marked = mark_embeddings("bad hands 57, BAD HANDS 5 badly bad-x x:bad (bad)", names)
    assert marked == (
        "<embedding:bad hands> 57, <embedding:Bad Hands 5> badly bad-x x:bad (<embedding:bad>)"
    )


def test_prompt_is_cut_before_it_is_translated() -> None:
    given: list[int] = []

    def translate(text: str) -> str:
        given.append(len(text))
        return text.replace("(", r"\(")

    reading = SettingsCollector()
    reading.put_prompt("prompt", "(" * 10 * MAX_PROMPT_CHARS, translate)
    assert given == [MAX_PROMPT_CHARS]
    assert len(reading.fields["prompt"]) == MAX_PROMPT_CHARS
    assert reading.notes == ["prompt: only its first 100,000 characters are kept."]


LONG = "[" * 3 * MAX_PROMPT_CHARS
LONG_TEXTS: dict[str, tuple[Callable[[str], ImportedSettings | None], str]] = {
    "A1111": (a1111.read_a1111, f"{LONG}\nSteps: 5, Sampler: Euler, Seed: 1"),
    "ComfyUI": (
        read_comfyui,
        json.dumps(
            {"t": node("CLIPTextEncode", text=LONG), "s": sampler(positive=["t", 0])},
        ),
    ),
    "Fooocus": (fooocus.read_fooocus, json.dumps({"prompt": LONG, "base_model": "x"})),
    "InvokeAI": (invokeai.read_invokeai, json.dumps({"positive_prompt": LONG})),
    "SwarmUI": (swarmui.read_swarmui, json.dumps({"sui_image_params": {"prompt": LONG}})),
}


@pytest.mark.parametrize("program", LONG_TEXTS)
def test_long_prompt_of_any_program_fits_a_request(program: str) -> None:
    reader, text = LONG_TEXTS[program]
    found = reader(text)
    assert found
    assert len(found.fields["prompt"]) == MAX_PROMPT_CHARS
    assert found.notes[0] == "prompt: only its first 100,000 characters are kept."


def test_hash_of_a_lora_whose_name_another_one_begins_with_is_noted() -> None:
    line = 'Steps: 5, Sampler: Euler, Seed: 1, Lora hashes: "{}: 1"'
    tagged = a1111.read_a1111(f"a <lora:ink2:1>\n{line.format('ink2')}")
    other = a1111.read_a1111(f"a <lora:ink2:1>\n{line.format('ink')}")
    assert tagged
    assert other
    assert not tagged.notes
    assert other.notes == ("settings not carried over: Lora hashes ink: 1.",)
