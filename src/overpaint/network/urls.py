"""Recognize URLs of pictures. This module imports no HTTP client."""

URL_SCHEMES = ("http", "https")
"""Schemes of the URLs that Overpaint downloads."""


def is_url(text: str) -> bool:
    """Return whether a text is a URL that `network.download` accepts, and not a path."""
    return text.lower().startswith(tuple(f"{scheme}://" for scheme in URL_SCHEMES))
