"""The second half of ``verify``: rows of the dataset computed again by timm's own transform and model, in fp32."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pipeline import schema
from pipeline.decode import decode_image
from pipeline.errors import RejectError
from pipeline.model import data_config, load_model, weights_digest
from pipeline.preprocess import PRESET_SIZES, resolve_preset, timm_transform

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from pipeline.config import ImageLimits
    from pipeline.dataset import DatasetInfo
    from pipeline.manifest import Manifest
    from pipeline.storage import Fetched, Store
    from pipeline.store import Fetcher
    from pipeline.tolerance import Tolerance

_FETCHED_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Comparison:
    """One stored row beside timm's.

    Attributes:
        uri: of the image.
        cosine: similarity of the two.
        difference: largest absolute difference.
        scale: largest absolute value of timm's.
        skipped: why there is nothing to compare; empty otherwise.
    """

    uri: str
    cosine: float = float("nan")
    difference: float = float("nan")
    scale: float = float("nan")
    skipped: str = ""

    def within(self, bound: Tolerance) -> bool:
        """Whether the row is close enough."""
        return bool(self.cosine >= bound.cosine and self.difference <= bound.relative * self.scale)


class Oracle:
    """timm alone: its model with the dataset's weights, its transform, fp32 on the CPU."""

    def __init__(self, info: DatasetInfo, limits: ImageLimits) -> None:
        self._limits = limits
        self._model = load_model(info.model.name, info.model.weights, PRESET_SIZES[info.model.preset])
        self.weights_agree = weights_digest(self._model) == info.fingerprint.weights
        preset = resolve_preset(data_config(self._model), info.model.preset, "reference")
        self._transform = timm_transform(preset, normalize=True)

    @torch.inference_mode()
    def embedding(self, data: bytes) -> NDArray[np.float32]:
        """(dim,) float32. Raises RejectError for what cannot be decoded."""
        pixels = self._transform(decode_image(data, self._limits)).unsqueeze(0)
        features = self._model.forward_features(pixels)  # type: ignore[operator]
        result: NDArray[np.float32] = self._model.forward_head(features, pre_logits=True)[0].numpy()  # type: ignore[operator]
        return result


def compare_sample(
    dest: Store, source: Fetcher, manifest: Manifest, oracle: Oracle, count: int, limits: ImageLimits
) -> Iterator[Comparison]:
    """Up to ``count`` rows drawn at random (the same ones each time; all where there are fewer), computed again."""
    rows = _draw(dest, manifest, count)
    while batch := list(islice(rows, _FETCHED_AT_ONCE)):
        fetched = source.fetch_many([source.key(uri) for uri, _, _ in batch], limits.max_bytes)
        for (uri, etag, stored), answer in zip(batch, fetched, strict=True):
            if isinstance(answer, RejectError):
                yield Comparison(uri, skipped=answer.message)
            elif answer.version != etag:
                yield Comparison(uri, skipped="the object changed after it was extracted")
            else:
                yield _compare(uri, stored, answer, oracle)


def _compare(uri: str, stored: NDArray[np.float32], answer: Fetched, oracle: Oracle) -> Comparison:
    mine = stored.astype(np.float64)
    try:
        theirs = oracle.embedding(answer.data).astype(np.float64)
    except RejectError:
        return Comparison(uri)  # a row of an image that cannot be decoded: not within any bound
    cosine = float(mine @ theirs / (np.linalg.norm(mine) * np.linalg.norm(theirs)))
    return Comparison(uri, cosine, float(np.abs(mine - theirs).max()), float(np.abs(theirs).max()))


def _draw(dest: Store, manifest: Manifest, count: int) -> Iterator[tuple[str, str, NDArray[np.float32]]]:
    """Rows spread evenly over the manifest, so that each shard is drawn with the chance of its rows."""
    chance = random.Random(0)  # noqa: S311 — a sample, not a secret
    picked = chance.sample(range(manifest.rows), min(count, manifest.rows))
    ends = np.cumsum([shard.rows for shard in manifest.shards])
    shards, wanted = np.unique(np.searchsorted(ends, picked, side="right"), return_counts=True)
    for shard, number in zip(shards.tolist(), wanted.tolist(), strict=True):
        file = pq.ParquetFile(pa.BufferReader(dest.get(schema.features_shard(shard))))
        total = file.metadata.num_rows
        indices = sorted(chance.sample(range(total), min(number, total)))
        table = file.read(columns=["uri", "etag", "embedding"]).take(pa.array(indices, pa.int64()))
        for row in table.to_pylist():
            yield row["uri"], row["etag"], np.array(row["embedding"], dtype=np.float32)
