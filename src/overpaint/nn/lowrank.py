"""Changes of weights in compact form: LoRA, LoHa, LoKr, DoRA and full deltas, as values."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class WeightDelta(Protocol):
    """A tensor that is added to a weight, at a scale, in compact form."""

    def to_dense(self, weight: Tensor) -> Tensor:
        """Return the delta at scale 1, fp32, in the shape of `weight`.

        Args:
            weight: [out, in] or [out, in, k, k].

        Raises:
            ValueError: the delta has another shape than the weight. The message names it.
        """
        ...


@dataclass(frozen=True, eq=False)
class LowRank:
    """LoRA: B·A·α/r (arXiv 2106.09685, section 4.1), also for convolutions (LyCORIS, LoCon).

    Attributes:
        down: A, [r, in] or [r, in, k, k].
        up: B, [out, r] or [out, r, 1, 1].
        alpha_over_rank: α/r.
        mid: [r, r, k, k], the kernel between `down` and `up`, which then have kernels of size 1.
    """

    down: Tensor
    up: Tensor
    alpha_over_rank: float
    mid: Tensor | None = None

    def to_dense(self, weight: Tensor) -> Tensor:
        """Return the delta at scale 1; see `WeightDelta.to_dense`."""
        down, up = (t.to(weight.device, torch.float32) for t in (self.down, self.up))
        if self.mid is not None:
            mid = self.mid.to(weight.device, torch.float32)
            change = torch.einsum("or,rshw,si->oihw", up.flatten(1), mid, down.flatten(1))
        else:
            change = up.flatten(1) @ down.flatten(1)
        return _shaped(change * self.alpha_over_rank, weight)


@dataclass(frozen=True, eq=False)
class Loha:
    """LoHa: (B₁·A₁) ∘ (B₂·A₂)·α/r (arXiv 2108.06098, proposition 1; Tucker form, section 2.3).

    Attributes:
        first: B₁ [out, r], A₁ [r, in · k²], and the core [r, r, k, k] or None.
        second: B₂ [out, r], A₂ [r, in · k²], and the core [r, r, k, k] or None.
        alpha_over_rank: α/r.
    """

    first: tuple[Tensor, Tensor, Tensor | None]
    second: tuple[Tensor, Tensor, Tensor | None]
    alpha_over_rank: float

    def to_dense(self, weight: Tensor) -> Tensor:
        """Return the delta at scale 1; see `WeightDelta.to_dense`."""
        a, b = (_product(*part, weight) for part in (self.first, self.second))
        return _shaped(a * b * self.alpha_over_rank, weight)


@dataclass(frozen=True, eq=False)
class Lokr:
    """LoKr: C ⊗ D·α/r (arXiv 2212.10650, section 3); C, D or both can be products.

    Attributes:
        first: C [a, b], or B [a, r] and A [r, b].
        second: D [c, d] or [c, d, k, k], or B and A with the core [r, r, k, k] or None.
        alpha_over_rank: α/r, or 1 if neither C nor D is a product.
    """

    first: tuple[Tensor, ...]
    second: tuple[Tensor | None, ...]
    alpha_over_rank: float

    def to_dense(self, weight: Tensor) -> Tensor:
        """Return the delta at scale 1; see `WeightDelta.to_dense`."""
        c, d = (_factor(part, weight) for part in (self.first, self.second))
        for _ in range(d.ndim - c.ndim):
            c = c[..., None]
        return _shaped(torch.kron(c, d) * self.alpha_over_rank, weight)


@dataclass(frozen=True, eq=False)
class FullDelta:
    """A delta in full size.

    Attributes:
        change: the delta, in the weight's shape.
    """

    change: Tensor

    def to_dense(self, weight: Tensor) -> Tensor:
        """Return the delta at scale 1; see `WeightDelta.to_dense`."""
        return _shaped(self.change.to(weight.device, torch.float32), weight)


@dataclass(frozen=True, eq=False)
class Dora:
    """DoRA: another delta, after which the weight is rescaled to a learned magnitude.

    The changed weight is m·(W + Δ)/‖W + Δ‖ (arXiv 2402.09353, equation 5).

    Attributes:
        change: Δ.
        magnitude: m: one per output, [out] or [out, 1], or one per input as in LyCORIS, [1, in].
    """

    change: WeightDelta
    magnitude: Tensor

    def to_dense(self, weight: Tensor) -> Tensor:
        """Return the delta at scale 1; see `WeightDelta.to_dense`."""
        changed = weight.float() + self.change.to_dense(weight)
        kept = 1 if self.magnitude.ndim > 1 and self.magnitude.shape[0] == 1 else 0
        if self.magnitude.numel() != weight.shape[kept]:
            raise ValueError(f"{self.magnitude.numel()} magnitudes")
        others = [axis for axis in range(weight.ndim) if axis != kept]
        norm = changed.square().sum(others, keepdim=True).sqrt()
        magnitude = self.magnitude.to(weight.device, torch.float32).reshape(norm.shape)
        return changed * (magnitude / norm) - weight.float()


def combine_factors(changes: Sequence[tuple[WeightDelta, float]]) -> tuple[Tensor, Tensor] | None:
    """Return deltas at their scales as one product: up [out, r] and down [r, in · k²], fp32.

    Returns None if one of the deltas is not a product of two matrices.
    """
    low = [(c, scale) for c, scale in changes if isinstance(c, LowRank) and c.mid is None]
    if not changes or len(low) < len(changes):
        return None
    return (
        torch.cat([c.up.flatten(1).float() * (c.alpha_over_rank * scale) for c, scale in low], 1),
        torch.cat([c.down.flatten(1).float() for c, _ in low]),
    )


def merge_deltas(weight: Tensor, changes: Sequence[tuple[WeightDelta, float]]) -> Tensor:
    """Return a weight plus deltas at their scales, summed in fp32, in the weight's dtype.

    Raises:
        ValueError: a delta has another shape than the weight.
    """
    total = weight.to(torch.float32, copy=True)
    for change, scale in changes:
        total.add_(change.to_dense(weight), alpha=scale)
    return total.to(weight.dtype)


def _product(b: Tensor, a: Tensor, core: Tensor | None, weight: Tensor) -> Tensor:
    """Return B·A, or with a core LyCORIS's Tucker form, where B is [r, out] and A is [r, in]."""
    b, a = (t.to(weight.device, torch.float32) for t in (b, a))
    if core is None:
        return b @ a.flatten(1)
    core = core.to(weight.device, torch.float32)
    return torch.einsum("ijkl,jr,ip->prkl", core, a, b)


def _factor(part: tuple[Tensor | None, ...], weight: Tensor) -> Tensor:
    known = [t.to(weight.device, torch.float32) for t in part if t is not None]
    if len(known) == 1:
        return known[0]
    if len(known) == 2:
        b, a = known
        return (b @ a.flatten(1)).reshape(len(b), *a.shape[1:])
    b, a, core = known
    return torch.einsum("ijkl,ip,jr->prkl", core, b, a)


def _shaped(change: Tensor, weight: Tensor) -> Tensor:
    if change.numel() != weight.numel():
        raise ValueError(f"a change of {list(change.shape)}")
    return change.reshape(weight.shape)
