"""The batch job, from listing to the last seal. Holds no Ray of its own: it drives ``pipeline.dataflow``."""

from __future__ import annotations

import functools
import threading
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.budget import Budget, make_budget
from pipeline.cluster import cluster_address, cluster_nodes, existing_ray, free_resources, local_ray, this_machine
from pipeline.counting import CountingStore
from pipeline.dataset import agree_on, count_rejects
from pipeline.errors import RaysightError
from pipeline.extractor import Extractor, load_extractor
from pipeline.lease import Lease
from pipeline.manifest import Manifest, load_manifest
from pipeline.plan import Plan
from pipeline.preflight import ensure_manifest, settle_precision
from pipeline.progress import Progress
from pipeline.runlog import RunLog
from pipeline.seal import clean_up, seal_shard
from pipeline.source import kept_fields, require_images
from pipeline.storage import Store, open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from pipeline.config import Config, ModelConfig
    from pipeline.dataflow import Sealer
    from pipeline.fingerprint import Fingerprint
    from pipeline.worker import JobSpec

_STALL_S = 60.0
"""Seconds without a result after which the job says what the cluster has free."""


@dataclass(frozen=True, slots=True)
class Summary:
    """How a run ended.

    Attributes:
        rows: images that this run turned into features.
        rejects: images that this run rejected.
        skipped: images that were done before.
        total_rejects: rejected rows of the whole dataset.
        total: rows of the manifest.
        images_per_second: of this run, once warm.
        complete: every chunk is sealed.
    """

    rows: int
    rejects: int
    skipped: int
    total_rejects: int
    total: int
    images_per_second: float
    complete: bool

    @property
    def line(self) -> str:
        """The last line of ``raysight extract``; scripts read it."""
        return (
            f"rows={self.rows} rejects={self.rejects} skipped={self.skipped}"
            f" images_per_second={self.images_per_second:.2f}"
        )


def run_job(
    config: Config,
    *,
    stop: threading.Event | None = None,
    factory: Callable[[ModelConfig], Extractor] | None = None,
    progress: Callable[[int, int], Progress] = Progress,
    say: Callable[[str], None] = print,
) -> Summary:
    """Extracts everything that is not extracted yet.

    Args:
        config: the run.
        stop: set it to end early: chunks in flight commit, whole shards are sealed.
        factory: makes the extractor, here and in every actor; the default loads ``config.model``.
        progress: called with the images in all and those done.
        say: prints a line for the user.

    Raises:
        UsageError: nothing was started: the arguments, the source or the destination do not allow it.
        RaysightError: the job could not go on; what is committed stays, and running again resumes.
    """
    stop = stop or threading.Event()
    dest = CountingStore(open_store(config.dest, config.storage))
    listed: Counter[str] = Counter()
    dest.check(missing_ok=True)
    if load_manifest(dest) is None:
        require_images(config.sources, config.listing, config.storage)
    address = cluster_address(config.job.address)
    with ExitStack() as stack:
        if address is not None:
            stack.enter_context(existing_ray(address))
        nodes = cluster_nodes() if address is not None else this_machine()
        budget = make_budget(config.job, nodes, can_grow=address is not None and config.job.max_actors is not None)
        for note in budget.notes:
            say(f"note: {note}")
        model = settle_precision(config.model, dest, budget)
        make = functools.partial(
            factory or functools.partial(load_extractor, limits=config.limits, storage=config.storage), model
        )
        extractor = make()
        stack.enter_context(Lease(dest, config.job.lease_ttl_s, say, on_lost=stop.set))
        agree_on(dest, extractor.fingerprint, model, kept_fields(config.sources, config.listing, config.storage))
        manifest = ensure_manifest(config, dest, extractor, budget, stop, say, listed)
        plan = Plan.survey(dest, manifest)
        fingerprint = extractor.fingerprint
        del extractor
        run = _Run(config, dest, manifest, plan, fingerprint, progress(manifest.rows, plan.rows_done), say)
        if plan.pending():
            if address is None:
                say(f"starting Ray on this machine: {budget.max_actors} actor(s), {nodes[0].cpus:g} CPUs")
                stack.enter_context(local_ray(int(nodes[0].cpus)))
            run.extract(budget, make, stop)
        else:
            run.seal_here()
        return run.close(stopped=stop.is_set(), requests=(dest.take(), listed))


class _Run:
    """The state of one run; lives on the driver's main thread."""

    def __init__(
        self,
        config: Config,
        dest: Store,
        manifest: Manifest,
        plan: Plan,
        fingerprint: Fingerprint,
        progress: Progress,
        say: Callable[[str], None],
    ) -> None:
        self._config = config
        self._dest = dest
        self._manifest = manifest
        self._plan = plan
        self._fingerprint = fingerprint
        self._progress = progress
        self._say = say
        self._skipped = plan.rows_done
        self._log = RunLog(manifest, fingerprint, skipped=self._skipped)

    def extract(self, budget: Budget, make: Callable[[], Extractor], stop: threading.Event) -> None:
        from pipeline.dataflow import Sealer  # imports ray, which a finished dataset does not need
        from pipeline.worker import JobSpec

        self._log.budget = budget
        spec = JobSpec(self._config, budget, self._fingerprint, make)
        sealer = Sealer(self._config, self._fingerprint)
        for shard in self._plan.sealable():
            sealer.submit(shard, self._manifest.shards[shard].chunks)
        for _ in range(self._config.job.max_passes):
            self._pass(spec, sealer, stop)
            if stop.is_set() or not self._plan.pending():
                break
            self._say(f"{self._plan.pending_chunks} chunks are still missing; going over them again")
        self._note(sealer, wait=True)
        self._log.count(sealer.requests)
        self._progress.finish()
        if self._plan.pending() and not stop.is_set():
            raise RaysightError(
                f"{self._plan.pending_chunks} chunks are missing after {self._config.job.max_passes} passes; run again"
            )

    def _pass(self, spec: JobSpec, sealer: Sealer, stop: threading.Event) -> None:
        from pipeline.dataflow import run_chunks

        next_notice = _STALL_S
        told = False
        for result in run_chunks(spec, self._plan.pending(), stop):
            if stop.is_set() and not told:
                told = True
                self._progress.say(f"stopping: chunks in flight have {self._config.job.grace_s:g} s to commit")
            if result is None:
                self._progress.tick()
                if self._progress.idle_s > next_notice:
                    next_notice += _STALL_S
                    self._progress.say(f"no result for {self._progress.idle_s:.0f} s; {free_resources()}")
            else:
                next_notice = _STALL_S
                self._log.add(result)
                self._progress.add(result.rows, sum(result.rejects.values()))
                if self._plan.commit(result.shard, result.chunk):
                    sealer.submit(result.shard, self._manifest.shards[result.shard].chunks)
            self._note(sealer)

    def _note(self, sealer: Sealer, *, wait: bool = False) -> None:
        for shard in sealer.done(wait=wait):
            self._plan.seal(shard)

    def seal_here(self) -> None:
        """Seals in this process, when all chunks are there and no Ray was started."""
        for shard in self._plan.sealable():
            seal_shard(self._dest, shard, self._manifest.shards[shard].chunks, self._fingerprint)
            self._plan.seal(shard)

    def close(self, *, stopped: bool, requests: Iterable[Mapping[str, int]]) -> Summary:
        for counts in requests:
            self._log.count(counts)
        complete = not self._plan.open
        if complete:
            clean_up(self._dest, self._plan.sealed)
        summary = Summary(
            rows=self._progress.rows - self._progress.rejects,
            rejects=self._progress.rejects,
            skipped=self._skipped,
            total_rejects=count_rejects(self._dest),
            total=self._manifest.rows,
            images_per_second=self._progress.images_per_second if self._progress.rows else 0.0,
            complete=complete,
        )
        if self._progress.rows or stopped:
            self._dest.put(*self._log.to_object(summary.images_per_second, complete=complete))
        return summary
