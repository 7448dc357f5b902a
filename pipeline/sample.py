"""The second half of ``verify``: rows of the dataset computed again by timm's own transform and model, in fp32."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pipeline import schema
from pipeline.checkpoint import local_checkpoint
from pipeline.columns import to_numpy
from pipeline.decode import decode_image
from pipeline.errors import RejectError
from pipeline.head import load_head
from pipeline.layout import find_layout
from pipeline.model import data_config, digests, load_model
from pipeline.preprocess import input_side, resolve_preset, timm_transform

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from pipeline.config import ImageLimits, StorageConfig
    from pipeline.dataset import DatasetInfo
    from pipeline.manifest import Manifest
    from pipeline.storage import Fetched, Store
    from pipeline.store import Fetcher
    from pipeline.tolerance import Tolerance

    Row = dict[str, NDArray[Any]]

_FETCHED_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Comparison:
    """One output of a stored row beside timm's.

    Attributes:
        uri: of the image.
        output: ``embedding``, ``patches`` or ``classes``; empty where nothing was compared.
        cosine: similarity of the two; of classes, 1.
        difference: largest absolute difference; of classes, between two probabilities in percent, by which also a class
            that timm has not among its likeliest is less likely than those.
        scale: largest absolute value of timm's.
        skipped: why there is nothing to compare; empty otherwise.
    """

    uri: str
    output: str = ""
    cosine: float = float("nan")
    difference: float = float("nan")
    scale: float = float("nan")
    skipped: str = ""

    def within(self, bound: Tolerance, dtype: str) -> bool:
        """Whether the row is close enough. ``dtype`` is that of embeddings."""
        if self.output == "classes":
            return bool(self.difference <= bound.percent)
        if self.output == "patches":
            bound = bound.of_patches
        elif dtype == "float16":
            bound = bound.in_float16
        return bool(self.cosine >= bound.cosine and self.difference <= bound.relative * self.scale)


class Oracle:
    """timm alone: its model with the dataset's weights, its transform, fp32 on the CPU."""

    def __init__(self, info: DatasetInfo, limits: ImageLimits, storage: StorageConfig) -> None:
        model = info.model
        self.names = [output.partition(":")[0] for output in info.fingerprint.outputs]
        side = input_side(model.preset, model.image_size)
        own_head = "classes" in model.features and model.head is None
        self._info, self._limits = info, limits
        self._model = load_model(model.name, model.weights, side, classifier=own_head, storage=storage)
        preset = resolve_preset(data_config(self._model), model.preset, "reference", side)
        self._transform = timm_transform(preset, normalize=True)
        self._head: torch.nn.Linear | None = None
        weights, head = digests(self._model)
        if "classes" in model.features and model.head is not None:
            layout = find_layout(self._model, model.name, preset.height, preset.width)
            loaded = load_head(local_checkpoint(model.head, "--head", storage), model.name, layout)
            self._head, head = loaded.linear, loaded.digest
        self.weights_agree = weights == info.fingerprint.weights and info.fingerprint.head in ("", head)

    @torch.inference_mode()
    def features(self, data: bytes) -> dict[str, NDArray[np.float32]]:
        """``embedding`` (dim,), ``patches`` (n, width) and ``classes`` (C,) in percent, as far as the dataset has them.

        Raises:
            RejectError: the image cannot be decoded.
        """
        pixels = self._transform(decode_image(data, self._limits)).unsqueeze(0)
        model: Any = self._model
        features = model.forward_features(pixels)
        embedding = model.forward_head(features, pre_logits=True)
        found = {}
        if "embedding" in self.names:
            normalize = self._info.fingerprint.normalize
            found["embedding"] = embedding / embedding.norm() if normalize else embedding
        prefix = getattr(model, "num_prefix_tokens", 0)
        if "patches" in self.names:
            if features.ndim == 3:
                found["patches"] = features[:, prefix:]
            else:
                nhwc = getattr(model, "output_fmt", "") == "NHWC"
                found["patches"] = (features if nhwc else features.permute(0, 2, 3, 1)).flatten(1, 2)
        if "class_index" in self.names:
            if self._head is None:
                logits = model.forward_head(features)
            else:
                tokens = self._head.in_features != embedding.shape[1]
                means = torch.cat([features[:, 0], features[:, prefix:].mean(1)], dim=1) if tokens else embedding
                logits = self._head(means)
            found["classes"] = logits.softmax(dim=1) * 100
        return {name: values[0].numpy() for name, values in found.items()}


def compare_sample(
    dest: Store, source: Fetcher, manifest: Manifest, oracle: Oracle, count: int, limits: ImageLimits
) -> Iterator[Comparison]:
    """Up to ``count`` rows drawn at random (the same ones each time; all where there are fewer), computed again."""
    rows = _draw(dest, manifest, count, oracle.names)
    while batch := list(islice(rows, _FETCHED_AT_ONCE)):
        fetched = source.fetch_many([source.key(uri) for uri, _, _ in batch], limits.max_bytes)
        for (uri, etag, stored), answer in zip(batch, fetched, strict=True):
            if isinstance(answer, RejectError):
                yield Comparison(uri, skipped=answer.message)
            elif answer.version != etag:
                yield Comparison(uri, skipped="the object changed after it was extracted")
            else:
                yield from _compare(uri, stored, answer, oracle)


def _compare(uri: str, stored: Row, answer: Fetched, oracle: Oracle) -> Iterator[Comparison]:
    try:
        theirs = oracle.features(answer.data)
    except RejectError:
        yield Comparison(uri)  # a row of an image that cannot be decoded: not within any bound
        return
    for name in ("embedding", "patches"):
        if name in theirs:
            mine, other = (values.astype(np.float64).reshape(-1) for values in (stored[name], theirs[name]))
            cosine = float(mine @ other / (np.linalg.norm(mine) * np.linalg.norm(other)))
            yield Comparison(uri, name, cosine, float(np.abs(mine - other).max()), float(np.abs(other).max()))
    if "classes" in theirs:
        yield _compare_classes(uri, stored["class_index"], stored["class_probability"], theirs["classes"])


def _compare_classes(uri: str, indices: NDArray[Any], percent: NDArray[Any], theirs: NDArray[Any]) -> Comparison:
    """Classes as likely as each other may stand in either order."""
    known = (indices >= 0) & (indices < len(theirs))
    if not known.all() or len(np.unique(indices)) < len(indices):
        return Comparison(uri, "classes", 1.0, float("inf"), 100.0)
    least = np.sort(theirs)[-len(indices)]
    difference = max(float(np.abs(percent - theirs[indices]).max()), float(least - theirs[indices].min()))
    return Comparison(uri, "classes", 1.0, difference, 100.0)


def _draw(dest: Store, manifest: Manifest, count: int, names: list[str]) -> Iterator[tuple[str, str, Row]]:
    """Rows spread evenly over the manifest, so that each shard is drawn with the chance of its rows."""
    chance = random.Random(0)  # noqa: S311 — a sample, not a secret
    picked = chance.sample(range(manifest.rows), min(count, manifest.rows))
    ends = np.cumsum(manifest.live_rows())
    shards, wanted = np.unique(np.searchsorted(ends, picked, side="right"), return_counts=True)
    for shard, number in zip(shards.tolist(), wanted.tolist(), strict=True):
        file = pq.ParquetFile(pa.BufferReader(dest.get(schema.features_shard(shard))))
        total = file.metadata.num_rows
        indices = sorted(chance.sample(range(total), min(number, total)))
        table = file.read(columns=["uri", "etag", *names]).take(pa.array(indices, pa.int64()))
        columns = {name: to_numpy(table[name]) for name in names}
        for place, row in enumerate(table.select(["uri", "etag"]).to_pylist()):
            yield row["uri"], row["etag"], {name: values[place] for name, values in columns.items()}
