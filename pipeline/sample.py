"""The second half of ``verify``: rows of the dataset computed again by timm's own transform and model, in fp32."""

from __future__ import annotations

from dataclasses import dataclass
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
    from pipeline.tolerance import Tolerance


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
    dest: Store, source: Store, manifest: Manifest, oracle: Oracle, count: int, limits: ImageLimits
) -> Iterator[Comparison]:
    """Up to ``count`` rows drawn at random (the same ones each time), computed again."""
    rows = _draw(dest, manifest, count)
    fetched = source.fetch_many([source.key(uri) for uri, _, _ in rows], limits.max_bytes)
    for (uri, etag, stored), answer in zip(rows, fetched, strict=True):
        if isinstance(answer, RejectError):
            yield Comparison(uri, skipped=answer.message)
        elif answer.version != etag:
            yield Comparison(uri, skipped="the object changed after it was extracted")
        else:
            yield _compare(uri, stored, answer, oracle)


def _compare(uri: str, stored: NDArray[np.float32], answer: Fetched, oracle: Oracle) -> Comparison:
    mine = stored.astype(np.float64)
    theirs = oracle.embedding(answer.data).astype(np.float64)
    cosine = float(mine @ theirs / (np.linalg.norm(mine) * np.linalg.norm(theirs)))
    return Comparison(uri, cosine, float(np.abs(mine - theirs).max()), float(np.abs(theirs).max()))


def _draw(dest: Store, manifest: Manifest, count: int) -> list[tuple[str, str, NDArray[np.float32]]]:
    """Rows spread over the sealed shards; each shard is drawn with the chance of its rows."""
    generator = np.random.default_rng(0)
    weights = np.array([shard.rows for shard in manifest.shards], dtype=float)
    if not weights.sum():
        return []
    picked = generator.choice(len(weights), size=count, p=weights / weights.sum())
    rows = []
    for shard, wanted in zip(*np.unique(picked, return_counts=True), strict=True):
        file = pq.ParquetFile(pa.BufferReader(dest.get(schema.features_shard(int(shard)))))
        total = file.metadata.num_rows
        indices = np.sort(generator.choice(total, size=min(int(wanted), total), replace=False))
        table = file.read(columns=["uri", "etag", "embedding"]).take(pa.array(indices))
        rows += [(row["uri"], row["etag"], np.array(row["embedding"], dtype=np.float32)) for row in table.to_pylist()]
    return rows
