"""What several commands take: the model's options, and numbers that are checked as they are read."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TypeVar, get_args

from pipeline.config import Implementation, ModelConfig, Precision, Preset
from pipeline.errors import UsageError
from pipeline.storage import scheme

_Number = TypeVar("_Number", int, float)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """The options of the ``[model]`` section, which several commands share."""
    model = ModelConfig()
    add = parser.add_argument_group("model").add_argument
    add("--model", default=model.name, metavar="NAME", help="a timm model (default: %(default)s)")
    add(
        "--weights",
        default=model.weights,
        metavar="W",
        help="'pretrained' (the hub), a checkpoint file, or 'random:SEED' for trials (default: %(default)s)",
    )
    add("--preset", choices=get_args(Preset), default=model.preset, help="preprocessing (default: the model's own)")
    add(
        "--implementation",
        choices=get_args(Implementation),
        default=model.implementation,
        help="'reference' is timm's transform verbatim (default: %(default)s)",
    )
    add(
        "--precision",
        choices=get_args(Precision),
        default=model.precision,
        help="of the forward; 'auto' looks at the device (default: %(default)s)",
    )


def model_config(options: argparse.Namespace) -> ModelConfig:
    """The ``[model]`` section that the options give.

    Raises:
        UsageError: the weights are at a place that cannot be read yet.
    """
    values = {name: getattr(options, name) for name in ("weights", "preset", "implementation", "precision")}
    model = ModelConfig(name=options.model, **values)
    if scheme(model.weights):
        raise UsageError(f"--weights {model.weights}: download it and give the file's path, on every node alike")
    if not model.weights.startswith("random:") and model.weights != "pretrained":
        # A worker's folder is not this one; the name must mean the same file to all.
        model = replace(model, weights=str(Path(model.weights).expanduser().absolute()))
    return model


def positive(text: str) -> int:
    """1, 2, 3 …"""
    value = _number(text, int, "a positive whole number")
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive whole number")
    return value


def natural(text: str) -> int:
    """0, 1, 2 …"""
    value = _number(text, int, "a whole number")
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return value


def share(text: str) -> float:
    """A part of a machine, or several."""
    value = _number(text, float, "a number")
    if not 0 <= value < 1e6:
        raise argparse.ArgumentTypeError(f"{text} is not a share of a machine")
    return value


def rate(text: str) -> float:
    """A fraction, 0 to 1."""
    value = _number(text, float, "a number")
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def _number(text: str, kind: type[_Number], what: str) -> _Number:
    try:
        return kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}") from None
