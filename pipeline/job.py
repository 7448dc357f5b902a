"""The batch job: settles what is pending, brings the manifest up to date, settles that. Ray comes in when needed."""

from __future__ import annotations

import functools
import threading
from collections import Counter
from contextlib import ExitStack
from typing import TYPE_CHECKING

from pipeline.budget import make_budget
from pipeline.cluster import cluster_address, cluster_nodes, existing_ray, local_ray, this_machine
from pipeline.counting import CountingStore
from pipeline.dataset import agree_on, load_info
from pipeline.errors import UsageError
from pipeline.generation import Listing
from pipeline.identity import identify, load, recorded
from pipeline.lease import Lease
from pipeline.located import Located
from pipeline.manifest import load_manifest
from pipeline.origin import roots
from pipeline.preflight import largest_chunk, make_cut, settle_precision, until
from pipeline.progress import Progress
from pipeline.retry import kept_columns, retry_rejects
from pipeline.run import Run
from pipeline.runlog import RunLog
from pipeline.schema import parse_output
from pipeline.source import check_sources, kept_fields, list_rows, require_images, source_names
from pipeline.storage import open_store
from pipeline.sync import Sync, sync_manifest
from pipeline.terms import Summary, Terms

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.config import Config, ModelConfig
    from pipeline.cut import Cut
    from pipeline.extractor import Extractor
    from pipeline.manifest import Manifest
    from pipeline.storage import Store
    from pipeline.terms import Workers

    Renew = Callable[[Manifest | None, Cut], Manifest]


def run_job(
    config: Config,
    *,
    retry: bool = False,
    name: str | None = None,
    stop: threading.Event | None = None,
    factory: Callable[[ModelConfig], Extractor] | None = None,
    progress: Callable[[], Progress] = Progress,
    say: Callable[[str], None] = print,
) -> Summary:
    """Extracts everything that is not extracted yet, and takes out what has changed or gone.

    Args:
        config: the run.
        retry: do not list the source; try the rejected rows again.
        name: of the run, in its log, its figures and its lines; the default is made of the time and the process.
        stop: set it to end early: chunks in flight commit, whole shards are sealed.
        factory: makes the extractor, here and in every actor; the default loads ``config.model``.
        progress: makes what counts and prints.
        say: prints a line for the user.

    Raises:
        UsageError: nothing was started: the arguments, the source or the destination do not allow it.
        RaysightError: the job could not go on; what is committed stays, and running again resumes.
    """
    stop = stop or threading.Event()
    dest = CountingStore(open_store(config.dest, config.storage))
    listed: Counter[str] = Counter()
    dest.check(missing_ok=not retry)
    renew = _retrying(config, dest, say) if retry else _listing(config, dest, stop, say, listed)
    address = cluster_address(config.job.address)
    with ExitStack() as stack:
        if address is not None:
            stack.enter_context(existing_ray(address))
        nodes = cluster_nodes() if address is not None else this_machine()
        fit = functools.partial(
            make_budget, config.job, nodes, can_grow=address is not None and config.job.max_actors is not None
        )
        budget = fit()  # without the features: what can never run is refused before a model is loaded
        decoding = config.job.decode == "tasks"  # those tasks are given the extractor's preprocessor
        known = None if decoding else recorded(config.model, load_info(dest), on_gpu=budget.gpus_per_actor > 0)
        model = known.model if known else settle_precision(config.model, dest, budget)
        make = functools.partial(
            factory or functools.partial(load, limits=config.limits, storage=config.storage), model
        )
        identity = identify(known, make)
        fingerprint, preprocessor = identity.fingerprint, identity.preprocessor
        stack.enter_context(Lease(dest, config.job.lease_ttl_s, say, on_lost=stop.set))
        kept = kept_columns(dest) if retry else kept_fields(config.sources, config.listing, config.storage)
        agree_on(dest, fingerprint, model, kept, identity.parameters)
        outputs = [parse_output(text) for text in fingerprint.outputs]
        cut = make_cut(config.job, budget, outputs, preprocessor.image_bytes if preprocessor else 0)
        features = largest_chunk(cut, outputs, load_manifest(open_store(config.dest, config.storage)))
        budget = fit(features=features, parameters=identity.parameters)
        for note in budget.notes:
            say(f"note: {note}")

        def start() -> Workers:
            if address is None:
                say(f"starting Ray on this machine: {budget.max_actors} actor(s), {nodes[0].cpus:g} CPUs")
                stack.enter_context(local_ray(int(nodes[0].cpus)))
            # These import ray: a finished dataset has no need of it, and it reads its environment as it is imported.
            from pipeline.rayworkers import RayWorkers
            from pipeline.worker import JobSpec

            log.budget = budget
            return RayWorkers(JobSpec(config, budget, fingerprint, make, preprocessor, log.name))

        log = RunLog(fingerprint, name)
        terms = Terms(config.job.max_passes, config.job.grace_s, stop, (dest,), listed)
        run = Run(dest, fingerprint, log, terms, start, progress(), say)
        return course(run, dest, cut, renew, stop, say, retry=retry)


def course(
    run: Run, dest: Store, cut: Cut, renew: Renew, stop: threading.Event, say: Callable[[str], None], *, retry: bool
) -> Summary:
    """Settles the dataset, renews its manifest once, and settles it again.

    A retry that was broken off is finished and not begun once more. However it ends, what it did is written down.
    Raises as :func:`run_job`.
    """
    try:
        return _course(run, dest, cut, renew, stop, say, retry=retry)
    except Exception as error:
        run.fail(error)
        raise


def _course(
    run: Run, dest: Store, cut: Cut, renew: Renew, stop: threading.Event, say: Callable[[str], None], *, retry: bool
) -> Summary:
    manifest = load_manifest(dest)
    if manifest is not None:
        settled = run.settle(manifest)
        if not settled or stop.is_set() or (retry and run.worked and manifest.last.kind == "retry"):
            return run.close()
        if run.worked:
            say(f"settled: {manifest.rows:,} images, as listed at {manifest.last.listed_at}")
    renewed = renew(manifest, cut)
    if renewed is not manifest:
        run.settle(renewed)
    return run.close()


def _listing(
    config: Config, dest: Store, stop: threading.Event, say: Callable[[str], None], requests: Counter[str]
) -> Renew:
    """Lists the sources and compares. Looks first whether there is something to list."""
    names = source_names(config.sources, config.storage)
    sync = Sync(Listing(names, config.job.limit), config.job.prune, config.job.listing_memory)
    if load_manifest(dest) is None:
        require_images(config.sources, config.listing, config.storage)
    else:
        check_sources(config.sources, config.storage)

    def renew(manifest: Manifest | None, cut: Cut) -> Manifest:
        rows = list_rows(config.sources, config.listing, config.storage, config.job.limit, say, requests)
        return sync_manifest(dest, manifest, sync, until(stop, rows), cut, say)

    return renew


def _retrying(config: Config, dest: Store, say: Callable[[str], None]) -> Renew:
    """Looks the rejected rows up again. There must be a dataset."""
    if load_info(dest) is None or load_manifest(dest) is None:
        raise UsageError(f"{dest.root} holds no raysight dataset whose source was listed; run extract")
    located = functools.lru_cache(lambda source: Located(roots((source,)), config.storage))

    def renew(manifest: Manifest | None, cut: Cut) -> Manifest:
        assert manifest is not None
        return retry_rejects(dest, manifest, cut, lambda source, uris: located(source).look_up(uris), say)

    return renew
