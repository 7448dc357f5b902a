"""``raysight extract --dry-run``: says what would be done; writes nothing, starts nothing."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import pyarrow.compute as pc

from pipeline.budget import make_budget
from pipeline.cluster import cluster_address, this_machine
from pipeline.config import MIB
from pipeline.dataset import describe_kept, kept_differences, load_info
from pipeline.estimate import describe_estimate, last_measured
from pipeline.extractor import load_extractor
from pipeline.generation import Listing
from pipeline.identity import settle_precision
from pipeline.manifest import load_manifest
from pipeline.plan import Plan
from pipeline.preflight import largest_chunk, make_cut
from pipeline.retire import unapplied
from pipeline.source import kept_fields, list_rows, require_images, source_names
from pipeline.storage import open_store
from pipeline.sync import Sync, compare, describe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pipeline.budget import Budget
    from pipeline.config import Config
    from pipeline.cut import Cut
    from pipeline.extractor import Extractor
    from pipeline.manifest import Manifest
    from pipeline.storage import Store


def dry_run(config: Config, say: Callable[[str], None], dollars_per_hour: float | None = None) -> bool:
    """Prints the source, the model, the state of the destination, what is to do, and who would get which CPUs.

    Args:
        config: the run.
        say: prints a line.
        dollars_per_hour: of all machines of the last run, for what is to do.

    Returns:
        whether the job would run; False when the destination refuses it.

    Raises:
        UsageError: the job would not start: as ``pipeline.job.run_job``.
    """
    dest = open_store(config.dest, config.storage)
    dest.check(missing_ok=True)
    manifest = load_manifest(dest)
    if manifest is None:
        require_images(config.sources, config.listing, config.storage)
    fit = functools.partial(make_budget, config.job, this_machine(), can_grow=False, compiled=config.model.compile)
    budget = fit()
    model = settle_precision(config.model, load_info(dest), on_gpu=budget.gpus_per_actor > 0)
    extractor = load_extractor(model, config.limits, storage=config.storage)
    cut = make_cut(config.job, budget, extractor.outputs, extractor.preprocessor.image_bytes)
    features = largest_chunk(cut, extractor.outputs, manifest)
    budget = fit(features=features, parameters=extractor.parameters)
    fingerprint = extractor.fingerprint
    say(f"model        {fingerprint.model}, {fingerprint.precision}, weights {fingerprint.weights[:16]}")
    say(f"transform    {fingerprint.transform}, {fingerprint.implementation}")
    say(f"outputs      {', '.join(fingerprint.outputs)}")
    say(f"fingerprint  {fingerprint.digest}")
    if manifest is None:
        images = _describe_new(config, dest, cut, say)
    else:
        images = _describe_existing(config, dest, manifest, say)
    measured = last_measured(dest, dollars_per_hour) if manifest is not None else None
    first, *rest = describe_estimate(measured, images)
    say(f"estimate     {first}")
    for line in rest:
        say(f"             {line}")
    if obstacles := list(_obstacles(config, dest, extractor)):
        say("refused      the job would not write here:")
        for line in obstacles:
            say(f"             {line}")
    _describe_ray(config, budget, say)
    return not obstacles


def _describe_new(config: Config, dest: Store, cut: Cut, say: Callable[[str], None]) -> int:
    names = ", ".join(source_names(config.sources, config.storage))
    images = size = 0
    for _, rows in list_rows(config.sources, config.listing, config.storage, config.job.limit, say):
        images += len(rows)
        size += pc.sum(rows["size"]).as_py()
    say(f"source       {names}: {images:,} images, {size / 2**20:,.1f} MiB")
    say(f"dest         {dest.root}: new; about {-(-images // cut.chunk_rows):,} chunk(s) of {cut.chunk_rows}")
    say(f"             in {-(-images // cut.shard_rows):,} shard(s) of up to {cut.shard_rows:,} rows")
    return images


def _describe_existing(config: Config, dest: Store, manifest: Manifest, say: Callable[[str], None]) -> int:
    plan, job = Plan.survey(dest, manifest), config.job
    names = source_names(config.sources, config.storage)
    say(f"dest         {dest.root}: {plan.rows_done:,} of {manifest.rows:,} images done, as listed at")
    say(f"             {manifest.last.listed_at}, {len(plan.sealed):,} of {len(manifest.shards):,} shards sealed")
    if plan.open or unapplied(dest, manifest):
        say(f"source       {', '.join(names)}: listed again once the {plan.pending_chunks:,} chunks to do are done")
        return manifest.rows - plan.rows_done
    sync = Sync(Listing(names, job.limit), job.prune, job.listing_memory)
    rows = list_rows(config.sources, config.listing, config.storage, job.limit, say)
    with compare(dest, manifest, sync, rows, say) as (_, counts):
        found, *notes = describe(counts, prune=job.prune, first=False)
    say(f"source       {', '.join(names)}: {found}")
    for note in notes:
        say(f"             {note}")
    return counts.new + counts.changed


def _obstacles(config: Config, dest: Store, extractor: Extractor) -> Iterator[str]:
    existing = load_info(dest)
    if existing is not None:
        yield from existing.fingerprint.differences(extractor.fingerprint)
        columns = describe_kept(kept_fields(config.sources, config.listing, config.storage))
        if differences := kept_differences(existing, columns):
            yield f"kept columns: {differences}"


def _describe_ray(config: Config, budget: Budget, say: Callable[[str], None]) -> None:
    address = cluster_address(config.job.address)
    if address is not None:
        say(f"ray          the cluster at {address}; its nodes decide the number of actors")
        return
    for note in budget.notes:
        say(f"note         {note}")
    batches = f"batches of {budget.batch_size}" if budget.batch_size else "batches as large as is fast"
    say(
        f"ray          started here: {budget.min_actors} to {budget.max_actors} actor(s) of {budget.cpus_per_actor:g}"
        f" CPUs and {budget.gpus_per_actor:g} GPUs, {budget.read_tasks} read task(s), {batches}"
    )
    memory = (budget.memory_per_actor, budget.memory_per_read, budget.memory_per_seal)
    actor, read, seal = (f"{size / MIB:,.0f} MiB" for size in memory)
    say(f"memory       {actor} declared for each actor, {read} for a read task, {seal} for one that seals")
