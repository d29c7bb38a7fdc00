"""The parts of a request that are values themselves: ControlNet units and LoRAs."""

from typing import TYPE_CHECKING, Annotated, Any, Required, Self, TypedDict, Unpack

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    field_validator,
    model_validator,
)

from overpaint.errors import RequestError, did_you_mean, quote_value
from overpaint.picture import Picture
from overpaint.picture_sources import PictureSource
from overpaint.registry import HINT_OPTION_RANGES, HINTS, Weighting
from overpaint.request.constructors import ConstructorType, read_arguments
from overpaint.request.errors import translate_validation_error

ModelName = Annotated[str, Field(min_length=1, max_length=4096)]
"""A name, a folder, a file or a Hugging Face Hub id."""


class StrictModel(BaseModel, metaclass=ConstructorType):
    """A frozen value that rejects unknown fields and wrong types with a `RequestError`.

    Its constructor also takes what `constructors` converts.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        ser_json_bytes="base64",
        val_json_bytes="base64",
        use_attribute_docstrings=True,
    )

    @classmethod
    def read_arguments(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """Return the constructor's arguments as values of the fields.

        Raises:
            PictureError: a picture cannot be read.
        """
        return read_arguments(cls, fields)

    @classmethod
    def _canonical(cls, data: dict[str, Any]) -> dict[str, Any]:
        """Return the fields with names in their canonical spelling and derived defaults."""
        return data

    def _check(self) -> None:
        """Raise `RequestError` if fields contradict each other."""

    @model_validator(mode="wrap")
    @classmethod
    def _checked(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if isinstance(data, dict):
            data = cls._canonical(data)
        try:
            value = handler(data)
        except ValidationError as error:
            raise translate_validation_error(error, cls) from None
        value._check()
        return value


class ControlFields(TypedDict, total=False):
    """The parameters of `Control`, which documents their meanings."""

    kind: Required[str]
    net: ModelName | None
    image: PictureSource | None
    hint: PictureSource | None
    estimator: ModelName | None
    options: dict[str, float]
    scale: float
    start: float
    end: float
    weighting: Weighting
    mask: PictureSource | None


class Control(StrictModel):
    """A control image that steers the structure of the result through a ControlNet."""

    kind: str
    """The preprocessor: canny, lineart, scribble, softedge, depth, normal, segmentation, pose,
    tile, blur, shuffle or palette."""

    net: ModelName | None = None
    """The ControlNet: a name, folder or file. Default: the one that is named like the kind."""

    image: Picture | None = None
    """The picture from which the preprocessor makes the control image. Default: the request's
    image."""

    hint: Picture | None = None
    """A finished control image, in place of `image`. It needs the size of the request's image or
    the aspect ratio of the result."""

    estimator: ModelName | None = None
    """The network that estimates depth or classes for the preprocessor: a name, folder or Hugging
    Face Hub id. Default: the estimator published for the kind. Without one, the normal preprocessor
    reads the picture as a depth map."""

    options: dict[str, float] = Field(default_factory=dict)
    """Options of the preprocessor, such as `low` and `high` of canny."""

    scale: float = Field(default=1.0, ge=0, le=2)
    """How strongly the ControlNet steers: 0 (it does not run) to 2."""

    start: float = Field(default=0.0, ge=0, le=1)
    """Where the ControlNet begins to act, as a fraction of the denoising range: 0 is pure noise, 1
    is clean. The fraction means the same noise level at every strength."""

    end: float = Field(default=1.0, ge=0, le=1)
    """Where the ControlNet stops acting, as a fraction of the denoising range."""

    weighting: Weighting = "balanced"
    """How `scale` is spread over the levels of the UNet: "balanced" uses it everywhere, "soft"
    lowers it toward the finer levels, "guess" lowers it further and steers only the row with the
    prompt."""

    mask: Picture | None = None
    """Where the ControlNet acts: white; black is left alone. It needs the size of the control
    image."""

    if TYPE_CHECKING:

        def __init__(self, **fields: Unpack[ControlFields]) -> None: ...

    @property
    def acts(self) -> bool:
        """True if the ControlNet has any effect on the result."""
        return self.scale > 0 and self.start < self.end

    def _check(self) -> None:
        if self.kind not in HINTS:
            raise RequestError(
                "kind",
                f"There is no hint {quote_value(self.kind)}.{did_you_mean(self.kind, HINTS)}",
            )
        if self.image and self.hint:
            raise RequestError("hint", "It contradicts image. Give one of the two.")
        if self.hint and self.options:
            raise RequestError("options", "They have no effect on a finished hint. Leave them out.")
        if self.hint and self.estimator:
            raise RequestError("estimator", "It has no effect on a finished hint. Leave it out.")
        if self.estimator and HINTS[self.kind].sight is None:
            raise RequestError(
                "estimator",
                f"It has no effect on {self.kind} hints, which need no estimator. Leave it out.",
            )
        for name, value in self.options.items():
            least, most = HINT_OPTION_RANGES.get(name, (value, value))
            if not least <= value <= most:
                raise RequestError(
                    f"options.{name}",
                    f"{value:g} is out of range. It must be {least:g} to {most:g}.",
                )
        if self.start > self.end:
            raise RequestError("start", f"{self.start} is after the end, {self.end}. Swap them.")


class Lora(StrictModel):
    """A low-rank change to the weights of the model."""

    name: ModelName
    """The name under which `overpaint models add` stored the LoRA, or the name, title or hash of
    its file. The command line and the library also accept the path of a file."""

    scale: float = Field(default=1.0, ge=-10, le=10)
    """The factor of the changes to the UNet, -10 to 10; 0 turns them off."""

    text_scale: float | None = Field(default=None, ge=-10, le=10)
    """The factor of the changes to the text encoders, -10 to 10. Default: `scale`."""

    blocks: dict[str, Annotated[float, Field(ge=-10, le=10)]] = Field(default_factory=dict)
    """Additional factors for parts of the UNet, by the start of their module names, such as
    "up_blocks.0"; -10 to 10."""

    @field_validator("blocks")
    @classmethod
    def _check_blocks(cls, blocks: dict[str, float]) -> dict[str, float]:
        for name in blocks:
            if name.split(".")[0] not in UNET_PARTS:
                raise ValueError(
                    f"{quote_value(name)} is not a part of a UNet; parts begin with "
                    f"{', '.join(UNET_PARTS)}."
                )
        return blocks


UNET_PARTS = (
    *("down_blocks", "mid_block", "up_blocks", "conv_in", "conv_out", "conv_norm_out"),
    *("time_embedding", "add_embedding"),
)
"""The names with which the names of a UNet's modules begin."""
