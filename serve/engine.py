"""One extractor, shared by many requests: images are prepared on threads, batched, and run off the event loop."""

from __future__ import annotations

import asyncio
import functools
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from pipeline.decode import image_size
from pipeline.deviceerrors import is_device_lost
from pipeline.errors import RejectError
from pipeline.schema import describe_output, value_shape
from pipeline.streams import ForwardStreams
from serve.batcher import Batcher, batch_size
from serve.errors import ApiError, device_lost, timeout_error
from serve.limits import Admission, PixelBudget
from serve.outputs import available

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.config import ImageLimits
    from pipeline.extractor import Extractor
    from pipeline.fingerprint import Fingerprint
    from pipeline.sections import ServeConfig
    from serve.batcher import Row

_log = logging.getLogger("raysight.serve")


@dataclass(frozen=True, slots=True)
class Extracted:
    """The features of one image: its upright size in pixels, and a row of each of the model's outputs."""

    width: int
    height: int
    features: Row


Outcome = Extracted | RejectError


class Engine:
    """What a replica does with images. For one event loop, on which ``start`` is called."""

    def __init__(self, extractor: Extractor, limits: ImageLimits, config: ServeConfig, threads: int) -> None:
        """Args: threads: CPUs of this replica."""
        on_gpu = extractor.device.type == "cuda"
        self.extractor = extractor
        self.limits = limits
        self.config = config
        self.admission = Admission(config.max_queue, config.request_timeout_s)
        self._budget = PixelBudget(int(config.max_megapixels_in_flight * 1e6))
        # One thread to a resize: torch's helpers would wait in a loop for work, on cores that others need.
        self._pool = ThreadPoolExecutor(
            config.prepare_threads or threads,
            thread_name_prefix="prepare",
            initializer=torch.set_num_threads,
            initargs=(1,),
        )
        # As in the batch job: a GPU takes one forward after another, on a CPU each has a core to itself; but an image
        # that is alone here gets all of them (docs/decisions/0009).
        self._forwards = ForwardStreams(extractor, *((1, threads) if on_gpu else (threads, 1)))
        self._batch_size = batch_size(config, on_gpu=on_gpu)
        self._batcher = Batcher(self._forwards, self._batch_size, self._note, alone=lambda: self.admission.images == 1)
        self.on_forward: Callable[[float, int], None] | None = None
        """Told the seconds of every forward, as the device was held, and its images."""
        self.on_lost: Callable[[], None] | None = None
        """Called once, when no forward of this process can succeed any more; new requests are turned away by then."""

    def _note(self, seconds: float, images: int) -> None:
        self.admission.observe(seconds, images)
        if self.on_forward is not None:
            self.on_forward(seconds, images)

    @property
    def waiting(self) -> int:
        """Prepared images that no forward has taken yet."""
        return self._batcher.waiting

    @property
    def model(self) -> str:
        """Its name, as clients give it."""
        return self.extractor.fingerprint.model

    @functools.cached_property
    def outputs(self) -> list[str]:
        """What clients may ask for."""
        return available(self.extractor.outputs)

    @property
    def embedding_width(self) -> int:
        """Numbers of an embedding."""
        return next(int(field.type.list_size) for field in self.extractor.outputs if field.name == "embedding")

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels of what the model sees."""
        return self.extractor.preprocessor.config.height, self.extractor.preprocessor.config.width

    @property
    def patch_grid(self) -> tuple[int, int] | None:
        """Rows and columns of the patch tokens; None where they are not served."""
        return self.extractor.patch_grid

    @property
    def patch_shape(self) -> tuple[int, int, int]:
        """(rows, columns, width) of an image's patch tokens."""
        count, width = next(value_shape(field.type)[0] for field in self.extractor.outputs if field.name == "patches")
        rows, columns = self.patch_grid or (1, count)
        return rows, columns, width

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """By index, where they are known."""
        return self.extractor.class_names

    @property
    def image_limits(self) -> dict[str, float]:
        """The bounds that an image can be rejected for."""
        pixels = min(self.limits.max_pixels, self._budget.max_pixels)
        return {"max_pixels": pixels, "max_bytes": self.limits.max_bytes}

    def warm_up(self) -> None:
        """A forward of each size there will be: what a device does only once must not count as its speed."""
        self._forwards.settle(self._batch_size)

    def start(self) -> None:
        """Begins to work, on the running event loop."""
        self._batcher.start()

    async def stop(self) -> None:
        """Ends the work."""
        await self._batcher.stop()
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def run(self, function: functools.partial[Any]) -> Any:
        """Runs what would hold the event loop up, on the threads that prepare."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, function)

    async def extract(self, images: Sequence[bytes], deadline: float) -> list[Outcome]:
        """Features of each image, or why it has none.

        Args:
            images: encoded.
            deadline: in the event loop's time; an image that is not on the device by then never gets there.

        Raises:
            ApiError: 503 or 504, for the request as a whole.
            RuntimeError: whatever a forward raises, unless the device is lost, which is a 503.
        """
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._extract(image, deadline)) for image in images]
        except ExceptionGroup as group:
            refusals = group.subgroup(ApiError)
            raise (refusals or group).exceptions[0] from None
        return [task.result() for task in tasks]

    async def _extract(self, data: bytes, deadline: float) -> Outcome:
        loop = asyncio.get_running_loop()
        try:
            pixels = self._count_pixels(data)
            await self._budget.acquire(pixels, deadline)
            work = self._pool.submit(self.extractor.prepare, data)
            # A decoder cannot be stopped: the pixels are there until it ends, whoever still waits for it.
            work.add_done_callback(lambda _: loop.call_soon_threadsafe(self._budget.release, pixels))
            async with asyncio.timeout_at(deadline):
                prepared = await asyncio.wrap_future(work)
                features = await self._batcher.submit(prepared.pixels, deadline)
        except RejectError as reject:
            return reject
        except TimeoutError:
            raise timeout_error(self.config.request_timeout_s) from None
        except RuntimeError as error:
            if not is_device_lost(error):
                raise
            self._lose(error)
            raise device_lost() from None
        return Extracted(prepared.width, prepared.height, features)

    def _lose(self, error: RuntimeError) -> None:
        if self.on_lost is not None:
            _log.error("the device is lost", exc_info=error)
            self.admission.draining = True
            lost, self.on_lost = self.on_lost, None
            lost()

    def _count_pixels(self, data: bytes) -> int:
        """Of the header alone. Raises RejectError."""
        width, height = image_size(data, self.limits)
        if width * height > self._budget.max_pixels:
            message = f"{width}×{height} pixels are more than max_megapixels_in_flight"
            raise RejectError("decode", "TooManyPixels", message)
        return width * height

    def columns(self, outcomes: Sequence[Outcome], outputs: Sequence[str]) -> dict[str, pa.Array]:
        """The Arrow columns of the good images alone, as the batch job writes them."""
        good = [outcome.features for outcome in outcomes if isinstance(outcome, Extracted)]
        if not good:
            return {field.name: pa.array([], field.type) for field in self.extractor.outputs if field.name in outputs}
        columns = self.extractor.finish({name: np.stack([row[name] for row in good]) for name in good[0]})
        return {name: column for name, column in columns.items() if name in outputs}

    def fingerprint(self, outputs: Sequence[str]) -> Fingerprint:
        """That of an answer with these columns: the same as a dataset's that has just them."""
        described = tuple(describe_output(field) for field in self.extractor.outputs if field.name in outputs)
        return self.extractor.fingerprint.restricted(described)

    async def check(self) -> None:
        """Raises when the device is lost."""
        await asyncio.to_thread(self.extractor.check)
