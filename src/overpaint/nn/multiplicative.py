"""Changes that depend on the weight that they change: GLoRA, OFT, BOFT and IA³, as values.

Each class is a `WeightDelta` (`lowrank.py`). The layouts are those of LyCORIS.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Glora:
    """GLoRA: (W·A₁·A₂ + B₁·B₂)·α/r (arXiv 2306.07967, equation 10, as in LyCORIS).

    Attributes:
        a: A₁ [in, r] and A₂ [r, in], which act on the input axis.
        b: B₁ [out, r] and B₂ [r, in] or [r, in, k, k].
        alpha_over_rank: α/r.
    """

    a: tuple[Tensor, Tensor]
    b: tuple[Tensor, Tensor]
    alpha_over_rank: float

    def to_dense(self, weight: Tensor) -> Tensor:
        """Return the delta at scale 1; see `WeightDelta.to_dense`."""
        a1, a2, b1, b2 = (t.to(weight.device, torch.float32).flatten(1) for t in (*self.a, *self.b))
        moved = weight.float().movedim(1, -1) @ (a1 @ a2)
        added = (b1 @ b2).reshape(weight.shape)
        return (moved.movedim(-1, 1) + added) * self.alpha_over_rank


@dataclass(frozen=True, eq=False)
class Oft:
    """OFT: blocks of the output axis, each rotated (arXiv 2306.07280, section 4.2).

    Attributes:
        rotations: R, [blocks, n, n] with blocks · n = out. The change is Rᵀ·W − W.
        rescale: factors [out, 1, …] of the rotated weight, or None.
    """

    rotations: Tensor
    rescale: Tensor | None = None

    def to_dense(self, weight: Tensor) -> Tensor:
        """Return the delta at scale 1; see `WeightDelta.to_dense`."""
        rotations = self.rotations.to(weight.device, torch.float32)
        count, size, _ = rotations.shape
        if count * size != weight.shape[0]:
            raise ValueError(f"{count} blocks of {size} outputs")
        blocks = weight.float().reshape(count, size, -1)
        rotated = (rotations.transpose(1, 2) @ blocks).reshape(weight.shape)
        return _rescale(rotated, self.rescale) - weight.float()


@dataclass(frozen=True, eq=False)
class Boft:
    """BOFT: OFT's rotations in a butterfly of several factors (arXiv 2311.06243, section 4).

    Attributes:
        rotations: R, [factors, blocks, n, n] with blocks · n = out.
        rescale: factors [out, 1, …] of the rotated weight, or None.
    """

    rotations: Tensor
    rescale: Tensor | None = None

    def to_dense(self, weight: Tensor) -> Tensor:
        """Return the delta at scale 1; see `WeightDelta.to_dense`."""
        rotations = self.rotations.to(weight.device, torch.float32)
        factors, count, size, _ = rotations.shape
        stride = 2 ** (factors - 1) * (size // 2)
        if count * size != weight.shape[0] or size % 2 or weight.shape[0] % (2 * stride):
            raise ValueError(f"{factors} factors of {count} blocks of {size} outputs")
        rows = weight.float().flatten(1)
        for level, rotation in enumerate(rotations):
            near = 2**level * (size // 2)
            mixed = rows.unflatten(0, (-1, 2, near)).transpose(1, 2).reshape(count, size, -1)
            turned = (rotation @ mixed).reshape(-1, near, 2, rows.shape[1])
            rows = turned.transpose(1, 2).reshape(rows.shape)
        return _rescale(rows.reshape(weight.shape), self.rescale) - weight.float()


@dataclass(frozen=True, eq=False)
class Ia3:
    """IA³: each output or input is scaled (arXiv 2205.05638, section 3.3): the change is W·l.

    Attributes:
        factors: l, one for each output or input.
        on_input: True if l acts on the inputs.
    """

    factors: Tensor
    on_input: bool

    def to_dense(self, weight: Tensor) -> Tensor:
        """Return the delta at scale 1; see `WeightDelta.to_dense`."""
        axis = 1 if self.on_input else 0
        if self.factors.numel() != weight.shape[axis]:
            raise ValueError(f"{self.factors.numel()} factors")
        shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
        return weight.float() * self.factors.to(weight.device, torch.float32).reshape(shape)


def compute_rotations(blocks: Tensor, constraint: float) -> Tensor:
    """Return the rotations of blocks [..., n, n] by Cayley's transform: (I + Q)·(I − Q)⁻¹.

    Q is the skew-symmetric part of all blocks, scaled down to the norm `constraint` if it is
    longer. A constraint of 0 means none.
    """
    skew = blocks.float() - blocks.float().transpose(-1, -2)
    norm = skew.norm()
    if 0 < constraint < norm:
        skew = skew * (constraint / norm)
    one = torch.eye(skew.shape[-1])
    return (one + skew) @ (one - skew).inverse()


def _rescale(weight: Tensor, rescale: Tensor | None) -> Tensor:
    if rescale is None:
        return weight
    if rescale.numel() != weight.shape[0]:
        raise ValueError(f"{rescale.numel()} factors of rescale")
    return weight * rescale.to(weight).reshape(-1, *[1] * (weight.ndim - 1))
