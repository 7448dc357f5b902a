"""The course of a run: what is pending is extracted, whole shards are sealed, then the rows that leave are removed.

Only then is the dataset settled, and only a settled dataset is compared with its sources again. Knows no Ray:
whoever does the work stands behind :class:`pipeline.terms.Workers`.
"""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING

from pipeline.dataset import count_rejects
from pipeline.errors import InterruptedJobError, RaysightError, UsageError
from pipeline.plan import Plan
from pipeline.retire import retire_rows, unapplied
from pipeline.seal import clean_up, seal_shard
from pipeline.terms import Summary

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.fingerprint import Fingerprint
    from pipeline.manifest import Manifest
    from pipeline.progress import Progress
    from pipeline.runlog import Outcome, RunLog
    from pipeline.storage import Store
    from pipeline.terms import Terms, Workers

_STALL_S = 60.0
"""Seconds without a result after which the run says what the workers have free."""

_REWRITES_AT_ONCE = 128
"""Shards handed out for rewriting before the run looks whether it should stop."""


class Run:
    """The state of one run; lives on the driver's main thread.

    Args:
        dest: the dataset.
        fingerprint: of every row.
        log: where the figures of the run are added up.
        terms: what it works under.
        start: brings up the workers; called when there is something to extract, and once at most.
        progress: counts and prints.
        say: prints a line for the user.
    """

    def __init__(
        self,
        dest: Store,
        fingerprint: Fingerprint,
        log: RunLog,
        terms: Terms,
        start: Callable[[], Workers],
        progress: Progress,
        say: Callable[[str], None],
    ) -> None:
        self._dest = dest
        self._fingerprint = fingerprint
        self._terms = terms
        self._start = start
        self._progress = progress
        self._say = say
        self._log = log
        self._workers: Workers | None = None
        self._manifest: Manifest | None = None
        self._plan: Plan | None = None
        self._settled = False
        self.worked = False
        """Whether anything was left to do."""

    def settle(self, manifest: Manifest) -> bool:
        """Does all that the manifest asks for and that is not done.

        Returns:
            False when the run was stopped before all was done.

        Raises:
            RaysightError: the job could not go on; what is committed stays, and running again resumes.
        """
        plan = Plan.survey(self._dest, manifest)
        self._manifest, self._plan, self._settled = manifest, plan, False
        self._progress.expect(manifest.rows, plan.rows_done)
        self.worked = self.worked or bool(plan.open)
        if plan.pending() and self._workers is None:
            self._workers = self._start()
        for shard in plan.sealable():
            self._seal(manifest, plan, shard)
        if plan.pending() and self._workers is not None:
            self._extract(manifest, plan, self._workers)
        self._settled = not plan.open and self._retire(manifest)
        return self._settled

    def _extract(self, manifest: Manifest, plan: Plan, workers: Workers) -> None:
        for _ in range(self._terms.max_passes):
            self._pass(manifest, plan, workers)
            if self._terms.stop.is_set() or not plan.pending():
                break
            self._say(f"{plan.pending_chunks} chunks are still missing; going over them again")
        self._note(plan, wait=True)
        self._progress.finish()
        if plan.pending() and not self._terms.stop.is_set():
            raise RaysightError(
                f"{plan.pending_chunks} chunks are missing after {self._terms.max_passes} passes; run again"
            )

    def _pass(self, manifest: Manifest, plan: Plan, workers: Workers) -> None:
        next_notice = _STALL_S
        told = False
        for result in workers.chunks(manifest, plan.pending(), self._terms.stop):
            if self._terms.stop.is_set() and not told:
                told = True
                self._progress.say(f"stopping: chunks in flight have {self._terms.grace_s:g} s to commit")
            if result is None:
                self._progress.tick()
                if self._progress.idle_s > next_notice:
                    next_notice += _STALL_S
                    self._progress.say(f"no result for {self._progress.idle_s:.0f} s; {workers.free()}")
            else:
                next_notice = _STALL_S
                self._log.add(result)
                self._progress.add(result.rows, sum(result.rejects.values()))
                if plan.commit(result.shard, result.chunk):
                    self._seal(manifest, plan, result.shard)
            self._note(plan)

    def _seal(self, manifest: Manifest, plan: Plan, shard: int) -> None:
        task = functools.partial(seal_shard, shard=shard, listed=manifest.shards[shard], fingerprint=self._fingerprint)
        if self._workers is None:
            task(self._dest)
            plan.seal(shard)
        else:
            self._workers.submit(shard, task, cpus=0)  # the actors hold the CPUs

    def _note(self, plan: Plan, *, wait: bool = False) -> None:
        if self._workers is not None:
            for shard in self._workers.done(wait=wait):
                plan.seal(shard)

    def _retire(self, manifest: Manifest) -> bool:
        """Removes the rows that leave with the last generation. False when stopped before the end."""
        parts = unapplied(self._dest, manifest)
        if parts:
            self.worked = True
            rows = sum(part.rows for part in parts)
            self._say(f"rows of older versions and of gone objects to take out: {rows:,}, from {len(parts):,} shard(s)")
        for start in range(0, len(parts), _REWRITES_AT_ONCE):
            for part in parts[start : start + _REWRITES_AT_ONCE]:
                if self._terms.stop.is_set():
                    break
                task = functools.partial(retire_rows, generation=manifest.last.number, part=part)
                if self._workers is None:
                    task(self._dest)
                else:
                    self._workers.submit(part.shard, task, cpus=1)
            if self._workers is not None:
                self._workers.done(wait=True)
        left = len(unapplied(self._dest, manifest)) if parts else 0
        if left and not self._terms.stop.is_set():
            raise RaysightError(f"{left} shards were written by somebody else meanwhile; run again")
        return not left

    def close(self) -> Summary:
        """Cleans up after a settled run, and writes down what it did."""
        assert self._manifest is not None
        assert self._plan is not None
        if self._settled:
            clean_up(self._dest, self._plan.sealed)
        rows, rejects = self._progress.rows, self._progress.rejects
        summary = Summary(
            rows=rows - rejects,
            rejects=rejects,
            skipped=max(0, self._plan.rows_done - rows),
            total_rejects=count_rejects(self._dest),
            total=self._manifest.rows,
            images_per_second=self._progress.images_per_second if rows else 0.0,
            complete=self._settled,
        )
        if rows or self._terms.stop.is_set():
            self._record("complete" if self._settled else "interrupted")
        return summary

    def fail(self, error: Exception) -> None:
        """Writes down what a run did that ends with this error, if the store still takes it."""
        if isinstance(error, UsageError) and not self._progress.rows:
            return  # refused before it did anything
        with contextlib.suppress(Exception):  # the error itself says more
            self._record("interrupted" if isinstance(error, InterruptedJobError) else "failed", error)

    def _record(self, outcome: Outcome, error: Exception | None = None) -> None:
        if self._workers is not None:
            self._log.count(self._workers.requests)
        self._log.count(self._terms.listed)
        for store in self._terms.counted:
            self._log.count(store.take())
        rows, done = self._progress.rows, self._plan.rows_done if self._plan else 0
        rate = self._progress.images_per_second if rows else 0.0
        skipped = max(0, done - rows)
        self._dest.put(*self._log.to_object(self._manifest, rate, skipped=skipped, outcome=outcome, error=error))
