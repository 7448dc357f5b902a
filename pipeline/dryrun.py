"""``raysight extract --dry-run``: says what would be done; writes nothing, starts nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.budget import make_budget
from pipeline.cluster import cluster_address, this_machine
from pipeline.dataset import load_info
from pipeline.extractor import load_extractor
from pipeline.job import settle_precision, shard_rows
from pipeline.manifest import load_manifest
from pipeline.plan import Plan
from pipeline.source import list_images
from pipeline.storage import open_store

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.config import Config


def dry_run(config: Config, say: Callable[[str], None]) -> None:
    """Prints the source, the model, the state of the destination, and who would get which CPUs."""
    dest, source = open_store(config.dest, config.storage), open_store(config.source, config.storage)
    address = cluster_address(config.address)
    budget = make_budget(config.job, this_machine(), can_grow=False)
    extractor = load_extractor(settle_precision(config.model, dest, budget), config.limits)
    fingerprint = extractor.fingerprint
    say(f"model        {fingerprint.model}, {fingerprint.precision}, weights {fingerprint.weights[:16]}")
    say(f"transform    {fingerprint.transform}, {fingerprint.implementation}")
    say(f"outputs      {', '.join(fingerprint.outputs)}")
    say(f"fingerprint  {fingerprint.digest}")
    existing = load_info(dest)
    if existing is not None and (differences := existing.fingerprint.differences(fingerprint)):
        say(f"dest         {dest.root} holds another fingerprint; the job would refuse:")
        for line in differences:
            say(f"             {line}")
    manifest = load_manifest(dest)
    if manifest is None:
        images = size = 0
        for item in list_images(source, config.job.limit):
            images += 1
            size += item.size
        rows = shard_rows(config.job.shard_rows, config.job.shard_bytes, extractor)
        say(f"source       {source.root}: {images:,} images, {size / 2**20:,.1f} MiB")
        say(f"dest         {dest.root}: new; about {-(-images // budget.chunk_rows):,} chunks of {budget.chunk_rows}")
        say(f"             in {-(-images // rows):,} shard(s) of up to {rows:,} rows")
    else:
        plan = Plan.survey(dest, manifest)
        say(f"source       {manifest.source}: {manifest.rows:,} images, as listed at {manifest.listed_at}")
        say(f"dest         {dest.root}: {plan.rows_done:,} images done, {plan.pending_chunks:,} chunks to do,")
        say(f"             {len(plan.sealed):,} of {len(manifest.shards):,} shards sealed")
    if address is not None:
        say(f"ray          the cluster at {address}; its nodes decide the number of actors")
        return
    for note in budget.notes:
        say(f"note         {note}")
    say(
        f"ray          started here: {budget.min_actors} to {budget.max_actors} actor(s) of {budget.cpus_per_actor:g}"
        f" CPUs and {budget.gpus_per_actor:g} GPUs, {budget.read_tasks} read task(s), batches of {budget.batch_size}"
    )
