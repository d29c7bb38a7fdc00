"""The blocks of SDXL's UNet and ControlNets, without diffusers' options and their cost.

`install_blocks` replaces diffusers' blocks by these. They keep the parameters and their names, and
compute the same values. There are two differences: `encoder_hidden_states` can be a `Context`, and
channels_last activations stay channels_last.
"""

from typing import TYPE_CHECKING, Any, cast

from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn
from torch.nn import functional as F

from overpaint.errors import CheckpointError
from overpaint.nn.attention import Attention, Context

if TYPE_CHECKING:
    from diffusers.models.attention_processor import Attention as DiffusersAttention
    from diffusers.models.controlnets.controlnet import ControlNetModel
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel


def install_blocks(network: "UNet2DConditionModel | ControlNetModel") -> None:
    """Replace the blocks of a network by those of this module, in place.

    Raises:
        CheckpointError: a block has an option that SDXL's blocks do not use.
    """
    _replace(network, "")


def _replace(parent: nn.Module, path: str) -> None:
    for name, child in list(parent.named_children()):
        where = f"{path}{name}"
        match child:
            case ResnetBlock2D():
                setattr(parent, name, ResnetBlock(child, where))
            case Transformer2DModel():
                setattr(parent, name, SpatialTransformer(child, where))
            case _:
                _replace(child, f"{where}.")


def _require(where: str, options: dict[str, bool]) -> None:
    if odd := [name for name, as_expected in options.items() if not as_expected]:
        raise CheckpointError(
            f"{where}: SDXL's networks have another value for {', '.join(odd)}. Check the config."
        )


class ResnetBlock(nn.Module):
    """A residual block, shifted by the time embedding (arXiv 2006.11239, appendix B)."""

    def __init__(self, source: ResnetBlock2D, where: str = "resnet"):
        super().__init__()
        _require(
            where,
            {
                "up": not source.up,
                "down": not source.down,
                "time_embedding_norm": source.time_embedding_norm == "default",
                "skip_time_act": not source.skip_time_act,
                "output_scale_factor": source.output_scale_factor == 1,
                "non_linearity": isinstance(source.nonlinearity, nn.SiLU),
                "dropout": source.dropout.p == 0,
            },
        )
        self.norm1 = source.norm1
        self.conv1 = source.conv1
        self.time_emb_proj = cast(nn.Linear, source.time_emb_proj)
        self.norm2 = source.norm2
        self.conv2 = source.conv2
        self.conv_shortcut = source.conv_shortcut

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        """Return [B, C', h, w] from x [B, C, h, w] and the time embedding [B, E]."""
        shift = self.time_emb_proj(F.silu(temb))[:, :, None, None]
        hidden = self.conv1(F.silu(self.norm1(x))) + shift
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        return hidden + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class SpatialTransformer(nn.Module):
    """Transformer blocks over a picture's cells as tokens (arXiv 2112.10752, appendix E.2.1)."""

    def __init__(self, source: Transformer2DModel, where: str = "attention"):
        super().__init__()
        _require(
            where,
            {
                "input": source.is_input_continuous,
                "use_linear_projection": source.use_linear_projection,
            },
        )
        self.norm = source.norm
        self.proj_in = source.proj_in
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(cast(BasicTransformerBlock, block), f"{where}.transformer_blocks.{i}")
            for i, block in enumerate(source.transformer_blocks)
        )
        self.proj_out = source.proj_out

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Context | Tensor,
        return_dict: bool = False,
        **extras: Any,
    ) -> tuple[Tensor]:
        """Return ([B, C, h, w],) from [B, C, h, w] and a context; diffusers' blocks call this.

        Raises:
            ValueError: the call has an attention mask or other extra arguments.
        """
        if given := [name for name, value in extras.items() if value is not None]:
            raise ValueError(
                f"{', '.join(given)}: not supported. Pass a Context, which masks its padding."
            )
        batch, channels, height, width = hidden_states.shape
        tokens = self.norm(hidden_states).permute(0, 2, 3, 1).reshape(batch, -1, channels)
        tokens = self.proj_in(tokens)
        for block in self.transformer_blocks:
            tokens = block(tokens, encoder_hidden_states)
        tokens = self.proj_out(tokens)
        return (hidden_states + tokens.view(batch, height, width, channels).permute(0, 3, 1, 2),)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention and feed-forward, each after a layer norm."""

    def __init__(self, source: BasicTransformerBlock, where: str = "block"):
        super().__init__()
        _require(
            where,
            {
                "norm_type": source.norm_type == "layer_norm",
                "pos_embed": source.pos_embed is None,
                "only_cross_attention": not source.only_cross_attention,
                "attn2": source.attn2 is not None,
            },
        )
        self.norm1 = source.norm1
        self.attn1 = Attention(source.attn1, f"{where}.attn1")
        self.norm2 = cast(nn.LayerNorm, source.norm2)
        self.attn2 = Attention(cast("DiffusersAttention", source.attn2), f"{where}.attn2")
        self.norm3 = cast(nn.LayerNorm, source.norm3)
        self.ff = source.ff

    def forward(self, x: Tensor, context: Context | Tensor) -> Tensor:
        """Return [B, N, C] from tokens [B, N, C], which attend to each other and to the context."""
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))
