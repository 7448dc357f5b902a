"""``raysight embed``: its options, and where its output goes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import UsageError
from pipeline.options import add_config_option, add_model_options
from pipeline.settings import load_settings

if TYPE_CHECKING:
    import argparse


def add_embed(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds it to the root parser."""
    parser = commands.add_parser("embed", help="print or save the features of a few images, without Ray")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="a file, or s3://bucket/key")
    add_config_option(parser)
    add_model_options(parser)
    parser.add_argument(
        "--format",
        choices=("json", "npy", "parquet"),
        default="json",
        help="of what comes out: 'npy' is the matrix alone (default: %(default)s)",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="where to (default: standard output)")
    parser.set_defaults(run=run_embed)


def run_embed(options: argparse.Namespace) -> int:
    """``raysight embed``. Exits 1 when an image was rejected."""
    from pipeline.embed import check_format, check_images, embed, render
    from pipeline.extractor import load_extractor, pick_device
    from pipeline.precision import check_precision

    if options.output is None and options.format != "json" and sys.stdout.isatty():
        raise UsageError(f"--format {options.format} is binary: give --output FILE, or redirect")
    if options.output is not None:
        if not options.output.absolute().parent.is_dir():
            raise UsageError(f"--output {options.output}: there is no folder {options.output.absolute().parent}")
        if options.output.is_dir():
            raise UsageError(f"--output {options.output}: this is a folder; give the name of a file")
    check_images(options.images)
    settings = load_settings(options)
    check_format(options.format, settings.model.features)
    model, device = settings.model, pick_device()
    check_precision(model.precision, device.type)
    extractor = load_extractor(model, settings.limits, device, settings.storage)
    table = embed(extractor, options.images, settings.limits, settings.storage)
    data = render(table, extractor, options.format)
    if options.output is None:
        sys.stdout.buffer.write(data)
    else:
        options.output.write_bytes(data)
    failed = [row for row in table.select(["uri", "stage", "error", "message"]).to_pylist() if row["error"]]
    for row in failed:
        print(f"{row['uri']}: {row['error']} in {row['stage']}: {row['message']}", file=sys.stderr, flush=True)
    return 1 if failed else 0
