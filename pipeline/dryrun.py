"""``raysight extract --dry-run``: says what would be done; writes nothing, starts nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.budget import make_budget
from pipeline.cluster import cluster_address, this_machine
from pipeline.dataset import load_info
from pipeline.extractor import load_extractor
from pipeline.manifest import load_manifest
from pipeline.plan import Plan
from pipeline.preflight import settle_precision, shard_rows
from pipeline.source import list_images, require_images
from pipeline.storage import open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pipeline.budget import Budget
    from pipeline.config import Config
    from pipeline.extractor import Extractor
    from pipeline.manifest import Manifest
    from pipeline.storage import Store


def dry_run(config: Config, say: Callable[[str], None]) -> bool:
    """Prints the source, the model, the state of the destination, and who would get which CPUs.

    Returns:
        whether the job would run; False when the destination refuses it.

    Raises:
        UsageError: the job would not start: as ``pipeline.job.run_job``.
    """
    dest, source = open_store(config.dest, config.storage), open_store(config.source, config.storage)
    dest.check(missing_ok=True)
    manifest = load_manifest(dest)
    if manifest is None:
        require_images(source)
    budget = make_budget(config.job, this_machine(), can_grow=False)
    extractor = load_extractor(settle_precision(config.model, dest, budget), config.limits)
    fingerprint = extractor.fingerprint
    say(f"model        {fingerprint.model}, {fingerprint.precision}, weights {fingerprint.weights[:16]}")
    say(f"transform    {fingerprint.transform}, {fingerprint.implementation}")
    say(f"outputs      {', '.join(fingerprint.outputs)}")
    say(f"fingerprint  {fingerprint.digest}")
    if manifest is None:
        _describe_new(config, dest, source, extractor, budget, say)
    else:
        plan = Plan.survey(dest, manifest)
        say(f"source       {manifest.sources[0]}: {manifest.rows:,} images, as listed at {manifest.last.listed_at}")
        say(f"dest         {dest.root}: {plan.rows_done:,} images done, {plan.pending_chunks:,} chunks to do,")
        say(f"             {len(plan.sealed):,} of {len(manifest.shards):,} shards sealed")
    if obstacles := list(_obstacles(config, dest, source, manifest, extractor)):
        say("refused      the job would not write here:")
        for line in obstacles:
            say(f"             {line}")
    _describe_ray(config, budget, say)
    return not obstacles


def _describe_new(
    config: Config, dest: Store, source: Store, extractor: Extractor, budget: Budget, say: Callable[[str], None]
) -> None:
    images = size = 0
    for item in list_images(source, config.job.limit):
        images += 1
        size += item.size
    rows = shard_rows(config.job.shard_rows, config.job.shard_bytes, extractor)
    say(f"source       {source.root}: {images:,} images, {size / 2**20:,.1f} MiB")
    say(f"dest         {dest.root}: new; about {-(-images // budget.chunk_rows):,} chunk(s) of {budget.chunk_rows}")
    say(f"             in {-(-images // rows):,} shard(s) of up to {rows:,} rows")


def _obstacles(
    config: Config, dest: Store, source: Store, manifest: Manifest | None, extractor: Extractor
) -> Iterator[str]:
    existing = load_info(dest)
    if existing is not None:
        yield from existing.fingerprint.differences(extractor.fingerprint)
    if manifest is not None and (manifest.sources, manifest.last.limit) != ((source.root,), config.job.limit):
        yield f"source: {manifest.sources[0]} → {source.root}; limit: {manifest.last.limit} → {config.job.limit}"


def _describe_ray(config: Config, budget: Budget, say: Callable[[str], None]) -> None:
    address = cluster_address(config.job.address)
    if address is not None:
        say(f"ray          the cluster at {address}; its nodes decide the number of actors")
        return
    for note in budget.notes:
        say(f"note         {note}")
    say(
        f"ray          started here: {budget.min_actors} to {budget.max_actors} actor(s) of {budget.cpus_per_actor:g}"
        f" CPUs and {budget.gpus_per_actor:g} GPUs, {budget.read_tasks} read task(s), batches of {budget.batch_size}"
    )
