"""``raysight embed``: features of a few images from the command line, without ray."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

from pipeline.config import ImageLimits, ModelConfig, StorageConfig
from pipeline.embed import embed as embed_images
from pipeline.extractor import load_extractor
from serve.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

ROOT = Path(__file__).parents[1]
OPTIONS = ["--model", "resnet18", "--implementation", "reference", "--precision", "fp32"]

# In one process with the command, so that what it imported can be seen.
RUN = """
import sys
from serve.cli import main
code = main(sys.argv[1:])
assert "ray" not in sys.modules, "ray was imported"
sys.exit(code)
"""


def raysight(*arguments: str | Path, folder: Path = ROOT) -> subprocess.CompletedProcess[bytes]:
    """Runs the command in a process of its own, which fails if it imported ray."""
    return subprocess.run(
        [sys.executable, "-c", RUN, *map(str, arguments)],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        timeout=240,
        check=False,
    )


@pytest.fixture(scope="module")
def weights(make_checkpoint: Callable[..., Path]) -> list[str]:
    return [*OPTIONS, "--weights", str(make_checkpoint("resnet18"))]


@pytest.fixture(scope="module")
def expected(make_checkpoint: Callable[..., Path], photograph_paths: dict[str, Path]) -> NDArray[np.float32]:
    """(2, 512) float32: what timm makes of rocket.jpg and coins.png."""
    overlay = {"file": str(make_checkpoint("resnet18")), "hf_hub_id": None, "url": ""}
    model = timm.create_model("resnet18", pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay).eval()
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    images = [Image.open(photograph_paths[name]).convert("RGB") for name in ("rocket.jpg", "coins.png")]
    with torch.inference_mode():
        result: NDArray[np.float32] = model(torch.stack([transform(image) for image in images])).numpy()
    return result


@pytest.fixture(scope="module")
def two(photograph_paths: dict[str, Path]) -> list[Path]:
    return [photograph_paths["rocket.jpg"], photograph_paths["coins.png"]]


def close(actual: Any, expected: NDArray[np.float32]) -> None:
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * float(np.abs(expected).max()))


def test_json_has_a_row_for_each_image(weights: list[str], two: list[Path], expected: NDArray[np.float32]) -> None:
    result = raysight("embed", *two, *weights)
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert len(answer["fingerprint"]) == 16
    assert [row["uri"] for row in answer["images"]] == list(map(str, two))
    assert [(row["width"], row["height"]) for row in answer["images"]] == [(640, 427), (384, 303)]
    close([row["embedding"] for row in answer["images"]], expected)


def test_npy_is_one_matrix(weights: list[str], two: list[Path], expected: NDArray[np.float32]) -> None:
    result = raysight("embed", *two, *weights, "--format", "npy")
    assert result.returncode == 0, result.stderr
    matrix = np.load(io.BytesIO(result.stdout), allow_pickle=False)
    assert matrix.dtype == np.float32
    close(matrix, expected)


def test_parquet_is_read_by_duckdb(
    weights: list[str], two: list[Path], expected: NDArray[np.float32], tmp_path: Path
) -> None:
    output = tmp_path / "features.parquet"
    result = raysight("embed", *two, *weights, "--format", "parquet", "--output", output)
    assert result.returncode == 0, result.stderr
    assert result.stdout == b""
    rows = duckdb.sql(f"SELECT uri, width, height, embedding FROM '{output}'").fetchall()
    assert [row[:3] for row in rows] == [(str(two[0]), 640, 427), (str(two[1]), 384, 303)]
    close([row[3] for row in rows], expected)


def test_a_jpeg_is_told_by_its_content_and_found_by_a_relative_name(
    weights: list[str], photographs: dict[str, bytes], expected: NDArray[np.float32], tmp_path: Path
) -> None:
    (tmp_path / "a photo #1?.png").write_bytes(photographs["rocket.jpg"])
    result = raysight("embed", "a photo #1?.png", *weights, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    (row,) = json.loads(result.stdout)["images"]
    assert row["uri"] == str(tmp_path / "a photo #1?.png")
    close(row["embedding"], expected[0])


def test_a_bad_image_is_a_line_and_exit_code_1_while_the_others_are_computed(
    weights: list[str], two: list[Path], expected: NDArray[np.float32], tmp_path: Path
) -> None:
    bad, gone = tmp_path / "bad.jpg", tmp_path / "gone.jpg"
    bad.write_bytes(two[0].read_bytes()[:5000])
    result = raysight("embed", two[0], bad, gone, two[1], *weights)
    assert result.returncode == 1
    lines = result.stderr.decode().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"{bad}: Truncated in decode: ")
    assert lines[1].startswith(f"{gone}: NotFound in read: ")
    rows = json.loads(result.stdout)["images"]
    assert [row.get("error") for row in rows] == [None, "Truncated", "NotFound", None]
    close([row["embedding"] for row in rows if "embedding" in row], expected)


def test_a_matrix_with_a_row_missing_is_refused_with_exit_code_2(
    weights: list[str], two: list[Path], tmp_path: Path
) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no image")
    result = raysight("embed", two[0], bad, *weights, "--format", "npy", "--output", tmp_path / "out.npy")
    assert result.returncode == 2
    assert str(bad) in result.stderr.decode()
    assert not (tmp_path / "out.npy").exists()


def test_images_that_are_all_bad_still_make_an_answer(weights: list[str], tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"")
    result = raysight("embed", tmp_path / "bad.jpg", *weights)
    assert result.returncode == 1
    assert [row["error"] for row in json.loads(result.stdout)["images"]] == ["Empty"]


def test_weights_that_do_not_fit_are_a_message_and_exit_code_2(two: list[Path], tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(b"")
    result = raysight("embed", two[0], "--model", "resnet18", "--weights", tmp_path / "w.pth")
    assert result.returncode == 2
    assert result.stderr.decode().startswith("raysight: --weights ")
    assert b"Traceback" not in result.stderr


# ---- every output in every format; the command's process is not what is in question, so it runs in this one

ALL = ["--features", "embedding,patches,classes"]


@pytest.fixture(scope="module")
def tokens(make_checkpoint: Callable[..., Path]) -> list[str]:
    weights = str(make_checkpoint("test_vit"))
    return ["--model", "test_vit", "--weights", weights, "--implementation", "reference", "--precision", "fp32"]


@pytest.fixture(scope="module")
def of_timm(make_checkpoint: Callable[..., Path], two: list[Path]) -> dict[str, NDArray[Any]]:
    """What timm makes of the two images: ``embedding`` (2, 64), ``patches`` (2, 100, 64), and the five likeliest
    classes, ``class_index`` and ``class_probability`` (2, 5)."""
    overlay = {"file": str(make_checkpoint("test_vit")), "hf_hub_id": None, "url": ""}
    model = timm.create_model("test_vit", pretrained=True, pretrained_cfg_overlay=overlay).eval()
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    with torch.inference_mode():
        features = model.forward_features(torch.stack([transform(Image.open(path).convert("RGB")) for path in two]))
        top = torch.topk(model.forward_head(features).softmax(dim=1) * 100, k=5)
        return {
            "embedding": model.forward_head(features, pre_logits=True).numpy(),
            "patches": features[:, 1:].numpy(),
            "class_index": top.indices.numpy(),
            "class_probability": top.values.numpy(),
        }


def embed(output: Path, *arguments: str | Path) -> bytes:
    assert main(["embed", *map(str, arguments), "--output", str(output)]) == 0
    return output.read_bytes()


def same(found: dict[str, Any], expected: dict[str, NDArray[Any]]) -> None:
    """To the last bits of float32, of float16 for patches; indices exactly."""
    assert np.asarray(found["class_index"]).tolist() == expected["class_index"].tolist()
    close(found["embedding"], expected["embedding"])
    np.testing.assert_allclose(found["class_probability"], expected["class_probability"], rtol=1e-4)
    np.testing.assert_allclose(found["patches"], expected["patches"], rtol=0, atol=1e-3 * expected["patches"].max())


def test_json_has_every_output_and_the_names_of_classes(
    tokens: list[str], two: list[Path], of_timm: dict[str, NDArray[Any]], tmp_path: Path
) -> None:
    images = json.loads(embed(tmp_path / "all.json", *two, *tokens, *ALL))["images"]
    same({name: [row[name] for row in images] for name in of_timm}, of_timm)
    names = timm.data.ImageNetInfo()
    for row in images:
        described = [names.index_to_description(index) for index in row["class_index"]]
        assert [name in text for name, text in zip(row["class_name"], described, strict=True)] == [True] * 5


def test_parquet_has_every_output_as_duckdb_reads_it(
    tokens: list[str], two: list[Path], of_timm: dict[str, NDArray[Any]], tmp_path: Path
) -> None:
    embed(tmp_path / "all.parquet", *two, *tokens, *ALL, "--format", "parquet")
    rows = duckdb.sql(f"SELECT {', '.join(of_timm)} FROM '{tmp_path}/all.parquet'").fetchall()
    same(dict(zip(of_timm, zip(*rows, strict=True), strict=True)), of_timm)


def test_npy_of_patches_is_one_array_of_three_axes(
    tokens: list[str], two: list[Path], of_timm: dict[str, NDArray[Any]], tmp_path: Path
) -> None:
    data = embed(tmp_path / "patches.npy", *two, *tokens, "--features", "patches", "--format", "npy")
    array = np.load(io.BytesIO(data), allow_pickle=False)
    assert (array.shape, array.dtype) == ((2, 100, 64), np.float16)
    np.testing.assert_allclose(array, of_timm["patches"], rtol=0, atol=1e-3 * of_timm["patches"].max())


def test_npy_of_several_outputs_is_refused_before_a_model_is_loaded(
    two: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*map(str, two), "--weights", "nowhere.pth", *ALL, "--format", "npy"]
    assert main(["embed", *arguments, "--output", str(tmp_path / "x.npy")]) == 2
    assert "is one array, and cannot hold embedding, patches, classes" in capsys.readouterr().err
    assert not (tmp_path / "x.npy").exists()


def test_an_image_whose_features_are_not_finite_is_a_reject_and_the_others_keep_theirs(
    two: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    extractor = load_extractor(ModelConfig("test_vit", "random:0", precision="fp32"), ImageLimits())
    first, forward = iter([True]), extractor.forward

    def overflowing(batch: Any) -> dict[str, NDArray[Any]]:
        return {name: values * (np.inf if next(first, False) else 1) for name, values in forward(batch).items()}

    monkeypatch.setattr(extractor, "forward", overflowing)
    table = embed_images(extractor, list(map(str, two)), ImageLimits(), StorageConfig())
    assert table["error"].to_pylist() == ["NotFinite", None]
    assert [value is None for value in table["embedding"].to_pylist()] == [True, False]
