"""The extractor: pure torch and timm. The batch actor, ``raysight embed`` and the endpoint are thin shells around it.

``prepare(bytes)`` runs on CPU threads, ``forward`` on the device, ``finish`` makes Arrow columns. Nothing here imports
ray, so that the extractor can be run and measured alone.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch

from pipeline import model as models
from pipeline import openvino_model
from pipeline.columns import to_column
from pipeline.compiling import compile_encoder, compiling
from pipeline.config import StorageConfig
from pipeline.device import Passes
from pipeline.fingerprint import Fingerprint
from pipeline.outputs import Outputs, check_outputs, plan_outputs
from pipeline.precision import DTYPES, cast, forbid_tf32, resolve_precision
from pipeline.preprocess import PreprocessConfig, Preprocessor, input_side, resolve_preset
from pipeline.schema import describe_output

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from pipeline.compiling import Encoder, Network
    from pipeline.config import ImageLimits, ModelConfig
    from pipeline.prepared import Prepared

_ANY_STORAGE = StorageConfig()


class Extractor:
    """One model with its preprocessing on one device.

    Attributes:
        outputs: the feature columns, in their order.
        parameters: numbers that the model learnt, its own classifier's among them.
        class_names: the name of each class, where there are classes and timm knows them; None otherwise.
        patch_grid: rows and columns of an image's patch tokens, where there are patches and they form a grid.
        compiles: whether each size of batch is compiled at its first pass, which :meth:`settle` does beforehand.

    ``prepare`` may be called from many threads at once, and ``forward`` too: on a GPU a second thread has its batch
    copied while the first one's is computed.
    """

    compiles = False

    def __init__(
        self,
        model: torch.nn.Module,
        preprocessor: Preprocessor,
        fingerprint: Fingerprint,
        outputs: Outputs,
        device: torch.device,
        *,
        compiled: bool = False,
    ) -> None:
        dtype = DTYPES[fingerprint.precision]
        self.preprocessor = preprocessor
        self.fingerprint = fingerprint
        self.outputs: tuple[pa.Field, ...] = outputs.fields
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self.class_names = outputs.class_names
        self.patch_grid = outputs.patch_grid
        self.device = device
        self._dtype = dtype
        self._model = model.to(device)
        self._network: Network = self._by_torch
        if compiled and openvino_model.serves(device, dtype):
            compiled = False  # by torch; nor is there a need for few sizes of batch
            side = (preprocessor.config.height, preprocessor.config.width)
            self._network = openvino_model.OpenVINOModel(self._by_torch, model, *side, dtype)
        self.compiles = compiled
        cast(self._model, dtype).to(memory_format=torch.channels_last)
        self._outputs = outputs.to(device)
        mean, std = (
            torch.tensor(values, device=device).view(1, 3, 1, 1)
            for values in (preprocessor.config.mean, preprocessor.config.std)
        )
        self._scale, self._shift = 1 / (255 * std), -mean / std
        self.passes = Passes(
            functools.partial(self._compute, self.encode),
            device,
            functools.partial(self._compute, compile_encoder(self.encode)) if compiled else None,
        )

    def prepare(self, data: bytes | memoryview) -> Prepared:
        """Encoded bytes to the model's (H, W, 3) uint8 input. Raises RejectError."""
        return self.preprocessor.prepare(data)

    def forward(self, batch: Sequence[NDArray[np.uint8]]) -> dict[str, NDArray[Any]]:
        """Features of ``n`` prepared images.

        Args:
            batch: n arrays (H, W, 3) uint8.

        Returns:
            An array for each field of :attr:`outputs`, as asked for:
            ``embedding``: (n, dim) float32 or float16, timm's ``forward_head(forward_features(x), pre_logits=True)``;
            ``patches``: (n, patches, width) float16, ``forward_features(x)`` without its prefix tokens;
            ``class_index``: (n, k) int32 and ``class_probability``: (n, k) float32 percent, likeliest first, k the
            lesser of 5 and the number of classes.

        Raises:
            RuntimeError: as :meth:`pipeline.device.Passes.run`.
        """
        return self.passes.run(batch)

    def settle(self, batch_size: int | None, most: int) -> int:
        """Images of one pass from now on; None finds out what is fast, up to ``most``. Compiles, where that is wanted.

        Raises:
            UsageError: the model cannot be compiled here.
        """
        config = self.preprocessor.config
        with compiling():
            return self.passes.settle(batch_size, most, (config.height, config.width, 3))

    @property
    def most(self) -> int | None:
        """Images of one pass at most, once that is settled or memory was short; None is all of a batch."""
        return self.passes.most

    def check(self) -> None:
        """Raises RuntimeError when the device is lost."""
        self.passes.check()

    def encode(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(n, H, W, 3) uint8 on the device to unpooled features and embeddings, in the model's precision."""
        # One kernel, and within 5e-7 of timm's (x / 255 - mean) / std.
        normal = torch.addcmul(self._shift, pixels.permute(0, 3, 1, 2), self._scale).to(self._dtype)
        return self._network(normal)

    def _by_torch(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        model: Any = self._model
        features = model.forward_features(images)
        return features, model.forward_head(features, pre_logits=True)

    def _compute(self, encode: Encoder, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        return self._outputs.compute(self._model, *encode(pixels))

    def finish(self, features: Mapping[str, NDArray[Any]]) -> dict[str, pa.Array]:
        """Arrow columns, one for each output: n values of the type in ``outputs``."""
        return {field.name: to_column(features[field.name], field.type) for field in self.outputs}


def pick_device() -> torch.device:
    """The first visible GPU, else the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def load_extractor(
    config: ModelConfig,
    limits: ImageLimits,
    device: torch.device | None = None,
    storage: StorageConfig = _ANY_STORAGE,
) -> Extractor:
    """Builds the extractor a configuration asks for.

    Args:
        config: what to compute.
        limits: what one image may cost.
        device: None picks the first visible GPU, else the CPU.
        storage: how to reach weights in a bucket.

    Raises:
        UsageError: the model, weights, head, size, precision or outputs cannot be had.
        HubError: the hub is out of reach.
    """
    check_outputs(config)
    device = device or pick_device()
    side = input_side(config.preset, config.image_size)
    own_head = "classes" in config.features and config.head is None
    model = models.load_model(config.name, config.weights, side, classifier=own_head, storage=storage)
    precision = resolve_precision(config.precision, config.name, device.type)
    preprocess = resolve_preset(models.data_config(model), config.preset, config.implementation, side)
    outputs = plan_outputs(model, config, (preprocess.height, preprocess.width), storage)
    weights, classifier = models.digests(model)
    fingerprint = Fingerprint(
        model=config.name,
        weights=weights,
        preset=config.preset,
        transform=_describe(preprocess),
        implementation=config.implementation,
        precision=precision,
        outputs=tuple(map(describe_output, outputs.fields)),
        head=classifier if outputs.head is None else outputs.head.digest,
        normalize=config.normalize,
    ).restricted(tuple(map(describe_output, outputs.fields)))
    preprocessor = Preprocessor(preprocess, limits)
    forbid_tf32()
    return Extractor(model, preprocessor, fingerprint, outputs, device, compiled=config.compile)


def _describe(config: PreprocessConfig) -> str:
    mean, std = (",".join(f"{value:g}" for value in values) for values in (config.mean, config.std))
    return (
        f"{config.height}x{config.width} crop_pct={config.crop_pct:g} crop_mode={config.crop_mode}"
        f" {config.interpolation} mean={mean} std={std}"
    )
