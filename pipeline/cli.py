"""The commands of the batch half: their options, and what they print."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from pipeline.config import (
    Config,
    ImageLimits,
    Implementation,
    JobConfig,
    ModelConfig,
    Precision,
    Preset,
    StorageConfig,
)
from pipeline.errors import UsageError
from pipeline.storage import scheme

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

_Number = TypeVar("_Number", int, float)

EXIT_OK, EXIT_ERROR, EXIT_USAGE, EXIT_REJECTS, EXIT_INTERRUPTED = 0, 1, 2, 3, 4


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds ``extract``, ``embed`` and ``verify`` to the root parser."""
    _add_extract(commands)
    _add_embed(commands)
    _add_verify(commands)


def _add_extract(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("extract", help="turn the images below SOURCE into a Parquet dataset at DEST")
    parser.add_argument("source", metavar="SOURCE", help="a folder, or s3://bucket/prefix")
    parser.add_argument("dest", metavar="DEST", help="a folder, or s3://bucket/prefix")
    add_model_options(parser)
    job = JobConfig()
    add = parser.add_argument_group("job").add_argument
    count: dict[str, Any] = {"type": _positive, "metavar": "N"}
    share: dict[str, Any] = {"type": _share, "metavar": "X"}
    add("--batch-size", **count, help="images of one forward (default: 64 on a GPU, 2 on a CPU)")
    add("--chunk-rows", **count, help="images of a chunk, the unit of loss (default: 1024 on a GPU, 64 on a CPU)")
    add("--min-actors", **count, default=job.min_actors, help="actors from the start (default: %(default)s)")
    add("--max-actors", **count, help="actors at most (default: what fits)")
    add("--gpus-per-actor", **share, help="GPUs, or a fraction, of each actor (default: 1 where there are GPUs)")
    add("--cpus-per-actor", **share, help="CPUs of each actor (default: the node's, shared out)")
    add("--limit", **count, help="only the first so many images of the listing (default: all)")
    add("--dry-run", action="store_true", help="say what would be done, and do nothing")
    add(
        "--max-reject-rate",
        type=_rate,
        metavar="X",
        default=job.max_reject_rate,
        help="rejected fraction above which the exit code is 3 (default: %(default)s)",
    )
    add(
        "--address",
        metavar="RAY",
        help="a running Ray cluster (default: $RAY_ADDRESS, else Ray is started on this machine)",
    )
    parser.set_defaults(run=run_extract)


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


def _add_embed(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("embed", help="print or save the features of a few images, without Ray")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="a file, or s3://bucket/key")
    add_model_options(parser)
    parser.add_argument(
        "--format",
        choices=("json", "npy", "parquet"),
        default="json",
        help="of what comes out: 'npy' is the matrix alone (default: %(default)s)",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="where to (default: standard output)")
    parser.set_defaults(run=run_embed)


def _add_verify(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("verify", help="check a dataset: complete, unique, finite, and right")
    parser.add_argument("dest", metavar="DEST", help="a dataset: a folder, or s3://bucket/prefix")
    parser.add_argument(
        "--sample",
        type=_natural,
        default=16,
        metavar="N",
        help="rows computed again with timm's own code (default: %(default)s)",
    )
    parser.set_defaults(run=run_verify)


def run_extract(options: argparse.Namespace) -> int:
    """``raysight extract``."""
    names = {item.name for item in fields(JobConfig)} & set(vars(options))
    config = Config(
        source=options.source,
        dest=options.dest,
        model=model_config(options),
        job=JobConfig(**{name: getattr(options, name) for name in names}),
        address=options.address,
    )
    say = _say_to_stderr
    if options.dry_run:
        from pipeline.dryrun import dry_run

        return EXIT_OK if dry_run(config, print) else EXIT_USAGE
    from pipeline.job import run_job

    stop = threading.Event()
    with _signals_set(stop, say):
        summary = run_job(config, stop=stop, say=say)
    rate = summary.total_rejects / max(1, summary.total)
    dataset = config.dest.rstrip("/")
    code = EXIT_OK
    if not summary.complete:
        say("interrupted; what is committed stays. The same command goes on from there")
        code = EXIT_INTERRUPTED
    elif rate > config.job.max_reject_rate:
        say(
            f"{summary.total_rejects} of {summary.total} images were rejected ({rate:.1%}), more than"
            f" --max-reject-rate {config.job.max_reject_rate:g}; see {dataset}/rejects/"
        )
        code = EXIT_REJECTS
    else:
        rejects = f", {summary.total_rejects:,} in {dataset}/rejects/" if summary.total_rejects else ""
        say(f"complete: {summary.total - summary.total_rejects:,} rows in {dataset}/features/{rejects}")
    print(summary.line, flush=True)
    return code


class _signals_set:  # noqa: N801 — reads as what it does
    """While the block runs, SIGINT and SIGTERM set an event; a second one ends the process at once."""

    def __init__(self, stop: threading.Event, say: Callable[[str], None]) -> None:
        self._stop = stop
        self._say = say

    def __enter__(self) -> None:
        self._before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self._stop.is_set():
            raise KeyboardInterrupt
        self._stop.set()
        self._say(f"\n{signal.Signals(number).name}: finishing what is in flight (once more to stop at once)")


def run_embed(options: argparse.Namespace) -> int:
    """``raysight embed``. Exits 1 when an image was rejected."""
    from pipeline.embed import embed, render
    from pipeline.extractor import load_extractor

    if options.output is None and options.format != "json" and sys.stdout.isatty():
        raise UsageError(f"--format {options.format} is binary: give --output FILE, or redirect")
    if options.output is not None and not options.output.absolute().parent.is_dir():
        raise UsageError(f"--output {options.output}: there is no folder {options.output.absolute().parent}")
    limits, storage = ImageLimits(), StorageConfig()
    extractor = load_extractor(model_config(options), limits)
    table = embed(extractor, options.images, limits, storage)
    data = render(table, extractor, options.format)
    if options.output is None:
        sys.stdout.buffer.write(data)
    else:
        options.output.write_bytes(data)
    failed = [row for row in table.select(["uri", "stage", "error", "message"]).to_pylist() if row["error"]]
    for row in failed:
        _say_to_stderr(f"{row['uri']}: {row['error']} in {row['stage']}: {row['message']}")
    return EXIT_ERROR if failed else EXIT_OK


def run_verify(options: argparse.Namespace) -> int:
    """``raysight verify``. Exits 1 when anything is off."""
    from pipeline.verify import verify

    return EXIT_OK if verify(options.dest, options.sample, ImageLimits(), StorageConfig(), print) else EXIT_ERROR


def _say_to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _positive(text: str) -> int:
    value = _number(text, int, "a positive whole number")
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive whole number")
    return value


def _natural(text: str) -> int:
    value = _number(text, int, "a whole number")
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return value


def _share(text: str) -> float:
    value = _number(text, float, "a number")
    if not 0 <= value < 1e6:
        raise argparse.ArgumentTypeError(f"{text} is not a share of a machine")
    return value


def _rate(text: str) -> float:
    value = _number(text, float, "a number")
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def _number(text: str, kind: type[_Number], what: str) -> _Number:
    try:
        return kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}") from None
