"""What holds, and whence: defaults, a TOML file, the environment and flags, in rising order of strength."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from pipeline.errors import UsageError
from pipeline.keys import BadValueError, all_keys, nearest
from pipeline.sections import Settings

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping

CONFIG_VARIABLE = "RAYSIGHT_CONFIG"
"""As ``--config``, for what is started without flags."""

OTHER_VARIABLES = frozenset({CONFIG_VARIABLE, "RAYSIGHT_API_KEY"})
"""Variables with raysight's prefix that are no keys; the second is what the page's curl line calls a client's key."""

_PREFIX = "RAYSIGHT_"

# What Kubernetes puts into every container for a Service that is called raysight or raysight-serve.
_SERVICE_LINK = re.compile(r"_SERVICE_HOST$|_SERVICE_PORT(_\w+)?$|_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?$")
_SERVICE_URL = re.compile(r"(tcp|udp|sctp)://")


@dataclass(frozen=True, slots=True)
class Resolved:
    """Settings, and for each key (``section.name``) that is not at its default, where its value comes from."""

    settings: Settings
    origins: Mapping[str, str]


def load_settings(options: argparse.Namespace) -> Settings:
    """What a command goes by. Reads ``--config`` and the flags from ``options``, and the process's environment.

    Raises:
        UsageError: the file cannot be read, or something in it or in the environment is not a setting.
    """
    return resolve(options, os.environ).settings


def resolve(options: argparse.Namespace, environment: Mapping[str, str]) -> Resolved:
    """As :func:`load_settings`, with the origin of each value.

    Args:
        options: flags have destinations ``section.name``, and are absent when they were not given.
        environment: its variables that begin with ``RAYSIGHT_``; an empty one counts as not set.

    Raises:
        UsageError: as :func:`load_settings`.
    """
    given = {name: value for name, value in environment.items() if name.startswith(_PREFIX) and value}
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    here = Path.cwd()
    file = getattr(options, "config", None) or given.get(CONFIG_VARIABLE)
    layers: list[tuple[Path, Iterator[tuple[str, Any, str]]]] = [
        (here, _from_environment(given)),
        (here, _from_flags(options)),
    ]
    if file:
        layers.insert(0, (Path(file).absolute().parent, _from_file(Path(file))))
    for folder, layer in layers:
        for path, value, origin in layer:
            values[path] = all_keys()[path].anchor(value, folder)
            origins[path] = origin
    sections: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    for path, value in values.items():
        section, _, name = path.partition(".")
        sections[section][name] = value
    kinds = get_type_hints(Settings)
    return Resolved(Settings(**{name: kinds[name](**section) for name, section in sections.items()}), origins)


def _from_file(path: Path) -> Iterator[tuple[str, Any, str]]:
    try:
        document = tomllib.loads(path.read_bytes().decode())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(f"--config {path}: {reason}") from error
    keys = all_keys()
    sections = list(get_type_hints(Settings))
    for section, content in document.items():
        if section not in sections:
            raise UsageError(f"{path}: {_unknown_section(section, content, sections)}")
        if not isinstance(content, dict):
            raise UsageError(f"{path}: [{section}] must be a section, not {section} = …")
        for name, value in content.items():
            key = keys.get(f"{section}.{name}")
            if key is None:
                raise UsageError(f"{path}: [{section}] has no key {name}{_nearest_key(section, name)}")
            try:
                yield key.path, key.check(value), str(path)
            except BadValueError as error:
                raise UsageError(f"{path}: [{section}] {name} = {_show(value)}: {error}") from None


def _from_environment(given: Mapping[str, str]) -> Iterator[tuple[str, Any, str]]:
    keys = {key.variable: key for key in all_keys().values()}
    for variable, text in given.items():
        if variable in OTHER_VARIABLES or _SERVICE_LINK.search(variable) or _SERVICE_URL.match(text):
            continue
        if variable not in keys:
            raise UsageError(
                f"{variable} in the environment is not a setting{nearest(variable, (*keys, *OTHER_VARIABLES))}"
                " (see raysight config)"
            )
        try:
            yield keys[variable].path, keys[variable].parse(text), variable
        except BadValueError as error:
            raise UsageError(f"{variable}={text} in the environment: {error}") from None


def _from_flags(options: argparse.Namespace) -> Iterator[tuple[str, Any, str]]:
    keys = all_keys()
    for path, value in vars(options).items():
        if path in keys:
            yield path, tuple(value) if keys[path].many else value, "flag"


def _unknown_section(name: str, content: object, sections: list[str]) -> str:
    homes = [f"[{key.section}]" for key in all_keys().values() if key.name == name]
    if not isinstance(content, dict):
        belongs = f"; it belongs to {' or '.join(homes)}" if homes else ""
        return f"{name} stands outside of a section{belongs}"
    return f"there is no section [{name}], only {', '.join(f'[{item}]' for item in sections)}{nearest(name, sections)}"


def _nearest_key(section: str, name: str) -> str:
    homes = [f"[{key.section}]" for key in all_keys().values() if key.name == name]
    if homes:
        return f"; it is one of {' and '.join(homes)}"
    return nearest(name, (key.name for key in all_keys().values() if key.section == section))


def _show(value: object) -> str:
    """A value of the file as TOML spells it, cut short."""
    match value:
        case bool():
            text = str(value).lower()
        case str():
            text = json.dumps(value, ensure_ascii=False)
        case list():
            text = f"[{', '.join(map(_show, value))}]"
        case dict():
            text = f"{{{', '.join(f'{name} = {_show(item)}' for name, item in value.items())}}}"
        case _:
            text = str(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
