"""Globs over keys and URIs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_PART = re.compile(r"\*\*/|\*\*|\*|\?|\[!?\]?[^\]/]*\]|.", re.DOTALL)


def matcher(patterns: Sequence[str]) -> Callable[[str], bool]:
    """Whether a name matches one of the patterns.

    ``*`` stands for any characters but ``/``, ``?`` for one of them, ``[abc]``, ``[a-z]`` and ``[!abc]`` for one of a
    set, ``**`` for anything at all, and ``**/`` for any number of folders, none included. A pattern without ``/`` is
    held against the last part of the name, as git does it; one with ``/`` against the whole of it. Case counts.
    """
    parts = [re.compile(_translate(pattern), re.DOTALL) for pattern in patterns if "/" not in pattern]
    wholes = [re.compile(_translate(pattern), re.DOTALL) for pattern in patterns if "/" in pattern]

    def matches(name: str) -> bool:
        last = name.rpartition("/")[2]
        return any(part.fullmatch(last) for part in parts) or any(whole.fullmatch(name) for whole in wholes)

    return matches


def _translate(pattern: str) -> str:
    """The regular expression of a pattern."""
    result = ""
    start = True
    for part in _PART.findall(pattern):
        if part == "**/":
            # Whole folders alone: "a**/b" is "a*" and then some, not "a" with folders behind it.
            result += "(?:.*/)?" if start else ".*/"
        elif part == "**":
            result += ".*"
        elif part == "*":
            result += "[^/]*"
        elif part == "?":
            result += "[^/]"
        elif len(part) > 1:
            result += _translate_set(part)
        else:
            result += re.escape(part)
        start = part.endswith("/")
    return result


def _translate_set(part: str) -> str:
    body = part[1:-1]
    negated = body.startswith("!")
    body = body.removeprefix("!")
    members = []
    index = 0
    while index < len(body):
        low, high = body[index], body[index]
        if index + 2 < len(body) and body[index + 1] == "-":
            high = body[index + 2]
            index += 2
        index += 1
        if low <= high:
            members.append(f"{re.escape(low)}-{re.escape(high)}")
    if negated:
        return f"[^/{''.join(members)}]"
    return f"(?!/)[{''.join(members)}]" if members else "(?!)"
