"""Signed links to result files, for clients that cannot send an API key."""

import base64
import hashlib
import hmac
import time
from urllib.parse import urlencode

LINK_LIFETIME_S = 3600
"""Seconds that a signed link works, as for Replicate and OpenAI."""


class LinkSigner:
    """Signs links to result files and verifies their signatures."""

    def __init__(self, secret: str):
        """Use a secret that all servers of a job store share."""
        self._secret = secret.encode()

    def sign_query(self, job: str, file: str) -> str:
        """Make the query that lets a link to a result work without a key for `LINK_LIFETIME_S`."""
        expires = int(time.time()) + LINK_LIFETIME_S
        return urlencode({"expires": expires, "signature": self._signature(job, file, expires)})

    def verify(self, job: str, file: str, expires: int, signature: str) -> bool:
        """Return whether the signature is valid and the link has not expired."""
        right = self._signature(job, file, expires)
        return hmac.compare_digest(right.encode(), signature.encode()) and time.time() < expires

    def _signature(self, job: str, file: str, expires: int) -> str:
        mac = hmac.digest(self._secret, f"{job}/{file}.{expires}".encode(), hashlib.sha256)
        return base64.urlsafe_b64encode(mac).decode().rstrip("=")
