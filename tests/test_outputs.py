"""Every output of the one pass against timm's own code, on real photographs."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
from datasets import LIMITS, extract, write_photographs
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_model_data_config

from demo.weights import TRAINED_MODEL, save_trained_checkpoint
from pipeline.budget import make_budget
from pipeline.checkpoint import local_checkpoint
from pipeline.cluster import Node
from pipeline.config import JobConfig, ModelConfig, StorageConfig
from pipeline.cut import Cut
from pipeline.errors import UsageError
from pipeline.extractor import load_extractor
from pipeline.preflight import make_cut
from pipeline.sample import _compare_classes
from pipeline.schema import class_fields, describe_output, embedding_field, parse_output, patches_field, value_shape
from pipeline.storage import open_store
from pipeline.verify import verify

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from s3_server import Bucket

ALL: Any = ("embedding", "patches", "classes")
CPU = torch.device("cpu")


@pytest.mark.parametrize(("name", "prefix"), [("test_vit", 1), ("vit_small_patch14_reg4_dinov2", 5), ("resnet18", 0)])
def test_patches_are_timms_unpooled_features_without_prefix_tokens_and_give_the_embedding(
    name: str, prefix: int, make_checkpoint: Callable[..., Path], photographs: dict[str, bytes]
) -> None:
    weights, size = make_checkpoint(name), {"test_vit": None, "resnet18": 96}.get(name, 98)
    features: Any = ("embedding", "patches")
    config = ModelConfig(name, str(weights), None, size, "timm", "reference", "fp32", features)
    extractor = load_extractor(config, LIMITS, CPU)
    side = {"img_size": size} if prefix == 5 else {}
    overlay = {"file": str(weights), "hf_hub_id": None, "url": ""}
    model = timm.create_model(name, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay, **side).eval()
    settings = resolve_model_data_config(model)
    if size:
        settings["input_size"] = (3, size, size)
    image = Image.open(io.BytesIO(photographs["chelsea.png"])).convert("RGB")
    with torch.inference_mode():
        unpooled = model.forward_features(create_transform(**settings, is_training=False)(image)[None])
        pooled = model.forward_head(unpooled, pre_logits=True)[0].numpy()
    expected = (unpooled[0, prefix:] if unpooled.ndim == 3 else unpooled[0].flatten(1).T).numpy()
    found = extractor.forward([extractor.prepare(photographs["chelsea.png"]).pixels])
    assert found["patches"].dtype == np.float16
    np.testing.assert_allclose(found["patches"][0], expected, rtol=0, atol=1e-3 * np.abs(expected).max())
    np.testing.assert_allclose(found["embedding"][0], pooled, rtol=0, atol=1e-5 * max(1, np.abs(pooled).max()))


def test_the_trained_model_calls_the_cat_a_cat_and_the_coffee_an_espresso_as_timm_does(
    tmp_path: Path, photographs: dict[str, bytes]
) -> None:
    weights, names = tmp_path / "w.safetensors", ("chelsea.png", "coffee.png")
    save_trained_checkpoint(weights)
    overlay = {"file": str(weights), "hf_hub_id": None, "url": ""}
    model = timm.create_model(TRAINED_MODEL, pretrained=True, pretrained_cfg_overlay=overlay).eval()
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    images = [Image.open(io.BytesIO(photographs[name])).convert("RGB") for name in names]
    with torch.inference_mode():
        expected = torch.topk(model(torch.stack(list(map(transform, images)))).softmax(dim=1) * 100, k=5)
    config = ModelConfig(TRAINED_MODEL, str(weights), precision="fp32", features=("classes",))
    extractor = load_extractor(replace(config, implementation="reference"), LIMITS, CPU)
    found = extractor.forward([extractor.prepare(photographs[name]).pixels for name in names])
    assert extractor.class_names is not None
    cat, coffee = (extractor.class_names[indices[0]] for indices in found["class_index"])
    assert ("cat" in cat, coffee) == (True, "espresso")
    assert found["class_index"].tolist() == expected.indices.tolist()
    np.testing.assert_allclose(found["class_probability"], expected.values, rtol=0, atol=1e-3)


@pytest.mark.parametrize("over_tokens", [False, True])
def test_a_head_from_a_file_is_a_plain_linear_layer(over_tokens: bool, tmp_path: Path) -> None:
    width = 128 if over_tokens else 64
    weight, bias = torch.randn(7, width), torch.randn(7)
    save_file({"linear.weight": weight, "linear.bias": bias}, tmp_path / "head.safetensors")
    config = ModelConfig("test_vit", "random:0", str(tmp_path / "head.safetensors"), precision="fp32", features=ALL)
    extractor = load_extractor(config, LIMITS, CPU)
    pixels = np.random.default_rng(0).integers(0, 256, (160, 160, 3), np.uint8)
    found = extractor.forward([pixels])
    with torch.inference_mode():
        norm = create_transform(**resolve_model_data_config(extractor._model), is_training=False).transforms[-1]
        tokens = extractor._model.forward_features(norm(torch.from_numpy(pixels).permute(2, 0, 1) / 255)[None])  # type: ignore[operator]
        seen = torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], 1) if over_tokens else torch.tensor(found["embedding"])
        percent = ((seen @ weight.T + bias).softmax(1) * 100)[0]
    order = percent.argsort(descending=True)[:5]
    assert found["class_index"][0].tolist() == order.tolist()
    np.testing.assert_allclose(found["class_probability"][0], percent[order], rtol=1e-3)


def test_classes_without_a_classifier_are_refused() -> None:
    with pytest.raises(UsageError, match="without a classifier; give --head"):
        load_extractor(ModelConfig("vit_small_patch14_dinov2", "random:0", image_size=98, features=ALL), LIMITS, CPU)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"features": ()}, "give one or more of embedding, patches, classes"),
        ({"features": ("embedding", "logits")}, "--features embedding,logits: give one or more"),
        ({"features": ("patches",), "normalize": True}, "--normalize and --dtype are of embeddings"),
        ({"features": ("patches",), "dtype": "float16"}, "--normalize and --dtype are of embeddings"),
        ({"head": "head.pth"}, "--head is for classes; ask for them with --features classes"),
        ({"preset": "dinov2-224", "image_size": 98}, "makes 224×224 crops; --image-size 98 goes with timm's alone"),
    ],
)
def test_options_that_contradict_each_other_are_refused_before_anything_is_loaded(
    options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(UsageError, match=complaint):
        load_extractor(replace(ModelConfig("no_such_model", "random:0"), **options), LIMITS, CPU)


def test_a_size_that_is_no_multiple_of_the_patches_is_answered_with_those_near() -> None:
    with pytest.raises(UsageError, match="98 and 112 are, not 100"):
        load_extractor(ModelConfig("vit_small_patch14_dinov2", "random:0", image_size=100), LIMITS, CPU)


def test_each_option_changes_the_fingerprint_and_the_numbers_are_as_asked() -> None:
    base = ModelConfig("test_vit", "random:0", precision="fp32")
    half = load_extractor(replace(base, normalize=True, dtype="float16"), LIMITS, CPU)
    vector = half.forward([np.full((160, 160, 3), 99, np.uint8)])["embedding"]
    assert vector.dtype == np.float16
    assert abs(np.linalg.norm(vector.astype(np.float64)) - 1) < 1e-3
    changes: list[dict[str, Any]] = [{}, {"normalize": True}, {"dtype": "float16"}, {"features": ALL}]
    digests = {load_extractor(replace(base, **change), LIMITS, CPU).fingerprint.digest for change in changes}
    assert len(digests) == len(changes)


@pytest.mark.parametrize("prefix", ["module.", "backbone.", "teacher.backbone."])
def test_a_prefixed_checkpoint_is_the_same_weights(prefix: str, tmp_path: Path) -> None:
    state = timm.create_model("test_vit").state_dict()
    torch.save({"model": {prefix + key: value for key, value in state.items()}}, tmp_path / "w.pth")
    torch.save(state, tmp_path / "plain.pth")
    one, other = (
        load_extractor(ModelConfig("test_vit", str(tmp_path / name)), LIMITS, CPU) for name in ("w.pth", "plain.pth")
    )
    assert one.fingerprint == other.fingerprint


@pytest.fixture
def all_outputs(
    request: pytest.FixtureRequest, tmp_path: Path, photographs: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A dataset of two photographs with every output, in fast unless the test says otherwise."""
    import datasets

    config = ModelConfig("test_vit", "random:0", precision="fp32", features=ALL, normalize=True, dtype="float16")
    config = replace(config, implementation=getattr(request, "param", "fast"))
    monkeypatch.setattr(datasets, "MODEL", config)
    write_photographs(tmp_path / "in", {name: photographs[name] for name in ("chelsea.png", "coffee.png")})
    extract(str(tmp_path / "in"), str(tmp_path / "out"), load_extractor(config, LIMITS, CPU), Cut(4, 1 << 26, 12))
    return tmp_path / "out"


@pytest.mark.parametrize("all_outputs", ["fast", "reference"], indirect=True)
def test_verify_computes_every_output_again(all_outputs: Path) -> None:
    said: list[str] = []
    assert verify(str(all_outputs), 2, LIMITS, StorageConfig(), said.append), said
    assert sum("rows again by timm" in line for line in said) == 3


def swapped(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Two patches of the first image in each other's place."""
    values[0, [0, 57]] = values[0, [57, 0]]
    return values


def last_class(values: np.ndarray[Any, Any], index: int) -> np.ndarray[Any, Any]:
    values[0, -1] = index
    return values


@pytest.mark.parametrize(
    ("column", "change", "output"),
    [
        ("embedding", lambda values: values * 1.1, "cosine 1.0000"),  # its direction is right, its length is not
        ("embedding", lambda values: values + 0.02 * abs(values).max() * (-1) ** np.arange(64), "cosine 0.99"),
        ("patches", swapped, "patches, cosine 0.9"),
        ("class_probability", lambda values: values + 3, "classes, cosine"),
        ("class_index", lambda values: last_class(values, values[0, 0]), "classes, cosine"),
        ("class_index", lambda values: last_class(values, -1), "classes, cosine"),
        ("class_index", lambda values: last_class(values, 1000), "classes, cosine"),
    ],
    ids=[
        "length",
        "all numbers a little",
        "two patches",
        "percentages",
        "a class twice",
        "a class below 0",
        "a class that there is not",
    ],
)
def test_verify_finds_one_output_falsified(
    all_outputs: Path, column: str, change: Callable[[Any], Any], output: str
) -> None:
    (path,) = (all_outputs / "features").iterdir()
    table = pq.read_table(path)
    index, field = table.schema.get_field_index(column), table.schema.field(column)
    values = np.array(table[column].to_pylist(), np.int32 if column == "class_index" else np.float64)
    stored = pa.array(change(values).astype(np.float64).reshape(-1)).cast(value_shape(field.type)[1])
    for size in reversed(value_shape(field.type)[0]):
        stored = pa.FixedSizeListArray.from_arrays(stored, size)
    said_of_itself = {b"raysight": pq.read_metadata(path).metadata[b"raysight"]}
    pq.write_table(table.set_column(index, column, stored).cast(table.schema.with_metadata(said_of_itself)), path)
    said: list[str] = []
    assert not verify(str(all_outputs), 2, LIMITS, StorageConfig(), said.append)
    problems = [line for line in said if line.startswith("PROBLEM")]
    assert problems
    assert all(output in line for line in problems), said


def test_verify_wants_the_head_that_the_dataset_was_made_with(
    tmp_path: Path, photographs: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    head = tmp_path / "head.safetensors"
    save_file({"weight": torch.randn(7, 64), "bias": torch.randn(7)}, head)
    config = ModelConfig("test_vit", "random:0", str(head), precision="fp32", features=("classes",))
    monkeypatch.setattr(datasets, "MODEL", config)
    write_photographs(tmp_path / "in", {"chelsea.png": photographs["chelsea.png"]})
    extract(str(tmp_path / "in"), str(tmp_path / "out"), load_extractor(config, LIMITS, CPU), Cut(4, 1 << 26, 12))
    said: list[str] = []
    assert verify(str(tmp_path / "out"), 1, LIMITS, StorageConfig(), said.append), said
    save_file({"weight": torch.randn(7, 64), "bias": torch.randn(7)}, head)
    assert not verify(str(tmp_path / "out"), 1, LIMITS, StorageConfig(), said.append)
    assert f"PROBLEM      the weights random:0 or the head {head} are not those the dataset was made with" in said


@pytest.mark.parametrize(
    ("indices", "percent", "difference"),
    [
        ([0, 1], [50, 30], 0),
        ([1, 2], [30, 20], 10),  # 0 is missing, in whose place 2 is less likely than the second likeliest
        ([0, 1], [40, 30], 10),
        ([0, 2], [50, 20], 10),
        ([1, 0], [30, 50], 0),
    ],
)
def test_classes_are_as_far_off_as_their_probabilities_are(
    indices: list[int], percent: list[float], difference: float
) -> None:
    theirs = np.array([50.0, 30.0, 20.0])
    found = _compare_classes("uri", np.array(indices), np.array(percent), theirs)
    assert found.difference == pytest.approx(difference)


@pytest.mark.parametrize(
    ("field", "text"),
    [
        (embedding_field(384), "embedding: float32[384]"),
        (embedding_field(384, "float16"), "embedding: float16[384]"),
        (patches_field(1369, 384), "patches: float16[1369, 384]"),
        (class_fields(5)[0], "class_index: int32[5]"),
        (class_fields(5)[1], "class_probability: float32[5]"),
    ],
    ids=str,
)
def test_what_a_fingerprint_says_of_a_column_is_its_type(field: pa.Field, text: str) -> None:
    assert describe_output(field) == text
    assert parse_output(text) == field


def test_wide_rows_make_chunks_and_shards_of_fewer_rows() -> None:
    job = JobConfig(chunk_rows=1024)
    budget = make_budget(job, [Node(cpus=2, gpus=0, memory=8 << 30)], can_grow=False)
    cut = make_cut(job, budget, [patches_field(1369, 384)])
    assert (cut.chunk_rows, cut.shard_rows) == ((64 << 20) // (1369 * 384 * 2), (256 << 20) // (1369 * 384 * 2))
    assert make_cut(job, budget, [embedding_field(384)]).chunk_rows == 1024


def test_a_checkpoint_in_a_bucket_is_fetched_once_for_each_version(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store = open_store(bucket.url, StorageConfig())
    kept = []
    for content in (b"one", b"one", b"two"):
        store.put("w.pth", content)
        kept.append(local_checkpoint(f"{bucket.url}/w.pth", "--weights", StorageConfig()))
        assert kept[-1].read_bytes() == content
    assert kept[0] == kept[1] != kept[2]
    with pytest.raises(UsageError, match="there is no such object"):
        local_checkpoint(f"{bucket.url}/gone.pth", "--weights", StorageConfig())
