"""What a chunk has come to so far: outcomes, features and seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.columns import FeatureRows
from pipeline.errors import RejectError, not_finite

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from concurrent.futures import Future
    from typing import Any

    import pyarrow as pa
    from numpy.typing import NDArray

    from pipeline.decoding import Decoded, Item
    from pipeline.prepared import Prepared
    from pipeline.streams import Forwarded


class ChunkWork:
    """One chunk under way. One thread uses it.

    Args:
        items: its images, encoded or decoded, or why they could not be read.
        outputs: the feature columns.
        rows: how many images.
        prepare_seconds: wall seconds that were spent on decoding before.
        prepare_cpu_seconds: CPU seconds, likewise.

    Attributes:
        outcomes: (width, height) of each image so far, or why it was rejected.
    """

    def __init__(
        self,
        items: Iterator[Item],
        outputs: Sequence[pa.Field],
        rows: int,
        prepare_seconds: float,
        prepare_cpu_seconds: float,
    ) -> None:
        self.items = items
        self.outcomes: list[tuple[int, int] | RejectError] = []
        self._features = FeatureRows(outputs, rows)
        self.prepare_seconds, self.prepare_cpu_seconds = prepare_seconds, prepare_cpu_seconds
        self.forward_seconds = self.forward_cpu_seconds = 0.0

    @property
    def features(self) -> Mapping[str, NDArray[Any]]:
        """Those of all good images, in order."""
        return self._features.arrays

    def take(self, decoded: Decoded) -> list[Prepared | RejectError]:
        """Notes the seconds of some images, and gives what became of each."""
        self.prepare_seconds += decoded.seconds
        self.prepare_cpu_seconds += decoded.cpu_seconds
        return decoded.outcomes

    def note(self, places: list[int], future: Future[Forwarded]) -> None:
        """Takes the features of one batch, whose images have these places in the chunk."""
        done = future.result()
        self.forward_seconds += done.seconds
        self.forward_cpu_seconds += done.cpu_seconds
        for place, sound in zip(places, self._features.add(done.features), strict=True):
            if not sound:
                self.outcomes[place] = not_finite()
