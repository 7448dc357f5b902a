"""Decoding in isolation: an image that takes its process with it is rejected alone."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest
from datasets import CROPS

from pipeline.config import ImageLimits
from pipeline.errors import RejectError
from pipeline.isolate import IsolatedPreprocessor
from pipeline.preprocess import Preprocessor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.prepared import Prepared

KILLER, SLEEPER = b"this one kills", b"this one sleeps"


class Fragile(Preprocessor):
    """A decoder with the bugs of the worst: markers in the bytes kill it or hang it."""

    def prepare(self, data: bytes | memoryview) -> Prepared:
        if bytes(data) == KILLER:
            os.kill(os.getpid(), signal.SIGKILL)
        if bytes(data) == SLEEPER:
            time.sleep(3600)
        return super().prepare(data)


@pytest.fixture(scope="module")
def isolated() -> Iterator[IsolatedPreprocessor]:
    with IsolatedPreprocessor(Fragile(CROPS, ImageLimits()), timeout_s=120.0) as preprocessor:
        yield preprocessor


def test_a_good_image_is_prepared_as_without_isolation(
    isolated: IsolatedPreprocessor, photographs: dict[str, bytes]
) -> None:
    expected = Preprocessor(CROPS, ImageLimits()).prepare(photographs["rocket.jpg"])
    actual = isolated.prepare(photographs["rocket.jpg"])
    np.testing.assert_array_equal(actual.pixels, expected.pixels)
    assert (actual.width, actual.height) == (640, 427)


def test_a_bad_image_is_rejected_as_without_isolation(isolated: IsolatedPreprocessor) -> None:
    with pytest.raises(RejectError) as expected:
        Preprocessor(CROPS, ImageLimits()).prepare(b"no image")
    with pytest.raises(RejectError) as actual:
        isolated.prepare(b"no image")
    assert actual.value.args == expected.value.args


def test_an_image_that_kills_its_process_is_rejected_alone(
    isolated: IsolatedPreprocessor, photographs: dict[str, bytes]
) -> None:
    isolated.prepare(photographs["rocket.jpg"])
    with pytest.raises(RejectError, match="exit code -9") as caught:
        isolated.prepare(KILLER)
    assert (caught.value.stage, caught.value.error) == ("decode", "WorkerDied")
    assert isolated.prepare(photographs["rocket.jpg"]).pixels.shape == (32, 32, 3)


def test_an_image_that_hangs_is_rejected_alone(photographs: dict[str, bytes]) -> None:
    with IsolatedPreprocessor(Fragile(CROPS, ImageLimits()), timeout_s=0.5) as impatient:
        with pytest.raises(RejectError, match=r"more than 0\.5 s") as caught:
            impatient.prepare(SLEEPER)
        assert (caught.value.stage, caught.value.error) == ("decode", "Timeout")
    with IsolatedPreprocessor(Fragile(CROPS, ImageLimits()), timeout_s=120.0) as patient:
        assert patient.prepare(photographs["rocket.jpg"]).width == 640


class SlowToLoad(Preprocessor):
    """Takes longer to load than an image may take."""

    def __setstate__(self, state: dict[str, object]) -> None:
        time.sleep(3.5)
        self.__dict__.update(state)


def test_no_image_pays_for_the_start_of_the_process() -> None:
    with (
        IsolatedPreprocessor(SlowToLoad(CROPS, ImageLimits()), timeout_s=3.0) as preprocessor,
        pytest.raises(RejectError) as caught,
    ):
        preprocessor.prepare(b"no image")
    assert caught.value.error == "NotAnImage"


def test_the_process_ends_with_the_block(photographs: dict[str, bytes]) -> None:
    before = multiprocessing.active_children()
    with IsolatedPreprocessor(Preprocessor(CROPS, ImageLimits()), timeout_s=120.0) as preprocessor:
        preprocessor.prepare(photographs["rocket.jpg"])
        (process,) = set(multiprocessing.active_children()) - set(before)
    assert not process.is_alive()


def test_a_process_that_does_not_start_is_no_images_fault() -> None:
    class Unloadable:
        def __reduce__(self) -> tuple[object, ...]:
            return (os._exit, (7,))

    with (
        IsolatedPreprocessor(Unloadable(), timeout_s=5.0) as preprocessor,  # type: ignore[arg-type]
        pytest.raises(RuntimeError, match="does not start"),
    ):
        preprocessor.prepare(b"whatever")
