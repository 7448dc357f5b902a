"""The bounds of one replica: how much is in it at once, and for how long. For one event loop."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from dataclasses import dataclass

from serve.errors import ApiError, Limit

_SHARE = 0.5
"""Of the time a request has, what the images before it may take; the rest is for its own, and for guessing wrong."""


@dataclass
class Admission:
    """Who is let in: images up to a number, as many as can be answered in time, none once the replica drains.

    Attributes:
        max_queue: images at once.
        timeout_s: seconds that a request has.
        images: that are in now.
        requests: that are in now.
        seconds_per_image: what the device takes, as lately measured; 0 before the first.
        draining: whether all are turned away.
    """

    max_queue: int
    timeout_s: float
    images: int = 0
    requests: int = 0
    seconds_per_image: float = 0.0
    draining: bool = False

    def enter(self) -> None:
        """A request with its first image. Raises ApiError 503 or 429."""
        if self.draining:
            raise ApiError(
                503, "shutting_down", "this server is shutting down; ask again", headers={"Retry-After": "1"}
            )
        self._reserve(1, held=0)
        self.requests += 1

    def more(self, images: int) -> None:
        """The other images of a request that is in with its first. Raises ApiError 400 or 429."""
        if 1 + images > self.max_queue:
            raise ApiError(
                400,
                "too_many_images",
                f"no more than {self.max_queue} images are let in at once; send the others in further requests",
                limit=Limit("max_queue", self.max_queue),
            )
        self._reserve(images, held=1)

    def leave(self, images: int) -> None:
        """A request with all the images that it reserved."""
        self.images -= images
        self.requests -= 1

    def observe(self, seconds: float, images: int) -> None:
        """A forward's time, shared out to its images; a moving mean of about ten forwards."""
        each = seconds / images
        self.seconds_per_image += (each - self.seconds_per_image) * (0.1 if self.seconds_per_image else 1.0)

    def _reserve(self, images: int, held: int) -> None:
        # Who is alone is let in: else a request too large for a slow device would be told to come again for ever.
        room = self._room()
        if self.images > held and self.images + images > room:
            wait = max(1, math.ceil(self.images * self.seconds_per_image * _SHARE))
            raise ApiError(
                429,
                "queue_full",
                f"{self.images} images are waited for, and no more than {room} are let in; ask again in {wait} s",
                limit=Limit("max_queue", room),
                headers={"Retry-After": str(wait)},
            )
        self.images += images

    def _room(self) -> int:
        if not self.seconds_per_image:
            return self.max_queue
        return max(1, min(self.max_queue, int(_SHARE * self.timeout_s / self.seconds_per_image)))


class PixelBudget:
    """Decoded pixels in memory at once. Who finds none left waits, first come first served."""

    def __init__(self, max_pixels: int) -> None:
        self.max_pixels = max_pixels
        self.used = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def acquire(self, pixels: int, deadline: float) -> None:
        """Takes a share, which the caller gives back by ``release``.

        Args:
            pixels: of one image, ``max_pixels`` at most.
            deadline: in the event loop's time.

        Raises:
            ApiError: 503, when the deadline passes first.
        """
        if not self._waiting and self.used + pixels <= self.max_pixels:
            self.used += pixels
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((pixels, future))
        try:
            async with asyncio.timeout_at(deadline):
                await future
        except BaseException as error:
            if future.done() and not future.cancelled():
                self.release(pixels)  # the share came in the very moment
            else:
                self._wake()
            if not isinstance(error, TimeoutError):
                raise
            raise ApiError(
                503,
                "too_many_pixels_in_flight",
                "too many large images are being decoded; ask again later",
                limit=Limit("max_megapixels_in_flight", self.max_pixels / 1e6),
                headers={"Retry-After": "1"},
            ) from None

    def release(self, pixels: int) -> None:
        """Gives a share back."""
        self.used -= pixels
        self._wake()

    def _wake(self) -> None:
        while self._waiting:
            pixels, future = self._waiting[0]
            if not future.done():
                if self.used + pixels > self.max_pixels:
                    return
                self.used += pixels
                future.set_result(None)
            self._waiting.popleft()
