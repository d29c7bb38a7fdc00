"""Signed links."""

import base64
import hashlib
import hmac
import time
from urllib.parse import urlencode

LINK_LIFETIME_S = 3600
"""Seconds that a signed link works, as Replicate's and OpenAI's do."""


class LinkSigner:
    """Signed links to pictures, for clients that cannot send a key."""

    def __init__(self, secret: str):
        """Sign by a secret, which all servers of a store share."""
        self._secret = secret.encode()

    def sign_query(self, job: str, file: str) -> str:
        """Make the query that lets a link to a result work without a key for `LINK_LIFETIME_S`."""
        expires = int(time.time()) + LINK_LIFETIME_S
        return urlencode({"expires": expires, "signature": self._signature(job, file, expires)})

    def verify(self, job: str, file: str, expires: int, signature: str) -> bool:
        """Whether a signature is ours, and the link has not expired."""
        right = self._signature(job, file, expires)
        return hmac.compare_digest(right.encode(), signature.encode()) and time.time() < expires

    def _signature(self, job: str, file: str, expires: int) -> str:
        mac = hmac.digest(self._secret, f"{job}/{file}.{expires}".encode(), hashlib.sha256)
        return base64.urlsafe_b64encode(mac).decode().rstrip("=")
