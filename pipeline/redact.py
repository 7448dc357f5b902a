"""Messages of errors without what must not be kept or passed on."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_LONGEST = 500
_HIDDEN = "***"
_SECRET_VARIABLE = re.compile(r"TOKEN|SECRET|PASSWORD|CREDENTIAL|_KEY(_|$)|AUTH")
_SHORTEST = 6
"""Characters that a value has at least: a shorter one, such as ``token``, is no secret and would blot out words."""

_IN_URLS = (
    (re.compile(r"(\w://)[^/@\s]+@"), r"\1"),  # user and password
    (re.compile(r"(https?://[^\s?]+)\?[^\s'\">)]*?(?=:?(?:[\s'\">)]|$))"), r"\1?" + _HIDDEN),  # signatures
)
_ACCESS_KEY = re.compile(r"\b(AKIA|ASIA)[A-Z0-9]{16}\b")


def redact(message: str, environment: Mapping[str, str] = os.environ) -> str:
    """The message, cut to 500 characters, without credentials and queries of URLs, AWS access keys, and the values of
    variables that hold secrets or the paths of their files."""
    for name, value in environment.items():
        if len(value) >= _SHORTEST and _SECRET_VARIABLE.search(name.upper()):
            message = message.replace(value, _HIDDEN)
    for pattern, instead in _IN_URLS:
        message = pattern.sub(instead, message)
    message = _ACCESS_KEY.sub(_HIDDEN, message)
    return message if len(message) <= _LONGEST else message[: _LONGEST - 1] + "…"
