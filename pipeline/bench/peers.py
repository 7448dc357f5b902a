"""The same work in the ways that people do it today, each as its own documentation shows it."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from timm.data import create_transform

from pipeline.bench.stubs import SLICE, data_config
from pipeline.cluster import local_ray
from pipeline.config import DEFAULT_MODEL

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BATCH = 32


class SliceModel:
    """Stands for the model in ``map_batches``: the red channel of the first row. The time tells warm from cold."""

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        rows = len(batch["path"])
        return {
            "uri": batch["path"],
            "embedding": batch["image"][:, 0, 0, :SLICE],
            "seen": np.full(rows, time.monotonic()),
        }


def guide(source: str, dest: str, images: int) -> dict[str, Any]:
    """Ray Data as its guide to batch inference shows it: read_images, map, map_batches on an actor, write_parquet.

    The actor asks for no CPU, as one on a GPU would not, so that both cores decode.

    Returns:
        as :func:`pipeline.bench.job.run`, without memory.
    """
    shutil.rmtree(dest, ignore_errors=True)
    transform = timm_transform()

    def preprocess(row: dict[str, Any]) -> dict[str, Any]:
        return {"path": row["path"], "image": transform(Image.fromarray(row["image"])).numpy()}

    start = time.monotonic()
    with local_ray(len(os.sched_getaffinity(0))):
        import ray.data

        ray.data.read_images(source, mode="RGB", include_paths=True).map(preprocess).map_batches(
            SliceModel, batch_size=_BATCH, concurrency=1, num_cpus=0
        ).write_parquet(dest)
        written = time.monotonic()
    return _figures(dest, images, start, written)


def dataloader(source: str, dest: str, images: int) -> dict[str, Any]:
    """torch's DataLoader, a worker a core, timm's transform, one Parquet file. Returns as :func:`guide`."""
    from torch.utils.data import DataLoader

    shutil.rmtree(dest, ignore_errors=True)
    Path(dest).mkdir(parents=True)
    start = time.monotonic()
    loader = DataLoader(_Photographs(source), batch_size=_BATCH, num_workers=len(os.sched_getaffinity(0)))
    model, parts = SliceModel(), list[pa.Table]()
    for paths, pixels in loader:
        batch = model({"path": np.array(paths), "image": pixels.numpy()})
        parts.append(pa.table({**batch, "embedding": list(batch["embedding"])}))
    pq.write_table(pa.concat_tables(parts), Path(dest) / "features.parquet")
    return _figures(dest, images, start, time.monotonic())


class _Photographs(torch.utils.data.Dataset[tuple[str, torch.Tensor]]):
    def __init__(self, source: str) -> None:
        self._paths = sorted(map(str, Path(source).iterdir()))
        self._transform = timm_transform()

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[str, torch.Tensor]:
        path = self._paths[index]
        return path, self._transform(Image.open(path).convert("RGB"))


def timm_transform() -> Any:
    """timm's own evaluation transform of the default model."""
    config = data_config(DEFAULT_MODEL)
    names = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")
    return create_transform(**{name: config[name] for name in names}, is_training=False)


def _figures(dest: str, images: int, start: float, written: float) -> dict[str, Any]:
    """Rates from the times in the output; every image must be there once."""
    end = time.monotonic()
    table = pq.read_table(dest, columns=["uri", "seen"])
    uris, seen = table["uri"].to_pylist(), table["seen"].to_numpy()
    assert len(uris) == len(set(uris)) == images, f"{len(uris)} rows for {images} images"
    first = float(seen.min())
    warm = int((seen > first).sum())
    whole = images / (end - start)
    return {
        "images": images,
        "whole": whole,
        "steady": warm / (written - first) if warm else whole,
        "first_s": first - start,
        "whole_s": end - start,
    }
