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
    """What decides the numbers.

    Attributes:
        model: the settings, with a precision that is not ``auto``.
        fingerprint: of the extractor that they make.
        parameters: of the model; None where the dataset does not say.
        preprocessor: of that extractor; None where nobody asked for it.
    """

    model: ModelConfig
    fingerprint: Fingerprint
    parameters: int | None
    preprocessor: Preprocessor | None = None


def recorded(config: ModelConfig, existing: DatasetInfo | None, *, on_gpu: bool) -> Identity | None:
    """The dataset's, where it was made with these settings and they name no file, whose content may be another by now.

    Args:
        config: what to compute; a precision of ``auto`` is that of the dataset.
        existing: what the dataset holds; None where there is none yet.
        on_gpu: whether the actors have GPUs; without, what was computed in fp16 has to be refused first.
    """
    if existing is None or (existing.model.precision == "fp16" and not on_gpu):
        return None
    asked = replace(config, precision=existing.model.precision) if config.precision == "auto" else config
    by_name = asked.head is None and (asked.weights == "pretrained" or asked.weights.startswith("random:"))
    if not by_name or asked != existing.model:
        return None
    return Identity(existing.model, existing.fingerprint, existing.parameters)


def identify(
    config: ModelConfig,
    existing: DatasetInfo | None,
    make: Callable[[ModelConfig], Extractor],
    *,
    on_gpu: bool,
    decoding: bool,
) -> Identity:
    """Loads the extractor to see what it is.

    Args:
        config: what to compute.
        existing: what the dataset holds; None where there is none yet.
        make: loads the extractor.
        on_gpu: whether the actors have GPUs.
        decoding: whether tasks decode, which are given the extractor's preprocessor.

    Raises:
        UsageError: as :func:`settle_precision`, or what ``make`` raises.
    """
    model = settle_precision(config, existing, on_gpu=on_gpu)
    extractor = make(model)
    return Identity(model, extractor.fingerprint, extractor.parameters, extractor.preprocessor if decoding else None)


def settle_precision(model: ModelConfig, existing: DatasetInfo | None, *, on_gpu: bool) -> ModelConfig:
    """``auto`` is what an existing dataset has, else what suits the device of the actors.

    Raises:
        UsageError: the actors' device cannot compute in what was asked for, or there is no such model.
    """
    from pipeline.precision import check_precision, resolve_precision  # torch and timm: seconds

    device = "cuda" if on_gpu else "cpu"
    wanted = existing.model.precision if existing is not None and model.precision == "auto" else model.precision
    check_precision(wanted, device)
    return replace(model, precision=resolve_precision(wanted, model.name, device))


def load(config: ModelConfig, limits: ImageLimits, storage: StorageConfig) -> Extractor:
    """As :func:`pipeline.extractor.load_extractor`, importing it when called."""
    from pipeline.extractor import load_extractor

    return load_extractor(config, limits, storage=storage)
