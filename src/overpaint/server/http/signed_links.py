"""Signed links to result files, for clients that cannot send an API key."""

import base64
import hashlib
import hmac
import time
from urllib.parse import urlencode


class LinkSigner:
    """Signs links to result files and verifies their signatures."""

    def __init__(self, secret: str, lifetime_s: int):
        """Use a secret.

        Args:
            secret: the same on all servers of a job store.
            lifetime_s: seconds that a link works.
        """
        self._secret = secret.encode()
        self._lifetime_s = lifetime_s

    def sign_query(self, job: str, file: str) -> str:
        """Make the query that lets a link to a result work without a key until it expires."""
        expires = int(time.time()) + self._lifetime_s
        return urlencode({"expires": expires, "signature": self._signature(job, file, expires)})

    def sign_path(self, job: str, file: str) -> str:
        """Make the part of a path that stands for the query of `sign_query`: EXPIRES/SIGNATURE."""
        expires = int(time.time()) + self._lifetime_s
        return f"{expires}/{self._signature(job, file, expires)}"

    def verify(self, job: str, file: str, expires: int, signature: str) -> bool:
        """Return whether the signature is valid and the link has not expired."""
        right = self._signature(job, file, expires)
        return hmac.compare_digest(right.encode(), signature.encode()) and time.time() < expires

    def _signature(self, job: str, file: str, expires: int) -> str:
        mac = hmac.digest(self._secret, f"{job}/{file}.{expires}".encode(), hashlib.sha256)
        return base64.urlsafe_b64encode(mac).decode().rstrip("=")
