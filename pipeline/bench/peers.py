"""The same work in the ways that people do it today, each as its own documentation shows it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from pipeline.bench.stubs import SLICE, data_config
from pipeline.cluster import local_ray
from pipeline.config import DEFAULT_MODEL
from pipeline.preprocess import resolve_preset
from pipeline.preprocess import timm_transform as reference_transform
from pipeline.resize import shorter_side

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.config import Preset

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


def guide(source: str, dest: str, images: int, preset: Preset = "timm") -> dict[str, Any]:
    """Ray Data as its guide to batch inference shows it: read_images, map, map_batches on an actor, write_parquet.

    The actor asks for no CPU, as one on a GPU would not, so that both cores decode.

    Returns:
        as :func:`pipeline.bench.job.run`, without memory.
    """
    shutil.rmtree(dest, ignore_errors=True)
    transform = timm_transform(preset)

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


def dataloader(source: str, dest: str, images: int, preset: Preset = "timm") -> dict[str, Any]:
    """torch's DataLoader, a worker a core, timm's transform, one Parquet file. Returns as :func:`guide`."""
    from torch.utils.data import DataLoader

    shutil.rmtree(dest, ignore_errors=True)
    Path(dest).mkdir(parents=True)
    start = time.monotonic()
    loader = DataLoader(_Photographs(source, preset), batch_size=_BATCH, num_workers=len(os.sched_getaffinity(0)))
    model, parts = SliceModel(), list[pa.Table]()
    for paths, pixels in loader:
        batch = model({"path": np.array(paths), "image": pixels.numpy()})
        parts.append(pa.table({**batch, "embedding": list(batch["embedding"])}))
    pq.write_table(pa.concat_tables(parts), Path(dest) / "features.parquet")
    return _figures(dest, images, start, time.monotonic())


class _Photographs(torch.utils.data.Dataset[tuple[str, torch.Tensor]]):
    def __init__(self, source: str, preset: Preset) -> None:
        self._paths = sorted(map(str, Path(source).iterdir()))
        self._transform = timm_transform(preset)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[str, torch.Tensor]:
        path = self._paths[index]
        return path, self._transform(Image.open(path).convert("RGB"))


def daft(source: str, dest: str, images: int, python: str, preset: Preset = "timm") -> dict[str, Any]:
    """Daft, by the interpreter of a virtual environment of its own: its releases pin what raysight needs newer.

    Its own decode, then its own resize and crop to the same size: of the photographs, which all have one size. Its
    filter is another one than timm's, and cheaper. Returns as :func:`guide`.
    """
    shutil.rmtree(dest, ignore_errors=True)
    config = resolve_preset(data_config(DEFAULT_MODEL), preset, "reference")
    with Image.open(next(Path(source).iterdir())) as image:
        width, height = image.size
    side = shorter_side(config)
    wide = side * width // height  # the photographs are wider than high
    arguments = {
        "source": source,
        "dest": dest,
        "resized": (wide, side),
        "crop": (round((wide - config.width) / 2), round((side - config.height) / 2), config.width, config.height),
        "values": min(SLICE, config.width),
        "mean": config.mean[0],
        "std": config.std[0],
    }
    script = Path(__file__).with_name("peer_daft.py")
    start = time.monotonic()
    done = subprocess.run(
        [python, "-I", str(script), json.dumps(arguments)], check=True, capture_output=True, text=True
    )
    return _figures(dest, images, start, float(done.stdout.split()[-1]))


def timm_transform(preset: Preset = "timm") -> Any:
    """timm's own evaluation transform of the default model, or Meta's for it."""
    return reference_transform(resolve_preset(data_config(DEFAULT_MODEL), preset, "reference"), normalize=True)


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
