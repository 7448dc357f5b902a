"""The extractor that is served: what the configuration asks for, and patch tokens beside it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.errors import UsageError
from pipeline.extractor import load_extractor

if TYPE_CHECKING:
    import torch

    from pipeline.config import ImageLimits, ModelConfig, StorageConfig
    from pipeline.extractor import Extractor


def load_served(
    config: ModelConfig, limits: ImageLimits, device: torch.device | None, storage: StorageConfig
) -> Extractor:
    """As :func:`pipeline.extractor.load_extractor`, with ``patches`` among the outputs where the model has them.

    They cost next to nothing beside the embedding, and the page wants them. An answer's fingerprint is that of the
    outputs asked for, so it does not matter what else there is.

    Raises:
        UsageError: as ``load_extractor`` does for ``config`` as it is.
    """
    if "patches" in config.features:
        return load_extractor(config, limits, device, storage)
    try:
        return load_extractor(replace(config, features=(*config.features, "patches")), limits, device, storage)
    except UsageError:
        # This model has none; or something else is wrong with the configuration, and this says it again.
        return load_extractor(config, limits, device, storage)
