"""Responses of AUTOMATIC1111's API."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class GenerationResponse(BaseModel):
    """Images and their settings."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    images: list[str]
    """Image files as base64."""
    parameters: dict[str, Any]
    """Fields of the request."""
    info: str
    """JSON text: seeds, and the settings text of each image."""


class ProgressState(BaseModel):
    """State of the request that the client sees."""

    skipped: bool = False
    interrupted: bool = False
    stopping_generation: bool = False
    job: str = ""
    job_count: int = 0
    job_timestamp: str = "0"
    job_no: int = 0
    sampling_step: int = 0
    sampling_steps: int = 0


class ProgressResponse(BaseModel):
    """Progress of a request that has not ended."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    progress: float = 0.0
    """Progress from 0 to 1; 0 if there is no such request."""
    eta_relative: float = 0.0
    """Estimated seconds until the request ends."""
    state: ProgressState = Field(default_factory=ProgressState)
    """The request and its steps; `job` is the id of its first job that has not ended."""
    current_image: str | None = None
    """A preview as base64."""
    textinfo: str | None = None
    """The number of jobs that run before this one."""


class TaskProgressResponse(BaseModel):
    """Progress of a request that the client names."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    active: bool = False
    """The request is running."""
    queued: bool = False
    """The request is waiting."""
    completed: bool = False
    """The request has ended."""
    progress: float | None = None
    """Progress from 0 to 1."""
    eta: float | None = None
    """Estimated seconds until the request ends."""
    live_preview: str | None = None
    """A preview as a data: URI."""
    id_live_preview: int | None = -1
    """Number of the preview, to repeat in the next request."""
    textinfo: str | None = None
    """The number of jobs that run before this one."""


class PngInfoResponse(BaseModel):
    """Settings of an image."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    info: str
    """AUTOMATIC1111's settings text; empty if the image has none."""
    items: dict[str, str]
    """All texts of the file's metadata."""
    parameters: dict[str, str]
    """Settings in the last line of the settings text."""
