"""The fuser of union ControlNets, made independent of the batch."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from diffusers.models.controlnets.controlnet_union import ControlNetUnionModel


def isolate_rows(net: "ControlNetUnionModel") -> None:
    """Make a union ControlNet's fuser process each row of a batch separately, in place.

    In the published code and in diffusers, its attention runs along the batch axis. With one row,
    or with the two equal rows of guidance, each row then attends only to itself. This function
    gives the same result in every batch.
    """
    layers: Any = net.transformer_layes
    for layer in layers:
        layer.attention = partial(_alone, layer.attention)


def _alone(attention: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Run attention on tokens [B, n, C], with each token in a sequence of length one."""
    return attention(x.reshape(1, -1, x.shape[2])).view_as(x)
