"""Sources that change, a dataset that follows them without Ray, and a plain-Python account of what it must hold."""

from __future__ import annotations

import io
import threading
from collections import defaultdict
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import pyarrow as pa
from datasets import DIM, FINGERPRINT, vector

from pipeline.chunk_result import ChunkResult
from pipeline.commit import build_chunk, commit_chunk
from pipeline.config import ModelConfig
from pipeline.cut import Cut
from pipeline.dataset import agree_on
from pipeline.errors import RejectError
from pipeline.generation import Listing
from pipeline.inspection import check_structure, open_dataset
from pipeline.job import course
from pipeline.local import LocalStore
from pipeline.manifest import ManifestReader
from pipeline.progress import Progress
from pipeline.read import read_chunk
from pipeline.retry import retry_rejects
from pipeline.run import Run
from pipeline.runlog import RunLog
from pipeline.schema import embedding_field
from pipeline.source import list_rows
from pipeline.sync import Sync, sync_manifest
from pipeline.terms import Summary, Terms

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from pipeline.manifest import Manifest
    from pipeline.storage import Store

_NOTHING: dict[str, Any] = dict.fromkeys((field.name for field in fields(ChunkResult)), 0)

CUT = Cut(chunk_rows=2, chunk_bytes=1 << 20, shard_rows=5)
MEMORY = 64 << 20

Outcome = tuple[str, object]
"""``("features", values)`` or ``("rejects", error)``."""


@dataclass(frozen=True, slots=True)
class Row:
    """What a dataset says of a uri: the version, and what became of it."""

    etag: str
    outcome: Outcome


@dataclass(slots=True)
class Decoder:
    """Turns ``b"7"`` into the features of 7. What is no number is corrupt, and so is what is cursed for now."""

    cursed: set[str] = field(default_factory=set)
    seen: dict[str, set[Row]] = field(default_factory=lambda: defaultdict(set))

    def chunk(self, row: pa.Table) -> pa.Table:
        """The chunk of a row of ``read_chunk``; notes every outcome."""
        uris, etags, data, rejects = (row[name][0].as_py() for name in ("uri", "etag", "data", "reject"))
        outcomes: list[Any] = []
        values: list[list[float]] = []
        for uri, etag, content, reject in zip(uris, etags, data, rejects, strict=True):
            if reject is not None:
                outcomes.append(RejectError(**reject))
            elif (outcome := self.outcome(uri, content))[0] == "rejects":
                outcomes.append(RejectError("decode", str(outcome[1]), "no number"))
            else:
                outcomes.append((1, 1))
                values.append(vector(int(content)))
            failed = outcomes[-1] if isinstance(outcomes[-1], RejectError) else None
            noted = ("rejects", failed.error) if failed else ("features", tuple(values[-1]))
            self.seen[uri].add(Row(etag, noted))
        column = pa.FixedSizeListArray.from_arrays(pa.array(np.array(values, np.float32).reshape(-1)), DIM)
        field = embedding_field(DIM)
        return build_chunk(uris, etags, outcomes, {"embedding": column.cast(field.type)}, [field])

    def outcome(self, uri: str, content: bytes) -> Outcome:
        """What becomes of these bytes."""
        if uri in self.cursed or not content.isdigit():
            return "rejects", "Corrupt"
        return "features", tuple(vector(int(content)))


class Here:
    """Workers without Ray: everything at once, in this process."""

    def __init__(self, dest: Store, decoder: Decoder) -> None:
        self._dest = dest
        self._decoder = decoder
        self._done: list[int] = []

    def chunks(
        self, manifest: Manifest, pending: Sequence[tuple[int, Any]], stop: threading.Event
    ) -> Iterator[ChunkResult | None]:
        reader = ManifestReader(self._dest)
        for shard, chunks in pending:
            source = LocalStore(manifest.shards[shard].source)
            for chunk in map(int, chunks):
                table = self._decoder.chunk(read_chunk(reader, source, shard, chunk, 1 << 20))
                commit_chunk(self._dest, shard, chunk, table)
                rejects = {"any": len(table) - table["stage"].null_count}
                known = {"shard": shard, "chunk": chunk, "rows": len(table), "rejects": rejects, "attempt": 1}
                yield ChunkResult(**{**_NOTHING, **known, "worker": "here", "requests": {}})

    def submit(self, shard: int, task: Callable[[Store], None], cpus: float) -> None:
        task(self._dest)
        self._done.append(shard)

    def done(self, *, wait: bool = False) -> Iterable[int]:
        done, self._done = self._done, []
        return done

    @property
    def requests(self) -> dict[str, int]:
        return {}

    def free(self) -> str:
        return "nothing"


class World:
    """Two folders of objects, a dataset, and what it held when it was last settled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sources = [folder / "a", folder / "b"]
        for source in self.sources:
            source.mkdir(parents=True)
        self.dest = folder / "out"
        self.decoder = Decoder()
        self.said: list[str] = []
        self._versions = 0
        agree_on(LocalStore(str(self.dest)), FINGERPRINT, ModelConfig())

    def write(self, source: int, name: str, content: bytes) -> None:
        """Makes or replaces an object; the version is always a new one."""
        import os

        path = self.sources[source] / name
        path.write_bytes(content)
        self._versions += 1
        os.utime(path, ns=(self._versions, self._versions))

    def fill(self, count: int) -> World:
        """``0.png``, ``1.png`` … in the first source, each with its number for content. Returns this world."""
        for number in range(count):
            self.write(0, f"{number}.png", b"%d" % number)
        return self

    def objects(self, source: int) -> dict[str, tuple[str, bytes]]:
        """uri → (etag, content) of a source, in the order of a listing."""
        store = LocalStore(str(self.sources[source]))
        return {
            store.uri(item.key): (item.version, store.get(item.key))
            for item in store.list_objects()
            if item.key.endswith(".png")
        }

    def extract(
        self,
        sources: Sequence[int] = (0,),
        *,
        prune: bool = False,
        limit: int | None = None,
        retry: bool = False,
        dest: Any = None,
        after_listing: Callable[[], None] = lambda: None,
    ) -> Summary:
        """What ``raysight extract`` or ``retry-rejects`` does, through a store that may die."""
        store: Any = dest or LocalStore(str(self.dest))
        stores = [LocalStore(str(self.sources[number])) for number in sources]

        def rows() -> Iterator[tuple[str, pa.RecordBatch]]:
            yield from list_rows([source.root for source in stores], limit=limit)
            after_listing()

        def renew(manifest: Manifest | None, cut: Cut) -> Manifest:
            if retry:
                assert manifest is not None
                return retry_rejects(store, manifest, cut, _look_up, self.said.append)
            sync = Sync(Listing(tuple(source.root for source in stores), limit), prune, MEMORY)
            return sync_manifest(store, manifest, sync, rows(), cut, self.said.append)

        stop = threading.Event()
        terms = Terms(max_passes=2, grace_s=1, stop=stop)
        progress = Progress(stream=io.StringIO())
        log, say = RunLog(FINGERPRINT), self.said.append
        run = Run(store, FINGERPRINT, log, terms, lambda: Here(store, self.decoder), progress, say)
        return course(run, store, CUT, renew, stop, say, retry=retry)

    def rows(self) -> dict[str, Row]:
        """uri → row, as DuckDB reads the dataset; fails where a uri stands twice."""
        found: dict[str, Row] = {}
        for kind, column in (("features", "embedding"), ("rejects", "error")):
            if list(self.dest.glob(f"{kind}/*.parquet")):
                for uri, etag, value in duckdb.sql(
                    f"select uri, etag, {column} from '{self.dest}/{kind}/*.parquet'"
                ).fetchall():
                    assert uri not in found, f"{uri} stands in the dataset twice"
                    found[uri] = Row(etag, (kind, tuple(value) if kind == "features" else value))
        return found

    def versions(self) -> list[tuple[str, str]]:
        """(uri, etag) of all feature rows."""
        if not list(self.dest.glob("features/*.parquet")):
            return []
        return duckdb.sql(f"select uri, etag from '{self.dest}/features/*.parquet'").fetchall()

    def uris(self) -> set[str]:
        """All that stand in features or rejects."""
        folders = [kind for kind in ("features", "rejects") if list(self.dest.glob(f"{kind}/*.parquet"))]
        rows = (duckdb.sql(f"select uri from '{self.dest}/{kind}/*.parquet'").fetchall() for kind in folders)
        return {uri for found in rows for (uri,) in found}

    def problems(self) -> list[str]:
        """What verify finds wrong with the dataset's structure."""
        store = LocalStore(str(self.dest))
        return check_structure(store, *open_dataset(store)).problems


def _look_up(source: str, uris: Sequence[str]) -> list[Any]:
    store = LocalStore(source)
    return store.look_up([store.key(uri) for uri in uris])
