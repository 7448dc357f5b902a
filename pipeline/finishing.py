"""What a Ray task does for a shard: seals or rewrites it. Apart from what hands it out, which takes long to import."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.counting import CountingStore
from pipeline.logs import configure
from pipeline.storage import open_store

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.config import Config
    from pipeline.storage import Store


def finish_shard(
    config: Config, labels: dict[str, str], shard: int, task: Callable[[Store], None]
) -> tuple[int, dict[str, int]]:
    """Runs the task on the dataset; the shard, and the requests that it took."""
    configure(config.job.log_format, labels)
    dest = CountingStore(open_store(config.dest, config.storage))
    task(dest)
    return shard, dest.take()
