"""Settings of the server: typed, frozen values that the entry point makes and passes in.

`ServerSettings` holds everything that an operator can change. `settings_sources` reads it from
command-line flags, environment variables and a TOML file. Each package of the server receives the
group of settings that it needs; none reads the environment.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)

from overpaint.engine.config import EngineConfig
from overpaint.engine.postprocess import PostprocessConfig
from overpaint.engine.profile import Profile
from overpaint.errors import RequestError
from overpaint.system.memory import read_memory_budget, read_total_memory

FetchPolicy = Literal["none", "public", "all"]
"""Which picture URLs the server fetches: none, those at public addresses, or private ones too."""

LogFormat = Literal["text", "json"]
ModelPart = Literal["unet", "vae", "text_encoder", "text_encoder_2"]

DATA_FOLDER = Path("overpaint-data")
DAY_S = 86_400
MIB = 2**20
SDXL_SIDE_PX = 1024


@dataclass(frozen=True)
class Flag:
    """The command-line option of a setting.

    Attributes:
        name: the option, such as `--keep`.
        shown_default: text that `--help` shows in place of the default.
        minimum: the smallest value that the command line accepts, where the setting itself has
            none.
    """

    name: str
    shown_default: str | None = None
    minimum: float | None = None


class _Settings(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=False
    )


class Limits(_Settings):
    """Upper bounds on what clients send and keep waiting; the server rejects what exceeds them."""

    queued_jobs: Annotated[int, Flag("--queue", minimum=1)] = Field(default=10_000, ge=0)
    """Jobs that may wait. In a full queue, an API key that has less than its share still has room,
    up to twice the limit."""
    queued_jobs_per_key: Annotated[
        int | None, Flag("--queue-per-key", shown_default="all", minimum=1)
    ] = Field(default=None, ge=0)
    """Jobs of one API key that may wait."""
    queued_work_s: float = float("inf")
    """Seconds of estimated work that may wait, over all jobs."""
    stored_chars: int = MIB
    """Characters of a job's request as JSON, without its pictures, with the fields that its client
    API keeps."""
    listed_chars: int = 8 * MIB
    """Characters of these requests in one page of a list of jobs. The page ends earlier."""
    result_pixels: int = 2**28
    """Pixels of all results of one request together, estimated from its sizes."""
    job_memory_gb: float | None = None
    """GiB that jobs may need at once beside the weights, by an estimate from the sizes of their
    pictures and prompts. The server refuses a larger job; other jobs wait for each other.
    Default: half of the machine's memory. On a GPU, jobs also wait for each other if they need more
    than half of its memory that is free after the first model is loaded."""
    free_disk_bytes: int = 64 * MIB
    """Bytes that must be free on the disk before the server accepts a job or an upload."""
    request_head_bytes: int = 2**17
    """Bytes of the request line and headers. Longer ones are answered with 400."""
    body_bytes: int = 128 * MIB
    """Bytes of a request body: a picture and its mask in base64."""
    pending_body_bytes: int | None = None
    """Bytes of all requests that are not answered yet: their bodies, and the stored files and URLs
    that they name. API keys share them like the queue. Default: a quarter of the machine's
    memory."""
    upload_bytes: int = 64 * MIB
    """Bytes of one upload, and of all pictures that are fetched for one request."""
    json_separators: int = 100_000
    """Brackets and commas in JSON. Parsed JSON takes dozens of times its size in memory."""
    event_streams_per_key: int = 1024
    """Clients of one API key that follow events, or wait for a job by `GET`, at once."""


DEFAULT_LIMITS = Limits()


class HttpSettings(_Settings):
    """Timeouts of connections, requests and links."""

    request_head_timeout_s: float = 30.0
    """Seconds until the request headers must be complete."""
    request_body_timeout_s: float = 30.0
    """Seconds of waiting for a request body after which its rate is checked, again and again."""
    min_body_rate_bytes_per_s: int = 4096
    """Bytes of a request body for each second that the server waited for it."""
    request_body_total_timeout_s: float = 900.0
    """Seconds that the server waits for a request body altogether."""
    max_connections: int | None = None
    """Open connections. For a new one, the server closes the one that has waited longest for a
    request. Default: the limit of open files less 128, or half of it."""
    response_timeout_s: float = 30.0
    """Seconds after which the server closes a connection whose client reads nothing."""
    keep_alive_s: int = 75
    """Seconds that an idle connection stays open. Clients and load balancers close their
    connections earlier (httpx after 5 s, load balancers after 60 s), so the server does not close
    one that is about to be used."""
    shutdown_timeout_s: int = 5
    """Seconds that open connections have after all running jobs have ended."""
    disconnect_poll_interval_s: float = 5.0
    """Seconds between two checks whether a client that waits for a job is still connected."""
    event_comment_interval_s: float = 10.0
    """Seconds without an event after which an event stream sends a comment. Proxies close
    connections without traffic (nginx after 60 s)."""
    signed_link_lifetime_s: int = 3600
    """Seconds that a signed link works, as those of Replicate and OpenAI do."""


class StoreSettings(_Settings):
    """How the server uses the job store."""

    idle_transaction_timeout_s: float = 30.0
    """Seconds after which Postgres ends an idle transaction, so that its locks do not block
    others."""
    key_cache_s: float = 2.0
    """Seconds that the server caches which API keys are valid."""
    cleanup_interval_s: float = 60.0
    """Seconds between two removals of expired jobs and uploads."""
    file_cleanup_interval_s: float = 3600.0
    """Seconds between two searches of the disk for files that no job needs."""


class FetchSettings(_Settings):
    """How the server fetches pictures that requests name by URL."""

    timeout_s: float = 20.0
    """Seconds that all pictures of one request have together."""
    concurrent_requests_per_key: int = 8
    """Requests of one API key whose pictures are fetched at once."""
    pending_requests_per_key: int = 64
    """Requests of one API key whose pictures are fetched or wait for that."""
    urls_per_request: int = 16
    """URLs that one request may name."""
    small_chunks: int = 1000
    """Chunks below 1 KiB that a response may have."""
    public_ports: tuple[int, ...] = (80, 443)
    """Ports that the server contacts at public addresses."""


class WebhookSettings(_Settings):
    """How the server delivers webhooks."""

    retry_delays_s: tuple[float, ...] = (
        *(5.0, 300.0, 1800.0, 7200.0, 18_000.0),
        *(36_000.0, 50_400.0, 72_000.0, 86_400.0),
    )
    """Seconds before each retry. The default makes ten attempts over three days."""
    retry_jitter: float = 0.1
    """Random part of a retry delay, so that failed deliveries do not repeat at the same moment."""
    poll_interval_s: float = 0.5
    """Seconds between two looks for due webhooks, and between two `logs` webhooks of one job."""
    timeout_s: float = 15.0
    """Seconds that a receiver has to answer."""
    lease_s: float = 60.0
    """Seconds after which another server may deliver a webhook that this server took."""
    concurrent_deliveries: int = 64
    """Webhooks that are delivered at once."""
    concurrent_deliveries_per_key: int = 16
    """Webhooks of one API key that are delivered at once."""


class WorkerSettings(_Settings):
    """How the supervisor watches the worker process."""

    lease_s: float = 15.0
    """Seconds without a heartbeat of its server after which another server may take over a job."""
    step_timeout_s: float = 600.0
    """Seconds of silence after which the supervisor replaces the worker. The worker is silent in a
    step: one of 16 rows of 1024 pixels takes 200 seconds on two cores."""
    start_timeout_s: float = 1800.0
    """Seconds of silence after which a worker that loads its first model is replaced."""
    message_timeout_s: float = 60.0
    """Seconds after which the supervisor replaces a worker when a message stops halfway."""
    poll_interval_s: float = 1.0
    """Seconds between two looks for jobs of other servers and for expired leases."""
    max_jobs: int = 64
    """Jobs that the worker has at once."""
    max_jobs_per_key: int = 48
    """Jobs of one API key that the worker has at once, so that others need not wait for them."""


class ServerSettings(_Settings):
    """Everything that an operator can change."""

    models: Annotated[tuple[str, ...], Flag("--model", shown_default="miniature")] = Field(
        default=("miniature",), min_length=1
    )
    """Model that clients can request; the first one is the default. Can be repeated."""
    vae: Annotated[str | None, Flag("--vae", shown_default="those of the models")] = None
    """VAE of all models: a file, a diffusers folder, or the name of an added file. Models without a
    VAE need it."""
    model_parts: dict[str, dict[ModelPart, str]] = {}
    """Parts in their own files for single models, by the name of the model: a table with `unet`,
    `vae`, `text_encoder` and `text_encoder_2`."""
    host: Annotated[str, Flag("--host")] = "127.0.0.1"
    """Address to listen on."""
    port: Annotated[int, Flag("--port")] = Field(default=8000, ge=0, le=65_535)
    """Port to listen on."""
    data: Annotated[Path, Flag("--data")] = DATA_FOLDER
    """Folder of the job store, uploads and results."""
    store: Annotated[str | None, Flag("--store")] = None
    """URL of a job store on Postgres, postgresql+psycopg://…, which several servers can share."""
    api_keys: Annotated[tuple[str, ...], Flag("--key")] = Field(
        default=(),
        validation_alias=AliasChoices("api_keys", "OVERPAINT_API_KEYS", "OVERPAINT_KEY"),
        repr=False,
    )
    """API key that clients must send, beside those of `overpaint keys`. Can be repeated, and can be
    given as OVERPAINT_KEY. Required unless the server listens on a loopback address."""
    metrics_key: Annotated[str | None, Flag("--metrics-key")] = Field(default=None, repr=False)
    """Key that GET /metrics requires, and that gives access to nothing else. Without it, a server
    with API keys refuses GET /metrics, because metrics show what all API keys do."""
    allowed_hosts: Annotated[
        tuple[str, ...],
        Flag("--allowed-host", shown_default="loopback names on loopback, otherwise any"),
    ] = ()
    """Host name that clients may use for this server. Can be repeated."""
    allowed_origins: Annotated[
        tuple[str, ...], Flag("--allowed-origin", shown_default="the server's own")
    ] = ()
    """Origin of web pages that may call the API, such as https://example.org. Can be repeated."""
    allow_private_webhooks: Annotated[bool, Flag("--allow-private-webhooks")] = False
    """Deliver webhooks to addresses that are not public too."""
    fetch: Annotated[FetchPolicy, Flag("--fetch")] = "public"
    """Picture URLs that the server fetches for requests: none, those at public addresses, or all,
    which includes the server's own network."""
    device: Annotated[str, Flag("--device")] = "auto"
    """Device: cpu, cuda, cuda:1 or mps."""
    dtype: Annotated[str, Flag("--dtype")] = "auto"
    """Number format of the weights: bf16, fp16, fp32, int8 or fp8."""
    vram_gb: Annotated[float | None, Flag("--vram")] = Field(default=None, ge=0)
    """GB of a GPU; blocks of weights without room are copied to it when they run."""
    ram_gb: Annotated[float | None, Flag("--ram")] = Field(default=None, ge=0)
    """GB of the worker on the CPU; blocks without room are read from their files."""
    home: Annotated[Path | None, Flag("--home", shown_default="the user's data folder")] = None
    """Folder of added models."""
    models_dirs: Annotated[tuple[Path, ...], Flag("--models-dir", shown_default="none")] = ()
    """Folder of models to use in place: any folder, the root of AUTOMATIC1111's web UI or ComfyUI,
    or a file like ComfyUI's extra_model_paths.yaml. Can be repeated; in an environment variable,
    the paths are separated as in PATH."""
    refiner: Annotated[str | None, Flag("--refiner")] = None
    """Model of second stages, for clients that request one without a name."""
    memory_gb: Annotated[float, Flag("--memory")] = Field(default=float("inf"), ge=0.1)
    """GiB of weights that may be in memory at once."""
    profile: Annotated[Path | None, Flag("--profile")] = None
    """Step times of this machine, a file that `overpaint bench` writes."""
    cache_mb: Annotated[float, Flag("--cache")] = Field(default=512.0, ge=0)
    """MiB of encoded prompts, pictures and hints to keep."""
    keep_days: Annotated[float, Flag("--keep")] = Field(default=7.0, ge=0)
    """Days that the server keeps a job and its pictures."""
    keep_uploads_days: Annotated[float, Flag("--keep-uploads", minimum=0.01)] = Field(
        default=1.0, ge=0
    )
    """Days that the server keeps an upload that no job needs."""
    log: Annotated[LogFormat, Flag("--log")] = "text"
    """Format of the log, which the server writes to stderr."""
    safety_checker: Annotated[str | None, Flag("--safety-checker", shown_default="none")] = None
    """Safety checker; pictures that it flags are not published. A folder in the format of
    diffusers' StableDiffusionSafetyChecker, or MODULE:FUNCTION."""
    safety_optional: Annotated[bool, Flag("--safety-optional")] = False
    """Let clients turn the safety check off for their pictures."""
    otel: Annotated[bool, Flag("--otel")] = False
    """Send OpenTelemetry traces to the endpoint that the OTEL_… variables name."""
    watermark: Annotated[bool, Flag("--watermark")] = False
    """Add SDXL's invisible watermark to pictures."""
    c2pa_certificate: Annotated[Path | None, Flag("--c2pa-certificate")] = None
    """Certificate chain (PEM) that signs pictures by C2PA. Requires --c2pa-key."""
    c2pa_key: Annotated[Path | None, Flag("--c2pa-key")] = None
    """Private key (PEM) of the certificate."""
    grace_s: Annotated[float, Flag("--grace")] = Field(default=30.0, ge=0)
    """Seconds that running jobs have to finish when the server stops."""
    limits: Limits = Limits()
    """Upper bounds on what clients send and keep waiting."""
    http: HttpSettings = HttpSettings()
    """Timeouts of connections, requests and links."""
    database: StoreSettings = StoreSettings()
    """How the server uses the job store."""
    fetching: FetchSettings = FetchSettings()
    """How the server fetches pictures by URL."""
    webhooks: WebhookSettings = WebhookSettings()
    """How the server delivers webhooks."""
    worker: WorkerSettings = WorkerSettings()
    """How the supervisor watches the worker process."""

    @field_validator("models", "api_keys", "allowed_hosts", "allowed_origins", mode="before")
    @classmethod
    def _split_at_spaces(cls, value: Any) -> Any:
        """Return the words of a text, which is how an environment variable holds a list."""
        return tuple(value.split()) if isinstance(value, str) else value

    @field_validator("models_dirs", mode="before")
    @classmethod
    def _split_paths(cls, value: Any) -> Any:
        """Return the paths of a text, which is how an environment variable holds them."""
        return tuple(filter(None, value.split(os.pathsep))) if isinstance(value, str) else value

    @field_validator("model_parts")
    @classmethod
    def _check_model_parts(
        cls, value: dict[str, dict[ModelPart, str]], info: ValidationInfo
    ) -> dict[str, dict[ModelPart, str]]:
        """Refuse parts of a model that the server does not have."""
        models = info.data.get("models", ())
        if unknown := [name for name in value if name not in models]:
            raise ValueError(f"{unknown[0]!r} is not among the models")
        return value

    @property
    def pending_body_bytes(self) -> float:
        """Bytes of all requests that are not answered yet."""
        limit = self.limits.pending_body_bytes
        return read_total_memory() / 4 if limit is None else limit

    @property
    def job_memory_bytes(self) -> float:
        """Bytes that jobs may need at once beside the weights."""
        limit_gb = self.limits.job_memory_gb
        return read_memory_budget() if limit_gb is None else limit_gb * 2**30

    def read_profile(self) -> Profile | None:
        """Read the profile.

        Raises:
            OutputError: the file is not a profile.
            RequestError: the profile was measured with a model that this server does not have.
        """
        if self.profile is None:
            return None
        profile = Profile.read(self.profile)
        if profile.model not in self.models:
            raise RequestError(
                "profile",
                f"{self.profile} was measured with {profile.model!r}, which is not among the "
                "models; measure one that is with `overpaint bench`.",
            )
        return profile

    def engine_config(self) -> EngineConfig:
        """Return the part of the settings that the worker's engine needs.

        Raises:
            OutputError, RequestError: see `read_profile`.
        """
        return EngineConfig(
            models=self.models,
            device=self.device,
            dtype=self.dtype,
            vram_gb=self.vram_gb,
            ram_gb=self.ram_gb,
            home=self.home,
            models_dirs=self.models_dirs,
            vae=self.vae,
            model_parts={
                model: {str(part): own for part, own in parts.items()}
                for model, parts in self.model_parts.items()
            },
            memory_bytes=self.memory_gb * 2**30,
            cache_bytes=self.cache_mb * MIB,
            profile=self.read_profile(),
            job_memory_bytes=self.job_memory_bytes,
        )

    def postprocess_config(self) -> PostprocessConfig:
        """Return what the worker does to finished pictures."""
        return PostprocessConfig(
            self.safety_checker,
            self.device,
            self.watermark,
            self.c2pa_certificate,
            self.c2pa_key,
        )
