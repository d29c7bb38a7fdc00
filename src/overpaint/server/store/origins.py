"""Origins: the data that a dialect keeps with a job, in one type for each dialect.

The store keeps an origin with its job, as JSON. The field `dialect` names the type.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)


class OutputOptions(_Value):
    """How the images of a job are written, and how often previews are made."""

    kind: str = "png"
    """File name ending: png, jpg or webp."""

    options: Mapping[str, Any] = {}
    """Options of the encoder, such as `quality`."""

    preview_every: int = 0
    """Steps between two previews; 0 makes no previews."""


class _Origin(_Value):
    output: OutputOptions = OutputOptions()

    check_safety: bool = True
    """True if the safety checker of the server checks the images."""

    field_names: Mapping[str, str] = {}
    """The client's name for each field of `Request` that came under another name."""

    set_fields: tuple[str, ...] | None = None
    """Fields of the request that came with it, which no preset or few-step LoRA changes. None for
    jobs of earlier versions: all fields."""

    request_id: str | None = None
    """Id of the HTTP request that submitted the job."""

    trace: Mapping[str, str] = {}
    """W3C Trace Context headers of the HTTP request that submitted the job."""


class NativeOrigin(_Origin):
    """A job that came by Overpaint's own API."""

    dialect: Literal["native"] = "native"


class _PredictionOrigin(_Origin):
    base_url: str = ""
    """URL under which the client reached the server, without a path."""

    input: Mapping[str, Any] = {}
    """The inputs that the client sent, with links in place of data: URIs."""


class ReplicateOrigin(_PredictionOrigin):
    """A job that came by Replicate's API."""

    dialect: Literal["replicate"] = "replicate"


class CogOrigin(_PredictionOrigin):
    """A job that came by cog's API."""

    dialect: Literal["cog"] = "cog"

    client_fields: Mapping[str, Any] = {}
    """`id` and `created_at` of the prediction, where the client chose them."""


class OpenAIOrigin(_Origin):
    """A job that came by OpenAI's images API."""

    dialect: Literal["openai"] = "openai"

    base_url: str = ""
    """URL under which the client reached the server, without a path."""

    response_format: str = "b64_json"
    output_format: str = "png"
    quality: str = "auto"


class FalOrigin(_Origin):
    """A job that came by fal's API."""

    dialect: Literal["fal"] = "fal"

    base_url: str = ""
    """URL under which the client reached the server, without a path."""

    app: str = ""
    """Name of the app that the client called, with its owner."""

    prompt: str = ""
    sync_mode: bool = False
    """True if the client wants images inside the response in place of links."""


class A1111Origin(_Origin):
    """A job that came by AUTOMATIC1111's API."""

    dialect: Literal["a1111"] = "a1111"

    parameters: Mapping[str, Any] = {}
    """The fields of the request, without its images."""

    task: str = ""
    """The client's name for the request (`force_task_id`), or one for a request of several jobs;
    "" for the id of the job."""

    task_jobs: int = 1
    """Number of the request's jobs."""


Origin = NativeOrigin | ReplicateOrigin | CogOrigin | OpenAIOrigin | FalOrigin | A1111Origin

DIALECTS = ("native", "replicate", "cog", "openai", "fal", "a1111")

EARLIER_NAMES = {
    "wire": "dialect",
    "checked": "check_safety",
    "theirs": "field_names",
    "base": "base_url",
    "shown": "client_fields",
}
"""Names of fields in rows that programs up to schema version 4 wrote."""

_adapter: TypeAdapter[Origin] = TypeAdapter(Annotated[Origin, Field(discriminator="dialect")])


def read_origin(stored: Mapping[str, Any]) -> Origin:
    """Read an origin as it is stored, by this program or any earlier one.

    Fields that early programs did not write get their defaults. A job of an unknown dialect, or of
    a program that did not store the dialect yet, counts as the native API's.
    """
    fields = {EARLIER_NAMES.get(name, name): value for name, value in stored.items()}
    if fields.get("dialect") not in DIALECTS:
        fields["dialect"] = "native"
    return _adapter.validate_python(fields)


def write_origin(origin: Origin) -> dict[str, Any]:
    """Return an origin as it is stored."""
    return origin.model_dump(mode="json")
