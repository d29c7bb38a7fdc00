"""A dialect: one wire format that clients speak, as a value that the application installs."""

from collections.abc import Callable
from dataclasses import dataclass

from fastapi import APIRouter, Response

from overpaint.server.jobs.webhooks import MakePayload


@dataclass(frozen=True)
class Dialect:
    """One wire format.

    Each package of `overpaint.server.api` exports its dialect, and `create_app` installs it.
    """

    name: str
    """The name that jobs store (`Job.origin.dialect`), so that webhooks find their payload."""

    tag: str
    """The tag of the routes in the OpenAPI document."""

    description: str
    """The description of the tag in the OpenAPI document, in Markdown."""

    router: APIRouter
    """The routes. Their route class answers errors with `error_response`."""

    error_response: Callable[[Exception], Response]
    """Makes the response to one of `problems.HANDLED_ERRORS`, in the dialect's own format."""

    webhook_payload: MakePayload | None = None
    """Makes the body of a webhook for a job; None if the dialect has no webhooks."""
