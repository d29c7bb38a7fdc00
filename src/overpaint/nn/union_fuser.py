"""What control nets need besides the UNet's blocks."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from diffusers.models.controlnets.controlnet_union import ControlNetUnionModel


def isolate_rows(net: "ControlNetUnionModel") -> None:
    """Have each row of a batch alone in a union net's fuser, in place.

    As published, and in diffusers, its attention runs along the batch. With one row, or with the
    two equal ones of guidance, it then sees nothing but itself; and so it does here in any company.
    """
    layers: Any = net.transformer_layes
    for layer in layers:
        layer.attention = partial(_alone, layer.attention)


def _alone(attention: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Tokens [B, n, C] through attention that sees one at a time."""
    return attention(x.reshape(1, -1, x.shape[2])).view_as(x)
