"""The batch job: settles what is pending, brings the manifest up to date, settles that. Ray comes in when needed."""

from __future__ import annotations

import functools
import sys
import threading
from collections import Counter
from contextlib import ExitStack
from typing import TYPE_CHECKING

from pipeline import logs
from pipeline.apart import Apart
from pipeline.budget import make_budget
from pipeline.cluster import cluster_address, cluster_nodes, existing_ray, local_ray, this_machine
from pipeline.counting import CountingStore
from pipeline.dataset import agree_on, load_info
from pipeline.identity import identify, load, recorded
from pipeline.lease import Lease
from pipeline.manifest import load_manifest
from pipeline.preflight import largest_chunk, make_cut
from pipeline.progress import Progress
from pipeline.renewal import listing, retrying
from pipeline.retry import kept_columns
from pipeline.run import Run
from pipeline.runlog import RunLog, labels, new_name
from pipeline.schema import parse_output
from pipeline.source import kept_fields
from pipeline.storage import open_store
from pipeline.terms import Summary, Terms

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pipeline.budget import Budget
    from pipeline.config import Config, ModelConfig
    from pipeline.cut import Cut
    from pipeline.extractor import Extractor
    from pipeline.identity import Identity
    from pipeline.rayworkers import RayWorkers
    from pipeline.renewal import Renew
    from pipeline.storage import Store
    from pipeline.terms import Workers


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
    renew = retrying(config, dest, say) if retry else listing(config, dest, stop, say, listed)
    address = cluster_address(config.job.address)
    name = name or new_name()
    with ExitStack() as stack, ExitStack() as rays:  # the lease outlives those that write under it
        if address is not None:
            rays.enter_context(existing_ray(address))
        nodes = cluster_nodes() if address is not None else this_machine()
        fit = functools.partial(
            make_budget,
            config.job,
            nodes,
            can_grow=address is not None and config.job.max_actors is not None,
            compiled=config.model.compile,
        )
        budget = fit()  # without the features: what can never run is refused before a model is loaded

        @functools.cache
        def start_ray() -> type[RayWorkers]:
            if address is None:
                say(f"starting Ray on this machine: {nodes[0].cpus:g} CPUs")
                rays.enter_context(local_ray(int(nodes[0].cpus)))
            # This imports ray: a finished dataset has no need of it, and it reads its environment as it is imported.
            from pipeline.rayworkers import RayWorkers

            return RayWorkers

        found = _identify(config, dest, factory, budget, labels(name, config.dest), start_ray)
        fingerprint, preprocessor = found.fingerprint, found.preprocessor
        stack.enter_context(Lease(dest, config.job.lease_ttl_s, say, on_lost=stop.set))
        kept = kept_columns(dest) if retry else kept_fields(config.sources, config.listing, config.storage)
        outputs = [parse_output(text) for text in fingerprint.outputs]
        cut = make_cut(config.job, budget, outputs, preprocessor.image_bytes if preprocessor else 0)
        features = largest_chunk(cut, outputs, load_manifest(open_store(config.dest, config.storage)))
        budget = fit(features=features, parameters=found.parameters)
        agree_on(dest, fingerprint, found.model, kept, found.parameters)  # once it is sure that an actor fits
        for note in budget.notes:
            say(f"note: {note}")

        def start() -> Workers:
            ray_workers = start_ray()
            from pipeline.worker import JobSpec  # imports ray

            log.budget = budget
            make = functools.partial(_maker(config, factory), found.model)
            return ray_workers(JobSpec(config, budget, fingerprint, make, preprocessor, log.name))

        log = RunLog(fingerprint, name)
        terms = Terms(config.job.max_passes, config.job.grace_s, stop, (dest,), listed)
        run = Run(dest, fingerprint, log, terms, start, progress(), say)
        return course(run, dest, cut, renew, stop, say, retry=retry)


def _identify(
    config: Config,
    dest: Store,
    factory: Callable[[ModelConfig], Extractor] | None,
    budget: Budget,
    fields: Mapping[str, str],
    start_ray: Callable[[], object],
) -> Identity:
    """What the job computes: as the dataset says, else by loading the model, in a process of its own.

    It would otherwise stay in the driver's memory, and on its GPU. Where torch is there already (another program calls
    this) it is loaded here. A new dataset has something to extract, so Ray starts at the same time.
    """
    decoding, existing, on_gpu = config.job.decode == "tasks", load_info(dest), budget.gpus_per_actor > 0
    known = None if decoding else recorded(config.model, existing, on_gpu=on_gpu)  # the tasks need a preprocessor
    if known is not None:
        return known
    make = _maker(config, factory)
    ask = functools.partial(identify, config.model, existing, make, on_gpu=on_gpu, decoding=decoding)
    if "torch" in sys.modules:
        return ask()
    with Apart(functools.partial(logs.configured, ask, config.job.log_format, fields)) as answer:
        if existing is None:
            start_ray()
        return answer.result()


def _maker(config: Config, factory: Callable[[ModelConfig], Extractor] | None) -> Callable[[ModelConfig], Extractor]:
    return factory or functools.partial(load, limits=config.limits, storage=config.storage)


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
