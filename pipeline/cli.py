"""The commands of the batch half: their options, and what they print."""

from __future__ import annotations

import functools
import threading
from typing import TYPE_CHECKING

from pipeline import logs
from pipeline.config import Config
from pipeline.embed_command import add_embed
from pipeline.errors import UsageError
from pipeline.interrupt import Interruptible
from pipeline.options import add_config_option, add_model_options, add_setting, dollars, natural
from pipeline.runlog import labels, new_name
from pipeline.settings import load_settings

if TYPE_CHECKING:
    import argparse

EXIT_OK, EXIT_ERROR, EXIT_USAGE, EXIT_REJECTS, EXIT_INTERRUPTED = 0, 1, 2, 3, 4


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds ``extract``, ``retry-rejects``, ``embed`` and ``verify`` to the root parser."""
    _add_extract(commands)
    _add_retry(commands)
    add_embed(commands)
    _add_verify(commands)


def _add_extract(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("extract", help="turn the images of the SOURCEs into a Parquet dataset at DEST")
    parser.add_argument(
        "sources",
        metavar="SOURCE",
        nargs="+",
        help="a folder or prefix (s3://, gs://, az://), an image, or a table of URIs (.parquet, .csv, .txt)",
    )
    parser.add_argument("dest", metavar="DEST", help="a folder, or s3://bucket/prefix")
    add_config_option(parser)
    add_model_options(parser)
    source = parser.add_argument_group("source")
    uri_default = "'uri', the only one, 'url', 'path' or 'image'"
    add_setting(source, "source.uri_column", "the column of a table that names the images", default=uri_default)
    add_setting(source, "source.keep", "columns of a table to carry into features and rejects", metavar="COL,COL")
    add_setting(
        source, "source.include", "take only what matches", metavar="GLOB", default="what an image's suffix has"
    )
    add_setting(source, "source.exclude", "leave out what matches", metavar="GLOB")
    job = _add_job_options(parser)
    add_setting(job, "job.limit", "only the first so many images of the listing", default="all")
    add_setting(job, "job.prune", "drop the rows of images that are gone from the source")
    job.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    job.add_argument(
        "--dollars-per-hour", type=dollars, metavar="X", help="with --dry-run: of all machines of the run it goes by"
    )
    parser.set_defaults(run=run_extract)


def _add_retry(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("retry-rejects", help="try the rejected rows of a dataset again")
    parser.add_argument("dest", metavar="DEST", help="a dataset: a folder, or s3://bucket/prefix")
    add_config_option(parser)
    _add_job_options(parser)
    parser.set_defaults(run=run_retry)


def _add_job_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """What ``extract`` and ``retry-rejects`` share: who works, and when a job counts as failed."""
    job = parser.add_argument_group("job")
    add_setting(job, "job.batch_size", "images of one forward", default="found out on a GPU, 2 on a CPU")
    add_setting(job, "job.chunk_rows", "images of a chunk, the unit of loss", default="1024 on a GPU, 64 on a CPU")
    add_setting(job, "job.decode", "who decodes: 'tasks' run on any CPU of the cluster, also of nodes without a GPU")
    add_setting(job, "job.min_actors", "actors from the start")
    add_setting(job, "job.max_actors", "actors at most", default="what fits")
    add_setting(job, "job.gpus_per_actor", "GPUs, or a fraction, of each actor", default="1 where there are GPUs")
    add_setting(job, "job.cpus_per_actor", "CPUs of each actor", default="the node's, shared out")
    add_setting(job, "job.max_reject_rate", "rejected fraction above which the exit code is 3")
    add_setting(
        job,
        "job.address",
        "a running Ray cluster",
        metavar="RAY",
        default="$RAY_ADDRESS, else Ray is started on this machine",
    )
    return job


def _add_verify(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("verify", help="check a dataset: complete, unique, finite, and right")
    parser.add_argument("dest", metavar="DEST", help="a dataset: a folder, or s3://bucket/prefix")
    add_config_option(parser)
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
    settings = load_settings(options)
    config = Config(
        sources=tuple(options.sources),
        dest=options.dest,
        model=settings.model,
        limits=settings.limits,
        storage=settings.storage,
        job=settings.job,
        listing=settings.source,
    )
    if options.dry_run:
        from pipeline.dryrun import dry_run

        return EXIT_OK if dry_run(config, print, options.dollars_per_hour) else EXIT_USAGE
    if options.dollars_per_hour is not None:
        raise UsageError("--dollars-per-hour goes with --dry-run; of a run that is done: raysight report")
    return _run_job(config, retry=False)


def run_retry(options: argparse.Namespace) -> int:
    """``raysight retry-rejects``: with the model options of the dataset, whatever the settings say."""
    from pipeline.dataset import load_info
    from pipeline.storage import open_store

    settings = load_settings(options)
    info = load_info(open_store(options.dest, settings.storage))
    config = Config(
        sources=(),
        dest=options.dest,
        model=info.model if info else settings.model,
        limits=settings.limits,
        storage=settings.storage,
        job=settings.job,
    )
    return _run_job(config, retry=True)


def _run_job(config: Config, *, retry: bool) -> int:
    from pipeline.job import run_job
    from pipeline.progress import Progress

    name = new_name()
    logs.configure(config.job.log_format, labels(name, config.dest))
    stream = logs.stream(config.job.log_format)
    say = functools.partial(print, file=stream, flush=True)
    stop = threading.Event()
    with Interruptible(stop, say):
        progress = functools.partial(Progress, stream=stream)
        summary = run_job(config, retry=retry, name=name, stop=stop, progress=progress, say=say)
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


def run_verify(options: argparse.Namespace) -> int:
    """``raysight verify``. Exits 1 when anything is off."""
    from pipeline.verify import verify

    settings = load_settings(options)
    sound = verify(options.dest, options.sample, settings.limits, settings.storage, print)
    return EXIT_OK if sound else EXIT_ERROR
