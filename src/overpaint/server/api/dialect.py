"""A dialect: one wire format that clients speak, as a value that the application installs."""

from dataclasses import dataclass

from fastapi import APIRouter

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
    """The routes. Their class, from `make_route_class`, answers errors in the dialect's format."""

    webhook_payload: MakePayload | None = None
    """Makes the body of a webhook for a job; None if the dialect has no webhooks."""
