"""Encode prompts: split weighted text into chunks of 75 tokens and run SDXL's text encoders.

    parse_prompt       text -> passages of weighted segments (`prompt_syntax`)
    split_into_chunks  passages -> chunks of 77 tokens with a weight each
    encode_prompt      two prompts -> the network's token and pooled inputs

Syntax and chunks are those of AUTOMATIC1111's web UI (`modules/prompt_parser.py` and
`modules/sd_hijack_clip.py`), so that its prompts have the same meaning here.
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from overpaint.diffusion.prompt_syntax import Segment, list_embeddings, parse_prompt
from overpaint.errors import RequestError
from overpaint.models.adapters import Adapters, get_adapter_merger
from overpaint.models.embedding import Embeddings
from overpaint.models.model import Model, TextEncoder
from overpaint.request import Request
from overpaint.request.fields import EMBEDDING_PATTERN, MAX_PROMPT_CHUNKS
from overpaint.system.abandon import check_abandoned

if TYPE_CHECKING:
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer

CHUNK_TOKENS = 75
"""Text tokens per chunk; with the begin and end tokens, a chunk fills CLIP's 77 positions."""

COMMA_BACKTRACK_TOKENS = 20
"""A full chunk ends at its last comma if the comma is among this many last tokens."""

MAX_CHUNKS_PER_CALL = 8
"""Chunks per call of a text encoder, which keeps all hidden states of a call in memory."""


@dataclass(frozen=True)
class Chunk:
    """The input of one text encoder run.

    Attributes:
        tokens: 77 ids: begin, up to 75 text tokens, end, then the tokenizer's padding.
        weights: the weight of each token; 1 except for text tokens.
    """

    tokens: tuple[int, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True)
class EncodedPrompt:
    """The UNet's inputs for a prompt, on the model's device and in its dtype.

    Attributes:
        tokens: [1, 77·chunks, width of all text encoders together].
        pooled: [1, P], the text embedding of the last encoder.
    """

    tokens: Tensor
    pooled: Tensor


def split_into_chunks(
    passages: Sequence[Sequence[Segment]],
    tokenizer: "CLIPTokenizer",
    learned: Mapping[str, Sequence[int]] | None = None,
) -> list[Chunk]:
    """Tokenize passages and split them into chunks; no text is truncated.

    Each passage begins a new chunk. A chunk ends after 75 tokens, or after the last comma among
    the last 20 of them, unless the next token is a comma (A1111's `comma_padding_backtrack`). A
    passage without text becomes an empty chunk, except after the last BREAK.

    Args:
        passages: from `parse_prompt`.
        tokenizer: the text encoder's tokenizer.
        learned: the ids that replace `<embedding:name>`, by name.
    """
    comma = cast(int, tokenizer.convert_tokens_to_ids(",</w>"))
    if len(passages) > 1 and not passages[-1]:
        passages = passages[:-1]
    found: list[Chunk] = []
    for passage in passages:
        ids = [_tokenize(segment.text, tokenizer, learned or {}) for segment in passage]
        weights = [[s.weight] * len(own) for s, own in zip(passage, ids, strict=True)]
        found += _split_passage([*chain(*ids)], [*chain(*weights)], comma, tokenizer)
    return found


def _tokenize(
    text: str, tokenizer: "CLIPTokenizer", learned: Mapping[str, Sequence[int]]
) -> list[int]:
    # The split alternates between texts and the names of embeddings.
    *pairs, last = EMBEDDING_PATTERN.split(text)
    ids: list[int] = []
    for words, name in zip(pairs[::2], pairs[1::2], strict=True):
        ids += [*_tokenize_text(words, tokenizer), *learned[name]]
    return ids + _tokenize_text(last, tokenizer)


def _tokenize_text(text: str, tokenizer: "CLIPTokenizer") -> list[int]:
    # verbose=True would warn about every text beyond 77 tokens.
    return cast(Any, tokenizer)(text, add_special_tokens=False, verbose=False)["input_ids"]


def _split_passage(
    ids: list[int], weights: list[float], comma: int, tokenizer: "CLIPTokenizer"
) -> list[Chunk]:
    found: list[Chunk] = []
    start = 0
    while len(ids) - start > CHUNK_TOKENS:
        end = full = start + CHUNK_TOKENS
        if ids[full] != comma:
            near = range(full - 1, full - 1 - COMMA_BACKTRACK_TOKENS, -1)
            end = next((place + 1 for place in near if ids[place] == comma), full)
        found.append(_make_chunk(ids[start:end], weights[start:end], tokenizer))
        start = end
    return [*found, _make_chunk(ids[start:], weights[start:], tokenizer)]


def _make_chunk(ids: list[int], weights: list[float], tokenizer: "CLIPTokenizer") -> Chunk:
    begin, end = cast(int, tokenizer.bos_token_id), cast(int, tokenizer.eos_token_id)
    # SDXL's first tokenizer pads with the end token, its second with "!", which is id 0.
    padding = [cast(int, tokenizer.pad_token_id)] * (CHUNK_TOKENS - len(ids))
    return Chunk(
        tokens=(begin, *ids, end, *padding),
        weights=(1.0, *weights, 1.0, *([1.0] * len(padding))),
    )


def encode_prompt_pair(
    model: Model, request: Request, adapters: Adapters = (), embeddings: Embeddings = ()
) -> tuple[EncodedPrompt, EncodedPrompt | None]:
    """Return the prompt and, if the request is guided, the negative prompt, of equal length.

    The shorter of the two is padded with encoded empty chunks, as in A1111. If the checkpoint has
    `Model.zero_empty_negative`, as SDXL base does, an empty negative prompt is all zeros instead.

    Raises:
        RequestError: a weight or `clip_skip` is out of range.
    """
    skip = request.clip_skip
    own = partial(encode_prompt, model, clip_skip=skip, adapters=adapters, embeddings=embeddings)
    prompt = own(request.prompt, request.prompt_2)
    if not request.guided:
        return prompt, None
    if model.zero_empty_negative and not (request.negative_prompt or request.negative_prompt_2):
        return prompt, EncodedPrompt(
            torch.zeros_like(prompt.tokens), torch.zeros_like(prompt.pooled)
        )
    negative = own(request.negative_prompt, request.negative_prompt_2, field="negative_prompt")
    length = max(prompt.tokens.shape[1], negative.tokens.shape[1])
    empty = own("")
    return _pad_prompt(prompt, empty, length), _pad_prompt(negative, empty, length)


def _pad_prompt(encoded: EncodedPrompt, empty: EncodedPrompt, length: int) -> EncodedPrompt:
    """Append the tokens of `empty` to `encoded` until there are `length` tokens."""
    missing = (length - encoded.tokens.shape[1]) // empty.tokens.shape[1]
    if not missing:
        return encoded
    return EncodedPrompt(
        torch.cat([encoded.tokens, *[empty.tokens] * missing], dim=1), encoded.pooled
    )


def encode_prompt(
    model: Model,
    prompt: str,
    prompt_2: str | None = None,
    *,
    clip_skip: int = 0,
    field: str = "prompt",
    adapters: Adapters = (),
    embeddings: Embeddings = (),
) -> EncodedPrompt:
    """Encode a prompt with the model's text encoders (arXiv 2307.01952, section 2.1).

    The penultimate hidden states of all encoders, without the final layer norm, are concatenated
    on the feature axis. The pooled embedding comes from the last encoder's first chunk, at the
    first end token, as in A1111 and ComfyUI; weights do not affect it. If one encoder's prompt has
    fewer chunks, empty chunks follow.

    The model caches the results; do not write to them.

    Args:
        model: has two text encoders; a refiner has one.
        prompt: for the first text encoder.
        prompt_2: for the second text encoder, which is a refiner's only one; by default `prompt`.
        clip_skip: layers to skip in addition to the last one, which SDXL never uses.
        field: the request's field that contains `prompt`, for errors.
        adapters: the LoRAs to apply to the text encoders.
        embeddings: the embeddings that the prompts can use.

    Raises:
        RequestError: a weight is out of range, or an encoder has too few layers for `clip_skip`.
    """
    second = (prompt, field) if prompt_2 is None else (prompt_2, f"{field}_2")
    sources = [(prompt, field), second][-len(model.text_encoders) :]
    known = {embedding.name: embedding for embedding in embeddings}
    for text, where in sources:
        if unknown := [name for name in list_embeddings(text) if name not in known]:
            raise RequestError(where, f"Embedding {unknown[0]!r} is not loaded.")
    used = tuple(known[name] for name in list_embeddings(*(text for text, _ in sources)))
    changing = (a for a in adapters if any(a.changes(part) for part in model.encoders_by_part))
    changes = tuple((adapter.lora.sha256, adapter.text_scale) for adapter in changing)
    learned = tuple(embedding.sha256 for embedding in used)
    with model.text_lock:  # else two threads would encode the same prompt
        return model.remember(
            "prompts",
            (prompt, prompt_2, clip_skip, changes, learned),
            lambda: _encode(model, sources, clip_skip, adapters, used),
        )


@torch.no_grad()
def _encode(
    model: Model,
    sources: list[tuple[str, str]],
    clip_skip: int,
    adapters: Adapters,
    embeddings: Embeddings,
) -> EncodedPrompt:
    with model.text_lock:
        for part in model.encoders_by_part:
            get_adapter_merger(model).use(part, adapters)
        most = min(encoder.model.config.num_hidden_layers for encoder in model.text_encoders) - 1
        if not 0 <= clip_skip <= most:
            raise RequestError(
                "clip_skip", f"{clip_skip} is out of range; allowed for this model is 0 to {most}."
            )
        rows = [
            split_into_chunks(
                parse_prompt(text, field),
                encoder.tokenizer,
                _embedding_ids(encoder, part, embeddings),
            )
            for (text, field), (part, encoder) in zip(
                sources, model.encoders_by_part.items(), strict=True
            )
        ]
        for own, (_, field) in zip(rows, sources, strict=True):
            if len(own) > MAX_PROMPT_CHUNKS:
                raise RequestError(
                    field,
                    f"It has {len(own)} chunks of {CHUNK_TOKENS} tokens and may have "
                    f"{MAX_PROMPT_CHUNKS}. Shorten the prompt, or remove BREAKs.",
                )
        count = max(map(len, rows))
        for own, encoder in zip(rows, model.text_encoders, strict=True):
            own += [_make_chunk([], [], encoder.tokenizer)] * (count - len(own))
        states: list[tuple[Tensor, Tensor]] = []
        for (part, encoder), own in zip(model.encoders_by_part.items(), rows, strict=True):
            vectors = [e.vectors[part] for e in embeddings if part in e.vectors]
            with _install_embeddings(encoder, vectors):
                states.append(_compute_states(encoder, own, clip_skip, model.device))
        tokens = torch.cat([hidden.flatten(0, 1) for hidden, _ in states], dim=-1)[None]
        pooled = _pool(model.text_encoders[-1], states[-1][1], rows[-1][0])
    return EncodedPrompt(tokens.to(model.device, model.dtype), pooled.to(model.device, model.dtype))


def _embedding_ids(encoder: TextEncoder, part: str, embeddings: Embeddings) -> dict[str, range]:
    """Return the ids of embeddings' vectors, which follow those of the encoder's vocabulary.

    An embedding without vectors for the encoder has no ids.
    """
    found: dict[str, range] = {}
    first = encoder.model.config.vocab_size
    for embedding in embeddings:
        length = len(embedding.vectors.get(part, ()))
        found[embedding.name] = range(first, first + length)
        first += length
    return found


@contextmanager
def _install_embeddings(encoder: TextEncoder, vectors: Sequence[Tensor]) -> Generator[None]:
    """Make the encoder accept the ids of `_embedding_ids`, within the `with` block."""
    if not vectors:
        yield
        return
    table: Any = encoder.model.get_input_embeddings()
    more = torch.cat([v.to(encoder.model.dtype) for v in vectors])

    def forward(ids: Tensor) -> Tensor:
        known: Tensor = table.weight  # on the device while the table runs
        own = F.embedding(ids.clamp(max=len(known) - 1), known)
        beyond = (ids - len(known)).clamp(min=0)
        return torch.where((ids >= len(known))[..., None], F.embedding(beyond, more.to(known)), own)

    table.forward = forward
    try:
        yield
    finally:
        del table.forward


def _compute_states(
    encoder: TextEncoder, own: list[Chunk], clip_skip: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return weighted hidden states [chunks, 77, H] and the first chunk's last ones [1, 77, H]."""
    hidden, final = _run_encoder(encoder, own, clip_skip, device)
    if any(weight != 1 for chunk in own for weight in chunk.weights):
        empty_chunk = _make_chunk([], [], encoder.tokenizer)
        empty, _ = _run_encoder(encoder, [empty_chunk], clip_skip, device)
        hidden = _apply_weights(hidden, empty, own)
    return hidden, final


def _run_encoder(
    encoder: TextEncoder, own: list[Chunk], clip_skip: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return one layer's hidden states [chunks, 77, H] and the first chunk's last ones."""
    ids = torch.tensor([chunk.tokens for chunk in own], device=device)
    hidden: list[Tensor] = []
    final: Tensor | None = None
    for part in ids.split(MAX_CHUNKS_PER_CALL):
        check_abandoned()
        output: Any = encoder.model(input_ids=part, output_hidden_states=True)
        hidden.append(output.hidden_states[-2 - clip_skip])
        final = output.last_hidden_state[:1] if final is None else final
    assert final is not None
    return torch.cat(hidden), final


def _apply_weights(hidden: Tensor, empty: Tensor, own: list[Chunk]) -> Tensor:
    """Scale each token's distance from the empty prompt by its weight: z0 + w·(z − z0).

    This is ComfyUI's definition of a weight. A1111 multiplies z by w and then rescales the whole
    prompt to its former mean. A few huge features dominate that mean in SDXL's penultimate layers,
    so that one emphasized word would change the size of all others. A token of weight 1 keeps its
    bits here, since torch computes lerp from the nearer end.

    Args:
        hidden: z, [chunks, 77, H].
        empty: z0, [1, 77, H].
        own: the chunks, which hold the weights.
    """
    weights = torch.tensor([chunk.weights for chunk in own], device=hidden.device)[..., None]
    start = empty.float().expand_as(hidden)
    return torch.lerp(start, hidden.float(), weights.expand_as(start)).to(hidden.dtype)


def _pool(encoder: TextEncoder, final: Tensor, chunk: Chunk) -> Tensor:
    """Return the text embedding [1, P]: the projected final state at the first end token.

    For configs with `eos_token_id: 2`, such as SDXL's, transformers pools at the largest token id.
    That is the wrong position if a tokenizer has ids beyond the end token.
    """
    end = chunk.tokens.index(cast(int, encoder.tokenizer.eos_token_id))
    return cast("CLIPTextModelWithProjection", encoder.model).text_projection(final[:, end])
