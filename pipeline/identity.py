"""What a job computes, without loading it where a dataset that was made with the same settings says so.

Loading takes seconds and half a gigabyte, on the driver for the fingerprint alone. A job that has nothing to do needs
neither torch nor a model; one that has leaves the check to its actors, each of which refuses to work under another
fingerprint than the job's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.config import ImageLimits, ModelConfig, StorageConfig
    from pipeline.dataset import DatasetInfo
    from pipeline.extractor import Extractor
    from pipeline.fingerprint import Fingerprint
    from pipeline.preprocess import Preprocessor


@dataclass(frozen=True, slots=True)
class Identity:
    """What a job computes, and with what.

    Attributes:
        fingerprint: of every row.
        preprocessor: what prepares its images; None where the extractor was not made for it.
        parameters: of the model; None where the dataset does not say.
    """

    fingerprint: Fingerprint
    preprocessor: Preprocessor | None
    parameters: int | None


def recorded(config: ModelConfig, existing: DatasetInfo | None, *, on_gpu: bool) -> DatasetInfo | None:
    """The dataset, where it was made with these settings and they name no file, whose content may be another by now.

    Args:
        config: what to compute; a precision of ``auto`` is that of the dataset.
        existing: what the dataset holds; None where there is none yet.
        on_gpu: whether the actors have GPUs; without, what was computed in fp16 has to be refused first.
    """
    if existing is None or (existing.model.precision == "fp16" and not on_gpu):
        return None
    asked = replace(config, precision=existing.model.precision) if config.precision == "auto" else config
    by_name = asked.head is None and (asked.weights == "pretrained" or asked.weights.startswith("random:"))
    return existing if by_name and asked == existing.model else None


def identify(known: DatasetInfo | None, make: Callable[[], Extractor]) -> Identity:
    """What a known dataset says, else the extractor itself, which is made for it."""
    if known is not None:
        return Identity(known.fingerprint, None, known.parameters)
    extractor = make()
    return Identity(extractor.fingerprint, extractor.preprocessor, extractor.parameters)


def load(config: ModelConfig, limits: ImageLimits, storage: StorageConfig) -> Extractor:
    """As :func:`pipeline.extractor.load_extractor`, importing it when called."""
    from pipeline.extractor import load_extractor

    return load_extractor(config, limits, storage=storage)
