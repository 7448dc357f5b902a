"""The extractor: pure torch and timm. The batch actor, ``raysight embed`` and the endpoint are thin shells around it.

``prepare(bytes)`` runs on CPU threads, ``forward`` on the device, ``finish`` makes Arrow columns. Nothing here imports
ray, so that the extractor can be run and measured alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipeline import model as models
from pipeline.columns import to_column
from pipeline.config import StorageConfig
from pipeline.fingerprint import Fingerprint
from pipeline.outputs import Outputs, check_outputs, plan_outputs
from pipeline.precision import DTYPES, cast, resolve_precision
from pipeline.preprocess import Prepared, PreprocessConfig, Preprocessor, input_side, resolve_preset
from pipeline.schema import describe_output

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa
    from numpy.typing import NDArray

    from pipeline.config import ImageLimits, ModelConfig

_ANY_STORAGE = StorageConfig()


class Extractor:
    """One model with its preprocessing on one device.

    Attributes:
        outputs: the feature columns, in their order.
        class_names: the name of each class, where there are classes and timm knows them; None otherwise.
        patch_grid: rows and columns of an image's patch tokens, where there are patches and they form a grid.

    ``prepare`` may be called from many threads at once, and ``forward`` too; on a GPU that gains nothing.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        preprocessor: Preprocessor,
        fingerprint: Fingerprint,
        outputs: Outputs,
        device: torch.device,
    ) -> None:
        dtype = DTYPES[fingerprint.precision]
        self.preprocessor = preprocessor
        self.fingerprint = fingerprint
        self.outputs: tuple[pa.Field, ...] = outputs.fields
        self.class_names = outputs.class_names
        self.patch_grid = outputs.patch_grid
        self.device = device
        self._dtype = dtype
        self._model = cast(model.to(device), dtype).to(memory_format=torch.channels_last)
        self._outputs = outputs.to(device)
        shape = (1, 3, 1, 1)
        self._mean = torch.tensor(preprocessor.config.mean, device=device).view(shape)
        self._std = torch.tensor(preprocessor.config.std, device=device).view(shape)

    def prepare(self, data: bytes | memoryview) -> Prepared:
        """Encoded bytes to the model's (H, W, 3) uint8 input. Raises RejectError."""
        return self.preprocessor.prepare(data)

    @torch.inference_mode()
    def forward(self, batch: Sequence[NDArray[np.uint8]]) -> dict[str, NDArray[Any]]:
        """Features of ``n`` prepared images, in one pass of the model.

        Args:
            batch: n arrays (H, W, 3) uint8.

        Returns:
            An array for each field of :attr:`outputs`, as asked for:
            ``embedding``: (n, dim) float32 or float16, timm's ``forward_head(forward_features(x), pre_logits=True)``;
            ``patches``: (n, patches, width) float16, ``forward_features(x)`` without its prefix tokens;
            ``class_index``: (n, k) int32 and ``class_probability``: (n, k) float32 percent, likeliest first, k the
            lesser of 5 and the number of classes.
        """
        stacked = torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2)  # channels last, without a copy
        pixels = stacked.to(self.device, non_blocking=True).to(torch.float32).div_(255)
        pixels = pixels.sub_(self._mean).div_(self._std).to(self._dtype)
        return {name: values.cpu().numpy() for name, values in self._outputs.compute(self._model, pixels).items()}

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
    return Extractor(model, Preprocessor(preprocess, limits), fingerprint, outputs, device)


def _describe(config: PreprocessConfig) -> str:
    mean, std = (",".join(f"{value:g}" for value in values) for values in (config.mean, config.std))
    return (
        f"{config.height}x{config.width} crop_pct={config.crop_pct:g} crop_mode={config.crop_mode}"
        f" {config.interpolation} mean={mean} std={std}"
    )
