"""What an actor does with a chunk: decode on threads, forward on the device, commit. Knows nothing of ray."""

from __future__ import annotations

import os
import platform
import time
from collections import Counter, deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from pipeline.chunk_result import ChunkResult
from pipeline.chunk_work import ChunkWork
from pipeline.chunkrow import images
from pipeline.commit import build_chunk, commit_chunk
from pipeline.counting import CountingStore
from pipeline.decoding import decode, decode_ahead, group_size
from pipeline.errors import RejectError
from pipeline.isolate import IsolatedPreprocessor
from pipeline.read import kept_columns
from pipeline.streams import ForwardStreams

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa

    from pipeline.decoding import Decoded
    from pipeline.extractor import Extractor
    from pipeline.prepared import Prepared
    from pipeline.storage import Store
    from pipeline.streams import Forwarded


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """How a worker spends its CPUs.

    Attributes:
        batch_size: images of one forward.
        decode_threads: threads that decode; two chunks share them.
        forward_streams: forwards at a time; two chunks share them.
        forward_threads: of torch, in each of these.
        forward_depth: batches in hand for each of these.
        decode_timeout_s: seconds for one image when it is decoded in a subprocess.
        poison_attempts: dead workers after which a chunk is decoded in a subprocess.
    """

    batch_size: int
    decode_threads: int
    forward_streams: int
    forward_threads: int
    decode_timeout_s: float
    poison_attempts: int
    forward_depth: int = 1


class ChunkWorker:
    """Extracts and commits chunks. Several threads may call it at once: one decodes while another uses the device."""

    def __init__(self, extractor: Extractor, dest: Store, config: WorkerConfig) -> None:
        self._extractor = extractor
        self._dest = CountingStore(dest)
        self._name = f"{platform.node()}:{os.getpid()}"
        self._config = config
        self._streams = ForwardStreams(extractor, config.forward_streams, config.forward_threads, config.forward_depth)
        import torch  # not at the top: a seal worker has no use for it

        # A resize on one thread is a tenth cheaper, and torch's helpers would wait in a loop for work, on cores that
        # other threads need.
        self._pool = ThreadPoolExecutor(
            config.decode_threads, thread_name_prefix="decode", initializer=torch.set_num_threads, initargs=(1,)
        )

    def process(self, row: pa.Table, attempt: int = 1) -> ChunkResult:
        """Extracts one chunk and commits it.

        Args:
            row: one row of ``pipeline.read.CHUNK_ROW_SCHEMA``.
            attempt: 1, or more when workers died over this chunk before.

        Raises:
            StorageError: the commit failed.
        """
        start = time.perf_counter()
        shard, chunk = row["shard"][0].as_py(), row["chunk"][0].as_py()
        uris, etags = row["uri"][0].as_py(), row["etag"][0].as_py()
        work = ChunkWork(
            images(row),
            self._extractor.outputs,
            len(uris),
            row["prepare_seconds"][0].as_py(),
            row["prepare_cpu_seconds"][0].as_py(),
        )
        if attempt > self._config.poison_attempts:
            with IsolatedPreprocessor(self._extractor.preprocessor, self._config.decode_timeout_s) as isolated:
                self._extract(work, (decode([item], isolated.prepare) for item in work.items))
        else:
            group = group_size(self._config.batch_size, len(uris), self._config.decode_threads)
            ahead = (1 + self._streams.in_hand) * self._config.batch_size + self._config.decode_threads * group
            groups = decode_ahead(work.items, self._extractor.prepare, self._pool, ahead=ahead, group=group)
            self._extract(work, groups)
        columns = self._extractor.finish(work.features)
        table = build_chunk(uris, etags, work.outcomes, columns, self._extractor.outputs, kept_columns(row))
        before, cpu = time.perf_counter(), time.thread_time()
        written = commit_chunk(self._dest, shard, chunk, table)
        end = time.perf_counter()
        return ChunkResult(
            shard=shard,
            chunk=chunk,
            rows=len(uris),
            rejects=dict(Counter(item.error for item in work.outcomes if isinstance(item, RejectError))),
            attempt=attempt,
            bytes_read=row["bytes_read"][0].as_py(),
            bytes_written=written,
            read_seconds=row["read_seconds"][0].as_py(),
            read_cpu_seconds=row["read_cpu_seconds"][0].as_py(),
            prepare_seconds=work.prepare_seconds,
            prepare_cpu_seconds=work.prepare_cpu_seconds,
            forward_seconds=work.forward_seconds,
            forward_cpu_seconds=work.forward_cpu_seconds,
            commit_seconds=end - before,
            commit_cpu_seconds=time.thread_time() - cpu,
            chunk_seconds=end - start,
            worker=self._name,
            started=start,
            ended=end,
            requests=dict(Counter(dict(row["requests"][0].as_py())) + Counter(self._dest.take())),
            batch_size=self._config.batch_size,
            batch_left=min(self._config.batch_size, self._extractor.most or self._config.batch_size),
        )

    def _extract(self, work: ChunkWork, groups: Iterator[Decoded]) -> None:
        """Runs the chunk through; ``groups`` are its images, decoded, in order."""
        batch: dict[int, Prepared] = {}
        running: deque[tuple[list[int], Future[Forwarded]]] = deque()
        for outcome in chain.from_iterable(map(work.take, groups)):
            if isinstance(outcome, RejectError):
                work.outcomes.append(outcome)
                continue
            batch[len(work.outcomes)] = outcome
            work.outcomes.append((outcome.width, outcome.height))
            if len(batch) == self._config.batch_size:
                running.append(self._forward(batch))
                batch = {}
                if len(running) > self._streams.in_hand:  # one waits, so that no stream does
                    work.note(*running.popleft())
        if batch:
            running.append(self._forward(batch))
        while running:
            work.note(*running.popleft())

    def _forward(self, batch: dict[int, Prepared]) -> tuple[list[int], Future[Forwarded]]:
        """Begins a forward; keys of ``batch`` are places in the chunk."""
        return list(batch), self._streams.submit([image.pixels for image in batch.values()])
