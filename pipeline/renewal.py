"""How a job brings its manifest up to date: the sources are listed again, or rejected rows looked up again."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from pipeline.dataset import load_info
from pipeline.errors import UsageError
from pipeline.generation import Listing
from pipeline.located import Located
from pipeline.manifest import load_manifest
from pipeline.origin import roots
from pipeline.preflight import until
from pipeline.retry import retry_rejects
from pipeline.source import check_sources, list_rows, require_images, source_names
from pipeline.sync import Sync, sync_manifest

if TYPE_CHECKING:
    import threading
    from collections import Counter
    from collections.abc import Callable

    from pipeline.config import Config
    from pipeline.cut import Cut
    from pipeline.manifest import Manifest
    from pipeline.storage import Store

    Renew = Callable[[Manifest | None, Cut], Manifest]


def listing(
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


def retrying(config: Config, dest: Store, say: Callable[[str], None]) -> Renew:
    """Looks the rejected rows up again. There must be a dataset."""
    if load_info(dest) is None or load_manifest(dest) is None:
        raise UsageError(f"{dest.root} holds no raysight dataset whose source was listed; run extract")
    located = functools.lru_cache(lambda source: Located(roots((source,)), config.storage))

    def renew(manifest: Manifest | None, cut: Cut) -> Manifest:
        assert manifest is not None
        return retry_rejects(dest, manifest, cut, lambda source, uris: located(source).look_up(uris), say)

    return renew
