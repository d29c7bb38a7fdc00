"""Requests: their fields, parts, tags and checks."""

from overpaint.request.model import Request as Request
