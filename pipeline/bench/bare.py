"""Bare limits of single stages, each with what raysight's own code reaches in the same process."""

from __future__ import annotations

import asyncio
import io
import os
import tempfile
import time
from itertools import islice
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import schema
from pipeline.commit import build_chunk, commit_chunk
from pipeline.config import ImageLimits, StorageConfig
from pipeline.storage import open_store
from pipeline.store import Fetched

if TYPE_CHECKING:
    from collections.abc import Callable

_REPEATS = 5
_TICK = os.sysconf("SC_CLK_TCK")


def gets(folder: str, passes: int) -> dict[str, Any]:
    """GETs of every file of a folder from :mod:`pipeline.bench.object_server`, by obstore alone and by raysight.

    Returns:
        for ``alone`` and ``raysight``: ``rate`` (GETs/s), and CPU microseconds of a GET in ``client`` and ``server``.
    """
    from pipeline.bench.object_server import BUCKET, serving

    with serving(Path(folder)) as (server, environment):
        os.environ.update(environment)
        import obstore
        from obstore.store import S3Store

        config = StorageConfig()
        store = open_store(f"s3://{BUCKET}/", config)
        keys = [item.key for item in store.list_objects()]
        bare = S3Store(
            BUCKET, endpoint=environment["AWS_ENDPOINT_URL"], client_options={"allow_http": True}, skip_signature=True
        )

        async def get_all() -> None:
            places = asyncio.Semaphore(config.max_in_flight)

            async def get(key: str) -> int:
                async with places:
                    return len(await (await obstore.get_async(bare, key)).bytes_async())

            assert all(await asyncio.gather(*map(get, keys)))

        def alone() -> None:
            asyncio.run(get_all())

        def raysight() -> None:
            answers = store.fetch_many(keys, ImageLimits().max_bytes)
            assert all(isinstance(answer, Fetched) for answer in answers)

        figures = {}
        for name, run in (("alone", alone), ("raysight", raysight)):
            run()  # connections
            wall, mine, its = time.monotonic(), time.process_time(), _cpu_seconds(server.pid)
            for _ in range(passes):
                run()
            count = passes * len(keys)
            figures[name] = {
                "rate": count / (time.monotonic() - wall),
                "client": (time.process_time() - mine) / count * 1e6,
                "server": (_cpu_seconds(server.pid) - its) / count * 1e6,
            }
    return figures


def _cpu_seconds(pid: int) -> float:
    """User and system time of another process (proc(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def pixels(source: str, images: int) -> dict[str, Any]:
    """CPU milliseconds of an image on one core: the library's call alone, and raysight's function around it.

    Returns:
        for ``decode`` and ``resize``: ``alone`` and ``raysight``.
    """
    import simplejpeg
    import torch
    from torch.nn.functional import interpolate

    from pipeline.bench.limit import preprocessor
    from pipeline.decode import decode_pixels
    from pipeline.resize import resize_and_crop, shorter_side

    torch.set_num_threads(1)
    data = [path.read_bytes() for path in islice(sorted(Path(source).iterdir()), images)]
    limits, config = ImageLimits(), preprocessor().config
    decoded = [decode_pixels(item, limits).pixels for item in data]
    side = shorter_side(config)

    def whole(image: np.ndarray[Any, Any]) -> object:
        height, width = image.shape[:2]
        size = (side, side * width // height) if width > height else (side * height // width, side)
        tensor = torch.from_numpy(image).unsqueeze(0).permute(0, 3, 1, 2)
        return interpolate(tensor, size=size, mode=config.interpolation, antialias=True)

    return {
        "decode": {
            "alone": _each(lambda item: simplejpeg.decode_jpeg(item), data),
            "raysight": _each(lambda item: decode_pixels(item, limits), data),
        },
        "resize": {
            "alone": _each(whole, decoded),
            "raysight": _each(lambda item: resize_and_crop(item, config), decoded),
        },
    }


def _each(run: Callable[[Any], object], items: list[Any]) -> float:
    """CPU milliseconds of one item: the median of several passes, after one to warm up."""
    times = []
    for _ in range(1 + _REPEATS):
        start = time.thread_time()
        for item in items:
            run(item)
        times.append((time.thread_time() - start) / len(items) * 1e3)
    return median(times[1:])


def gemm(size: int, seconds: float) -> dict[str, Any]:
    """GFLOP/s of a square matrix product on all cores (or the GPU), in fp32 and bf16: the best of what a time allows.

    Also ``flops``: floating-point operations of one image through the default model, two for each multiplication with
    its addition, counted by ``torch.utils.flop_counter`` (attention included).
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from pipeline import model as models
    from pipeline.config import DEFAULT_MODEL
    from pipeline.extractor import pick_device

    device = pick_device()
    figures: dict[str, Any] = {"device": device.type}
    with torch.inference_mode():
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            one = torch.randn(size, size, device=device).to(dtype)
            best, end = float("inf"), time.monotonic() + seconds
            while time.monotonic() < end:
                start = time.monotonic()
                one @ one
                if device.type == "cuda":
                    torch.cuda.synchronize()
                best = min(best, time.monotonic() - start)
            figures[name] = 2 * size**3 / best / 1e9
        model = models.load_model(DEFAULT_MODEL, "random:0", None, classifier=False)
        # In its plain form: the counter does not know the fused attention of a CPU.
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            model(torch.zeros(1, *models.data_config(model)["input_size"]))
        figures["flops"] = counter.get_total_flops()
        if device.type == "cuda":
            figures["copy"] = _copy_rate(torch)
    return figures


def _copy_rate(torch: Any) -> float:
    """GB/s from pinned memory to the GPU."""
    source = torch.empty(1 << 28, dtype=torch.uint8, pin_memory=True)
    target = torch.empty_like(source, device="cuda")
    rates = []
    for _ in range(1 + _REPEATS):
        torch.cuda.synchronize()
        start = time.monotonic()
        target.copy_(source, non_blocking=True)
        torch.cuda.synchronize()
        rates.append(len(source) / (time.monotonic() - start) / 1e9)
    return max(rates[1:])


def parquet(rows: int, dim: int) -> dict[str, Any]:
    """MB/s of features: Arrow's bare write of the column to memory, and raysight's commit of a chunk to a file."""
    values = np.random.default_rng(0).standard_normal((rows, dim), np.float32)
    field = schema.embedding_field(dim)
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), dim)
    table = pa.table({"embedding": column}, schema=pa.schema([field]))

    def bare(_: object) -> None:
        pq.write_table(table, io.BytesIO(), compression="none", use_dictionary=False, write_statistics=False)

    names = [f"s3://bucket/images/{number:08d}.jpg" for number in range(rows)]
    with tempfile.TemporaryDirectory() as folder:
        dest = open_store(folder, StorageConfig())

        def commit(number: int) -> None:
            chunk = build_chunk(names, names, [(500, 375)] * rows, {"embedding": column}, [field])
            commit_chunk(dest, 0, number, chunk)

        megabytes = values.nbytes / 1e6
        return {name: megabytes / _wall(run) for name, run in (("alone", bare), ("raysight", commit))}


def _wall(run: Callable[[int], None]) -> float:
    times = []
    for number in range(1 + _REPEATS):
        start = time.monotonic()
        run(number)
        times.append(time.monotonic() - start)
    return median(times[1:])
