"""Attention, and a context that caches the keys and values of cross-attention.

The prompt is the same at every step, and so are the keys and values that each cross-attention
layer computes from it. A `Context` computes them once. It replaces the UNet's
`encoder_hidden_states`, which diffusers passes to every layer unchanged.
"""

import math
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from overpaint.errors import CheckpointError
from overpaint.nn import row_context

if TYPE_CHECKING:
    from diffusers.models.attention_processor import Attention as DiffusersAttention

MAX_UNFUSED_KEYS = 256
"""On a CPU in bf16, up to this number of keys, two batched products compute softmax(q kᵀ) v.

They are 1.4 times as fast as torch's fused attention (20 heads of 64, 77 keys, AVX512-bf16).
"""

QUERIES_PER_BLOCK = 512
"""On a CPU in bf16 with more keys, attention runs per head and per block of this many queries.

The scores then stay in the processor's cache: 1.5 times as fast as torch's fused attention (20
heads of 64, 1024 keys, AVX512-bf16).
"""


class KeysValues(NamedTuple):
    """The keys and values that one attention layer computes from a batch's tokens.

    Attributes:
        keys: [B, heads, L, head width].
        values: [B, heads, L, head width].
        bias: [B, 1, 1, L], 0 for a row's tokens and -inf for padding. None without padding.
    """

    keys: Tensor
    values: Tensor
    bias: Tensor | None = None


class Context:
    """The prompt's tokens for cross-attention, with the cached keys and values of each layer.

    A context is valid for one request: for its tokens and for the weights, adapters included, that
    computed the keys and values.
    """

    def __init__(self, tokens: Tensor, adapters: Hashable = ()):
        """Wrap tokens [B, L, D] of rows that all use the given adapters; see `use_rows`."""
        self._tokens = tokens
        self._adapters = adapters
        self._kept: dict[Attention, KeysValues] = {}

    @staticmethod
    def stack(parts: "Sequence[Context]") -> "Context":
        """Return the context of a batch that concatenates the rows of these parts.

        The keys and values of a part depend only on that part, so that the batch does not affect
        the result of a row. Shorter parts are padded, and attention ignores the padding.
        """
        return parts[0] if len(parts) == 1 else _Stack(parts)

    def keys_values(self, layer: "Attention") -> KeysValues:
        """Return the layer's keys and values; the first call computes them."""
        if layer not in self._kept:
            self._kept[layer] = self._make(layer)
        return self._kept[layer]

    def _make(self, layer: "Attention") -> KeysValues:
        with row_context.use_rows((self._adapters,) * len(self._tokens)):
            keys, values = layer.keys_values(self._tokens)
        return KeysValues(keys.contiguous(), values.contiguous())


class _Stack(Context):
    def __init__(self, parts: Sequence[Context]):
        self._parts = [
            leaf for part in parts for leaf in (part._parts if isinstance(part, _Stack) else [part])
        ]
        self._kept = {}

    def _make(self, layer: "Attention") -> KeysValues:
        made = [part.keys_values(layer) for part in self._parts]
        lengths = [part.keys.shape[2] for part in made]
        longest = max(lengths)
        keys, values = (
            torch.cat([_padded(x, longest) for x in parts])
            for parts in ([part.keys for part in made], [part.values for part in made])
        )
        if min(lengths) == longest:
            return KeysValues(keys, values)
        bias = keys.new_zeros(len(keys), 1, 1, longest)
        row = 0
        for part, length in zip(made, lengths, strict=True):
            bias[row : row + len(part.keys), ..., length:] = -math.inf
            row += len(part.keys)
        return KeysValues(keys, values, bias)


def _padded(x: Tensor, length: int) -> Tensor:
    return x if x.shape[2] == length else F.pad(x, (0, 0, 0, length - x.shape[2]))


class Attention(nn.Module):
    """Multi-head attention (arXiv 1706.03762) with the parameter names of diffusers."""

    def __init__(self, source: "DiffusersAttention", name: str = "attention"):
        """Take over the projections of `source`.

        Raises:
            CheckpointError: `source` has an option that SDXL's attention does not use.
        """
        super().__init__()
        extras = {
            "group_norm": source.group_norm,
            "spatial_norm": source.spatial_norm,
            "norm_q": source.norm_q,
            "norm_k": source.norm_k,
            "norm_cross": source.norm_cross,
            "added_kv_proj_dim": source.added_kv_proj_dim,
            "residual_connection": source.residual_connection,
            "upcast_attention": source.upcast_attention,
            "rescale_output_factor": source.rescale_output_factor != 1,
            "dropout": source.dropout,
        }
        if unknown := [extra for extra, value in extras.items() if value]:
            raise CheckpointError(
                f"{name}: SDXL's attention does not use {', '.join(unknown)}. "
                "Check the UNet's config."
            )
        self.heads = source.heads
        self.to_q = source.to_q
        self.to_k = cast(nn.Linear, source.to_k)
        self.to_v = cast(nn.Linear, source.to_v)
        self.to_out = cast(nn.ModuleList, source.to_out)

    def forward(self, x: Tensor, context: Context | Tensor | None = None) -> Tensor:
        """Attend from x [B, N, C] to a context of B rows, to tokens [B, L, D], or to x itself."""
        queries = self._split(self.to_q(x))
        if isinstance(context, Context):
            keys_values = context.keys_values(self)
        else:
            keys_values = KeysValues(*self.keys_values(x if context is None else context))
        return self.to_out[0](attend(queries, *keys_values))

    def keys_values(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys and values, [B, heads, L, head width], of tokens [B, L, D]."""
        return self._split(self.to_k(tokens)), self._split(self.to_v(tokens))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


def attend(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return softmax(q kᵀ / √d + bias) v, with the heads concatenated.

    Args:
        queries: [B, heads, N, d].
        keys: [B, heads, L, d].
        values: [B, heads, L, d].
        bias: [B, 1, 1, L].

    Returns:
        [B, N, heads · d].
    """
    if (
        queries.device.type == "cpu"
        and queries.dtype == torch.bfloat16
        and not queries.requires_grad
    ):
        if keys.shape[2] <= MAX_UNFUSED_KEYS:
            scores = queries * queries.shape[3] ** -0.5 @ keys.transpose(2, 3)
            if bias is not None:
                scores += bias
            return (scores.softmax(-1) @ values).transpose(1, 2).flatten(2)
        return _attend_by_head(queries, keys, values, bias)
    attended = F.scaled_dot_product_attention(queries, keys, values, bias)
    return attended.transpose(1, 2).flatten(2)


def _attend_by_head(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
    batch, heads, length, width = queries.shape
    queries = queries * width**-0.5
    attended = queries.new_empty(batch, length, heads, width)
    for row in range(batch):
        for head in range(heads):
            head_keys, head_values = keys[row, head], values[row, head].t().contiguous()
            for start in range(0, length, QUERIES_PER_BLOCK):
                block = slice(start, start + QUERIES_PER_BLOCK)
                scores = F.linear(queries[row, head, block], head_keys)
                if bias is not None:
                    scores += bias[row, 0]
                attended[row, block, head] = F.linear(scores.softmax(-1), head_values)
    return attended.flatten(2)
