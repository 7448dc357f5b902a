"""Settings as a TOML document."""

from __future__ import annotations

import json
import textwrap
from typing import TYPE_CHECKING, Any, get_type_hints

from pipeline.keys import all_keys
from pipeline.sections import Settings

if TYPE_CHECKING:
    from pipeline.keys import Key

_WIDTH = 100


def to_toml(settings: Settings) -> str:
    """A document that gives these settings back, every key explained.

    A value of None is a comment: it is the key's default, and TOML has no null.
    """
    return "\n".join(
        f"[{section}]\n" + "".join(_entry(settings, key) for key in all_keys().values() if key.section == section)
        for section in get_type_hints(Settings)
    )


def _entry(settings: Settings, key: Key) -> str:
    value = value_of(settings, key)
    meaning = key.meaning.replace("None ", "left out, it ")
    comment = textwrap.fill(meaning, _WIDTH, initial_indent="# ", subsequent_indent="# ")
    line = f"# {key.name} =    # {key.allowed}" if value is None else f"{key.name} = {literal(value)}"
    return f"{comment}\n{line}\n" if comment else f"{line}\n"


def value_of(settings: Settings, key: Key) -> Any:
    """What a key holds."""
    return getattr(getattr(settings, key.section), key.name)


def literal(value: Any) -> str:
    """A value as TOML writes it."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(literal, value))}]"
    if isinstance(value, str):
        # A JSON string is a TOML string, but that TOML wants DEL escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else repr(value)
