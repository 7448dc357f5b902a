"""Who may ask: bearer keys, of which the server knows only the SHA-256."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import UsageError
from serve.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Sequence

_DIGEST = re.compile(r"[0-9a-f]{64}")
_CHALLENGE = {"WWW-Authenticate": "Bearer"}


class KeyRing:
    """The keys that are let in."""

    def __init__(self, digests: Sequence[str]) -> None:
        """Args: digests: SHA-256 of each key's UTF-8 bytes, in hex."""
        self._digests = tuple(bytes.fromhex(digest) for digest in digests)

    def check(self, authorization: str | None) -> None:
        """Raises ApiError 401 unless the header is ``Bearer KEY`` with a known key."""
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise ApiError(401, "missing_api_key", "give an API key: Authorization: Bearer KEY", headers=_CHALLENGE)
        # Of all, without stopping early: how long it takes must not depend on which key is right.
        digest = hashlib.sha256(key.strip().encode("latin-1")).digest()  # the header's own bytes: ASGI decodes them so
        if sum([hmac.compare_digest(digest, known) for known in self._digests]) == 0:
            raise ApiError(401, "invalid_api_key", "this API key is not known here", headers=_CHALLENGE)


def load_keys(path: str) -> KeyRing:
    """Reads a file with one SHA-256 in hex a line, anything after it being a comment; so are lines that begin with #.

    Raises:
        UsageError: the file cannot be read, or a line is something else. The line itself is not shown: it may be a key.
    """
    try:
        lines = Path(path).expanduser().read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not a text file"
        raise UsageError(f"the API keys in {path} cannot be read: {why}") from error
    digests = []
    for number, line in enumerate(lines, start=1):
        word = (line.split() or ["#"])[0]
        if word.startswith("#"):
            continue
        if not _DIGEST.fullmatch(word):
            raise UsageError(
                f"{path}, line {number}: not a SHA-256 in lower-case hex. Only digests are kept there:"
                ' printf %s "$KEY" | sha256sum'
            )
        digests.append(word)
    if not digests:
        raise UsageError(f'{path} holds no API key; add one: printf %s "$KEY" | sha256sum >> {path}')
    return KeyRing(digests)


def is_loopback(host: str) -> bool:
    """Whether an address that is listened on, or a Host header without its port, means this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_host(header: str | None) -> None:
    """Without keys, only requests to this machine by its own name are answered.

    Else a web page could point its own name here (DNS rebinding) and read the answers. Raises ApiError 403.
    """
    host = re.sub(r":[0-9]+$", "", header or "")
    if not is_loopback(host):
        raise ApiError(403, "host_not_allowed", "without API keys this server answers requests to localhost alone")
