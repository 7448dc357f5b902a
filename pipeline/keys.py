"""The keys of the settings, derived from the sections' dataclasses: their names, and what values they take."""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import re
import types
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from pipeline.sections import Settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


class BadValueError(ValueError):
    """A value that a key does not take; the text says what it takes."""


@dataclass(frozen=True, slots=True)
class Key:
    """One key.

    Attributes:
        section: name of the section, a field of :class:`~pipeline.sections.Settings`.
        name: of the field in the section's dataclass.
        kind: ``int``, ``float``, ``bool``, ``str`` or a ``Literal`` of strings; of the items where ``many`` holds.
        many: the value is a tuple.
        default: of the field. None stands for a choice made later, and cannot be written down.
        rules: the field's metadata.
        meaning: what the docstring of the section says of it.
    """

    section: str
    name: str
    kind: Any
    many: bool
    default: Any
    rules: Mapping[str, Any]
    meaning: str = ""

    @property
    def path(self) -> str:
        """``section.name``, which is also the flag's destination in argparse."""
        return f"{self.section}.{self.name}"

    @property
    def variable(self) -> str:
        """The environment variable."""
        return f"RAYSIGHT_{self.section}_{self.name}".upper()

    @property
    def choices(self) -> tuple[str, ...]:
        """The allowed values where they are few."""
        return get_args(self.kind) if get_origin(self.kind) is Literal else ()

    @property
    def allowed(self) -> str:
        """What the key takes, for a message."""
        one = f"one of {', '.join(self.choices)}" if self.choices else _NAMES[self.kind]
        low, above, high = (self.rules.get(name) for name in ("minimum", "above", "maximum"))
        if low is not None and high is not None:
            one += f" from {low} to {high}"
        elif low is not None:
            one += f", at least {low}"
        elif above is not None:
            one += f" above {above}"
        elif high is not None:
            one += f", at most {high}"
        return f"a list, each {one}" if self.many else one

    def check(self, value: object) -> Any:
        """The value of a TOML file as the field's type.

        Raises:
            BadValueError: the key does not take it.
        """
        if not self.many:
            return self._check_one(value)
        if not isinstance(value, (list, tuple)):
            raise BadValueError(f"must be {self.allowed}")
        return tuple(self._check_one(item) for item in value)

    def parse(self, text: str) -> Any:
        """The value that a variable or a flag spells. A list has commas between its items.

        Raises:
            BadValueError: the key does not take it.
        """
        if self.many:
            return self.check([item.strip() for item in text.split(",")])
        return self.check(self._read(text.strip()))

    def _read(self, text: str) -> object:
        if self.kind is bool:
            return {"true": True, "false": False}.get(text.lower(), text)
        try:
            return self.kind(text) if self.kind in (int, float) else text
        except ValueError:
            return text

    def _check_one(self, value: object) -> Any:
        if self.kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        wanted = str if self.choices else self.kind
        if type(value) is not wanted or value == "" or (self.choices and value not in self.choices):
            raise BadValueError(f"must be {self.allowed}{nearest(value, self.choices)}")
        if isinstance(value, (int, float)) and not self._in_range(value):
            raise BadValueError(f"must be {self.allowed}")
        return value

    def _in_range(self, value: float) -> bool:
        low, above, high = (self.rules.get(name) for name in ("minimum", "above", "maximum"))
        return (
            math.isfinite(value)
            and (low is None or value >= low)
            and (above is None or value > above)
            and (high is None or value <= high)
        )

    def anchor(self, value: Any, folder: Path) -> Any:
        """The value, with a relative path below ``folder``: workers and other commands have folders of their own.

        Only keys with the rule ``path`` have any; their default and what has a scheme (``s3://``, ``random:``) is none.
        """
        if not self.rules.get("path") or value is None or value == self.default or _SCHEME.match(value):
            return value
        return str(folder.absolute() / Path(value).expanduser())


@functools.cache
def all_keys() -> dict[str, Key]:
    """``section.name`` → key, in the order of the dataclasses."""
    keys = (
        _key(
            section,
            item.name,
            hints[item.name],
            default=item.default if item.default_factory is MISSING else item.default_factory(),
            rules=item.metadata,
            meaning=meanings.get(item.name, ""),
        )
        for section, kind in get_type_hints(Settings).items()
        for hints, meanings in [(get_type_hints(kind), _meanings(kind))]
        for item in fields(kind)
    )
    return {key.path: key for key in keys}


def _meanings(section: type) -> dict[str, str]:
    """Field → what stands of it below ``Attributes:`` in the docstring."""
    _, _, text = (inspect.getdoc(section) or "").partition("Attributes:\n")
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", text, re.MULTILINE)
    return {name: " ".join(words.replace("``", "").split()) for name, words in entries}


def _key(section: str, name: str, hint: Any, *, default: Any, rules: Mapping[str, Any], meaning: str) -> Key:
    optional = get_origin(hint) in (Union, types.UnionType)
    if optional:
        (hint,) = (part for part in get_args(hint) if part is not type(None))
    many = get_origin(hint) is tuple
    if many:
        hint = get_args(hint)[0]
    assert (default is None) == optional, f"{section}.{name}: an optional key is one whose default is None"
    assert hint in _NAMES or get_origin(hint) is Literal, f"{section}.{name}: no way to write a {hint}"
    return Key(section, name, hint, many, default, rules, meaning)


def nearest(word: object, words: Iterable[str]) -> str:
    """``; did you mean …?``, or nothing when no word is near."""
    close = difflib.get_close_matches(str(word), list(words), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""
