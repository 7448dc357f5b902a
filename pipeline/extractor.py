"""The extractor: pure torch and timm. The batch actor, ``raysight embed`` and the endpoint are thin shells around it.

``prepare(bytes)`` runs on CPU threads, ``forward`` on the device, ``finish`` makes Arrow columns. Nothing here imports
ray, so that the extractor can be run and measured alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from pipeline import model as models
from pipeline.errors import UsageError
from pipeline.fingerprint import Fingerprint
from pipeline.precision import DTYPES, cast, resolve_precision
from pipeline.preprocess import PRESET_SIZES, Prepared, PreprocessConfig, Preprocessor, resolve_preset
from pipeline.schema import describe_output, embedding_field

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from pipeline.config import ImageLimits, ModelConfig


class Extractor:
    """One model with its preprocessing on one device.

    ``prepare`` may be called from many threads at once, and ``forward`` too; on a GPU that gains nothing.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        preprocessor: Preprocessor,
        fingerprint: Fingerprint,
        outputs: Sequence[pa.Field],
        device: torch.device,
    ) -> None:
        dtype = DTYPES[fingerprint.precision]
        self.preprocessor = preprocessor
        self.fingerprint = fingerprint
        self.outputs = tuple(outputs)
        self.device = device
        self._dtype = dtype
        self._model = cast(model.to(device), dtype).to(memory_format=torch.channels_last)
        shape = (1, 3, 1, 1)
        self._mean = torch.tensor(preprocessor.config.mean, device=device).view(shape)
        self._std = torch.tensor(preprocessor.config.std, device=device).view(shape)

    def prepare(self, data: bytes | memoryview) -> Prepared:
        """Encoded bytes to the model's (H, W, 3) uint8 input. Raises RejectError."""
        return self.preprocessor.prepare(data)

    @torch.inference_mode()
    def forward(self, batch: Sequence[NDArray[np.uint8]]) -> dict[str, NDArray[np.float32]]:
        """Features of ``n`` prepared images.

        Args:
            batch: n arrays (H, W, 3) uint8.

        Returns:
            ``embedding``: (n, dim) float32, timm's ``forward_head(forward_features(x), pre_logits=True)``.
        """
        stacked = torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2)  # channels last, without a copy
        pixels = stacked.to(self.device, non_blocking=True).to(torch.float32).div_(255)
        pixels = pixels.sub_(self._mean).div_(self._std).to(self._dtype)
        features = self._model.forward_features(pixels)  # type: ignore[operator]
        embedding = self._model.forward_head(features, pre_logits=True)  # type: ignore[operator]
        return {"embedding": embedding.float().cpu().numpy()}

    def finish(self, features: Mapping[str, NDArray[np.float32]]) -> dict[str, pa.Array]:
        """Arrow columns, one for each output: n values of the type in ``outputs``."""
        return {
            field.name: pa.FixedSizeListArray.from_arrays(pa.array(features[field.name].reshape(-1)), type=field.type)
            for field in self.outputs
        }


def pick_device() -> torch.device:
    """The first visible GPU, else the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def load_extractor(config: ModelConfig, limits: ImageLimits, device: torch.device | None = None) -> Extractor:
    """Builds the extractor a configuration asks for.

    Args:
        config: what to compute.
        limits: what one image may cost.
        device: None picks the first visible GPU, else the CPU.

    Raises:
        UsageError: the model, weights or precision cannot be had.
    """
    device = device or pick_device()
    model = models.load_model(config.name, config.weights, PRESET_SIZES[config.preset])
    precision = resolve_precision(config.precision, config.name, device.type)
    data_config = models.data_config(model)
    preprocess = resolve_preset(data_config, config.preset, config.implementation)
    _check_input_size(model, config, preprocess)
    outputs = (embedding_field(embedding_dim(model)),)
    fingerprint = Fingerprint(
        model=config.name,
        weights=models.weights_digest(model),
        preset=config.preset,
        transform=_describe(preprocess),
        implementation=config.implementation,
        precision=precision,
        outputs=tuple(map(describe_output, outputs)),
    )
    return Extractor(model, Preprocessor(preprocess, limits), fingerprint, outputs, device)


def embedding_dim(model: torch.nn.Module) -> int:
    """Width of the pooled, pre-logits output; timm's ``head_hidden_size`` where the head has a layer of its own."""
    width: Any = getattr(model, "head_hidden_size", None) or model.num_features
    return int(width)


def _check_input_size(model: torch.nn.Module, config: ModelConfig, preprocess: PreprocessConfig) -> None:
    """A model of fixed input size refuses another one here, before any work, not in the first batch."""
    patch_embed = getattr(model, "patch_embed", None)
    native = getattr(patch_embed, "img_size", None)
    wanted = (preprocess.height, preprocess.width)
    if getattr(patch_embed, "strict_img_size", False) and native is not None and tuple(native) != wanted:
        raise UsageError(
            f"preset {config.preset} makes {wanted[0]}×{wanted[1]} crops,"
            f" but {config.name} takes {native[0]}×{native[1]}"
        )


def _describe(config: PreprocessConfig) -> str:
    mean, std = (",".join(f"{value:g}" for value in values) for values in (config.mean, config.std))
    return (
        f"{config.height}x{config.width} crop_pct={config.crop_pct:g} crop_mode={config.crop_mode}"
        f" {config.interpolation} mean={mean} std={std}"
    )
