"""What several commands take: settings as flags, and numbers that are checked as they are read."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING, Any

from pipeline.keys import BadValueError, all_keys

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.keys import Key

_METAVARS = {int: "N", float: "X", str: "TEXT"}


def add_config_option(parser: argparse.ArgumentParser) -> None:
    """``--config``, of every command that goes by settings."""
    parser.add_argument(
        "--config",
        metavar="FILE.toml",
        help="settings; the environment and flags are stronger (default: $RAYSIGHT_CONFIG)",
    )


def add_setting(
    group: argparse._ActionsContainer,
    path: str,
    text: str,
    *,
    flag: str | None = None,
    metavar: str | None = None,
    default: str | None = None,
) -> None:
    """Offers one key of the settings as a flag. The flag holds no default of its own: it counts only when given.

    Args:
        group: a parser or a group of options.
        path: ``section.name``; the flag is ``--name`` with dashes, or ``flag``. One for a bool has a ``--no-`` twin.
        text: its help, without the default.
        metavar: what stands for the value in the help; by default it tells the type.
        default: the default in words, where the dataclass says None.
    """
    key = all_keys()[path]
    if default is None:
        default = (",".join(key.default) or "none") if key.many else str(key.default)
        default = default.lower() if key.kind is bool else default
    kind: dict[str, Any]
    if key.kind is bool:
        kind = {"action": argparse.BooleanOptionalAction}
    else:
        choices = f"{{{','.join(key.choices)}}}" if key.choices else _METAVARS[key.kind]
        kind = {"type": _parser(key), "metavar": metavar or choices, **({"action": "extend"} if key.many else {})}
    group.add_argument(
        flag or f"--{key.name.replace('_', '-')}",
        dest=key.path,
        default=argparse.SUPPRESS,
        help=f"{text} (default: {default})".replace("%", "%%"),
        **kind,
    )


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """The options of the ``[model]`` section, which several commands share."""
    group = parser.add_argument_group("model")
    add_setting(group, "model.name", "a timm model", flag="--model", metavar="NAME")
    add_setting(
        group,
        "model.weights",
        "'pretrained' (the hub), a checkpoint (a file or s3://), or 'random:SEED' for trials",
        metavar="W",
    )
    add_setting(
        group,
        "model.features",
        "what to keep: embedding, patches (of forward_features), classes (top 5)",
        metavar="LIST",
        default="embedding",
    )
    add_setting(
        group,
        "model.head",
        "a linear classifier for classes (a file or s3://)",
        metavar="FILE",
        default="the model's own",
    )
    add_setting(group, "model.preset", "preprocessing; 'timm' is the model's own")
    add_setting(group, "model.image_size", "side of the model's input in pixels", default="the preset's")
    add_setting(
        group,
        "model.implementation",
        "'reference' is timm's transform verbatim; 'scaled' decodes large JPEGs in part",
    )
    add_setting(group, "model.precision", "of the forward; 'auto' looks at the device")
    add_setting(group, "model.normalize", "scale embeddings to an L2 norm of 1")
    add_setting(group, "model.dtype", "that embeddings are stored in")
    add_setting(group, "model.compile", "faster: by OpenVINO on a CPU, else torch.compile after minutes at the start")


def _parser(key: Key) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            return key.parse(text)
        except BadValueError as error:
            raise argparse.ArgumentTypeError(f"{text}: {error}") from None

    return parse


def natural(text: str) -> int:
    """0, 1, 2 …"""
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return value


def dollars(text: str) -> float:
    """A price, above 0."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a price")
    return value
