"""The commands of the batch half: their options, and what they print."""

from __future__ import annotations

import sys
import threading
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import Config, ImageLimits, JobConfig, StorageConfig
from pipeline.errors import UsageError
from pipeline.interrupt import Interruptible
from pipeline.options import add_model_options, model_config, natural, positive, rate, share

if TYPE_CHECKING:
    import argparse

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
    count: dict[str, Any] = {"type": positive, "metavar": "N"}
    part: dict[str, Any] = {"type": share, "metavar": "X"}
    add("--batch-size", **count, help="images of one forward (default: 64 on a GPU, 2 on a CPU)")
    add("--chunk-rows", **count, help="images of a chunk, the unit of loss (default: 1024 on a GPU, 64 on a CPU)")
    add("--min-actors", **count, default=job.min_actors, help="actors from the start (default: %(default)s)")
    add("--max-actors", **count, help="actors at most (default: what fits)")
    add("--gpus-per-actor", **part, help="GPUs, or a fraction, of each actor (default: 1 where there are GPUs)")
    add("--cpus-per-actor", **part, help="CPUs of each actor (default: the node's, shared out)")
    add("--limit", **count, help="only the first so many images of the listing (default: all)")
    add("--dry-run", action="store_true", help="say what would be done, and do nothing")
    add(
        "--max-reject-rate",
        type=rate,
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
        type=natural,
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
    with Interruptible(stop, say):
        summary = run_job(config, stop=stop, say=say)
    rejected = summary.total_rejects / max(1, summary.total)
    dataset = config.dest.rstrip("/")
    code = EXIT_OK
    if not summary.complete:
        say("interrupted; what is committed stays. The same command goes on from there")
        code = EXIT_INTERRUPTED
    elif rejected > config.job.max_reject_rate:
        say(
            f"{summary.total_rejects} of {summary.total} images were rejected ({rejected:.1%}), more than"
            f" --max-reject-rate {config.job.max_reject_rate:g}; see {dataset}/rejects/"
        )
        code = EXIT_REJECTS
    else:
        rejects = f", {summary.total_rejects:,} in {dataset}/rejects/" if summary.total_rejects else ""
        say(f"complete: {summary.total - summary.total_rejects:,} rows in {dataset}/features/{rejects}")
    print(summary.line, flush=True)
    return code


def run_embed(options: argparse.Namespace) -> int:
    """``raysight embed``. Exits 1 when an image was rejected."""
    from pipeline.embed import embed, render
    from pipeline.extractor import load_extractor, pick_device
    from pipeline.precision import check_precision

    if options.output is None and options.format != "json" and sys.stdout.isatty():
        raise UsageError(f"--format {options.format} is binary: give --output FILE, or redirect")
    if options.output is not None and not options.output.absolute().parent.is_dir():
        raise UsageError(f"--output {options.output}: there is no folder {options.output.absolute().parent}")
    limits, storage = ImageLimits(), StorageConfig()
    model, device = model_config(options), pick_device()
    check_precision(model.precision, device.type)
    extractor = load_extractor(model, limits, device)
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
