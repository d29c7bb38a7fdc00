"""Attention, and the context that keeps cross-attention's keys and values for a whole request.

The prompt does not change from step to step, so neither do the keys and values that each
cross-attention layer makes of it: a `Context` computes them once and is handed to the UNet in
place of `encoder_hidden_states`, which reaches every layer untouched.
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

# On a CPU in bf16, up to this many keys softmax(q kᵀ) v as two batched products is 1.4 times as
# fast as torch's fused attention; beyond, 1.5 times one head and this many queries at a time, so
# that the scores stay in the cache. (20 heads of 64, 77 and 1024 keys, AVX512-bf16.)
MAX_UNFUSED_KEYS = 256
QUERIES_PER_BLOCK = 512


class KeysValues(NamedTuple):
    """What one attention layer makes of a batch's tokens.

    Attributes:
        keys: [B, heads, L, head width].
        values: likewise.
        bias: [B, 1, 1, L], 0 for a row's own tokens and -inf for padding; None without padding.
    """

    keys: Tensor
    values: Tensor
    bias: Tensor | None = None


class Context:
    """A prompt's tokens as the UNet's cross-attention sees them.

    It belongs to one request: to its tokens and to the weights (adapters included) that its keys
    and values were made with.
    """

    def __init__(self, tokens: Tensor, adapters: Hashable = ()):
        """Wrap tokens [B, L, D], of rows that have a set of adapters; see `rows.given`."""
        self._tokens = tokens
        self._adapters = adapters
        self._kept: dict[Attention, KeysValues] = {}

    @staticmethod
    def stack(parts: "Sequence[Context]") -> "Context":
        """The context of a batch that consists of these parts' rows, in this order.

        Each part's keys and values are computed from it alone, so that no row depends on its
        company. Parts may differ in length: the shorter are padded, and padding has no weight.
        """
        return parts[0] if len(parts) == 1 else _Stack(parts)

    def keys_values(self, layer: "Attention") -> KeysValues:
        """The layer's keys and values, computed at the first call."""
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
    """Multi-head attention (arXiv 1706.03762) with the parameters and names of diffusers'."""

    def __init__(self, source: "DiffusersAttention", name: str = "attention"):
        """Take over the projections of `source`.

        Raises:
            CheckpointError: it does more than SDXL's attention does.
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
                f"{name}: attention with {', '.join(unknown)} is none of SDXL's; "
                "check the UNet's config"
            )
        self.heads = source.heads
        self.to_q = source.to_q
        self.to_k = cast(nn.Linear, source.to_k)
        self.to_v = cast(nn.Linear, source.to_v)
        self.to_out = cast(nn.ModuleList, source.to_out)

    def forward(self, x: Tensor, context: Context | Tensor | None = None) -> Tensor:
        """Attend from x [B, N, C] to a context of B rows or [B, L, D]; to x itself without one."""
        queries = self._split(self.to_q(x))
        if isinstance(context, Context):
            keys_values = context.keys_values(self)
        else:
            keys_values = KeysValues(*self.keys_values(x if context is None else context))
        return self.to_out[0](attend(queries, *keys_values))

    def keys_values(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, heads, L, head width] of tokens [B, L, D]."""
        return self._split(self.to_k(tokens)), self._split(self.to_v(tokens))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


def attend(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q kᵀ / √d + bias) v, the heads side by side.

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
