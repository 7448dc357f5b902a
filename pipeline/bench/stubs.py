"""Extractors whose model costs nothing, so that what is around it is what is measured. Workers import them."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from timm.data import resolve_data_config
from timm.models import get_pretrained_cfg

from pipeline.extractor import Extractor, load_extractor
from pipeline.fingerprint import Fingerprint
from pipeline.prepared import Prepared
from pipeline.preprocess import Preprocessor, resolve_preset
from pipeline.schema import describe_output, embedding_field, value_shape

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa
    from numpy.typing import NDArray

    from pipeline.config import ImageLimits, ModelConfig

SLICE = 384
"""Values that the slice takes of an image: as many as the default model's embedding has."""


class _Stub(Extractor):
    """Has no model, and no passes over one."""

    parameters = 0

    def settle(self, batch_size: int | None, most: int) -> int:
        """Any size is as good as another."""
        return batch_size or most

    @property
    def most(self) -> None:
        """All of a batch."""

    def check(self) -> None:
        """There is no device to lose."""


class SliceExtractor(_Stub):
    """The whole extractor but for the model: ``forward`` is the red channel of the first row, normalised."""

    def __init__(self, config: ModelConfig, limits: ImageLimits) -> None:
        preprocess = resolve_preset(data_config(config.name), config.preset, config.implementation)
        self.preprocessor = Preprocessor(preprocess, limits)
        self._values = min(SLICE, preprocess.width)
        self.outputs = (embedding_field(self._values),)
        self.device = torch.device("cpu")
        self.fingerprint = _fingerprint("slice", config, self.outputs)

    def forward(self, batch: Sequence[NDArray[np.uint8]]) -> dict[str, NDArray[np.float32]]:
        """``embedding``: (n, 384) float32, or (n, W) where crops are narrower."""
        config = self.preprocessor.config
        values = np.stack([image[0, : self._values, 0] for image in batch]).astype(np.float32)
        return {"embedding": ((values / 255 - config.mean[0]) / config.std[0]).astype(np.float32)}


class EmptyExtractor(_Stub):
    """Neither decodes nor computes: what is left is the way of a row through the job."""

    def __init__(self, config: ModelConfig, limits: ImageLimits) -> None:
        preprocess = resolve_preset(data_config(config.name), config.preset, config.implementation)
        self.preprocessor = _EmptyPreprocessor(preprocess, limits)
        self.outputs = (embedding_field(1),)
        self.device = torch.device("cpu")
        self.fingerprint = _fingerprint("empty", config, self.outputs)

    def forward(self, batch: Sequence[NDArray[np.uint8]]) -> dict[str, NDArray[np.float32]]:
        """``embedding``: (n, 1) zeros."""
        return {"embedding": np.zeros((len(batch), 1), np.float32)}


class _EmptyPreprocessor(Preprocessor):
    def prepare(self, data: bytes | memoryview) -> Prepared:
        del data
        return Prepared(np.zeros((1, 1, 3), np.uint8), 1, 1)


class PatchesExtractor(Extractor):
    """The whole extractor, model and all, but a forward is done in earnest once on each thread and then replaced.

    A token is then a patch's own first pixels, normalised, and the embedding that of the first patch: the shapes,
    types and bytes of the default model, in a hundredth of its time.
    """

    def forward(self, batch: Sequence[NDArray[np.uint8]]) -> dict[str, NDArray[Any]]:
        """As asked for, of a patch model whose tokens have no more values than a patch has."""
        if not hasattr(_warm, "done"):  # activations have been in the heap, as they would be
            super().forward(batch)
            _warm.done = True
        assert self.patch_grid is not None
        (rows, columns), width = self.patch_grid, value_shape(self.outputs[-1].type)[0][1]
        side = batch[0].shape[0] // rows
        pixels = np.stack(batch)[:, : rows * side, : columns * side].astype(np.float32) / 128 - 1
        patches = pixels.reshape(len(batch), rows, side, columns, side * 3).swapaxes(2, 3)
        tokens = patches.reshape(len(batch), rows * columns, -1)[..., :width]
        return {"embedding": tokens[:, 0].copy(), "patches": tokens.astype(np.float16)}


_warm = threading.local()


def patches(config: ModelConfig, limits: ImageLimits) -> Extractor:
    """A :class:`PatchesExtractor` of a configuration with the features ``embedding`` and ``patches``."""
    extractor = load_extractor(config, limits)
    extractor.__class__ = PatchesExtractor
    return extractor


def data_config(name: str) -> Mapping[str, object]:
    """A model's preprocessing in timm's terms, without building the model."""
    config: Mapping[str, object] = resolve_data_config(pretrained_cfg=get_pretrained_cfg(name).to_dict())
    return config


def _fingerprint(kind: str, config: ModelConfig, outputs: tuple[pa.Field, ...]) -> Fingerprint:
    return Fingerprint(
        model=kind,
        weights="none",
        preset=config.preset,
        transform=config.name,
        implementation=config.implementation,
        precision="fp32",
        outputs=tuple(map(describe_output, outputs)),
    )
