"""The measurement for a card, gone through on the CPU: what it prints, what it writes, and its counts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch

from pipeline import bench_gpu
from pipeline.bench.device import Card, gemm_peak, model_flops
from pipeline.bench.jpegs import least_cosine, make_jpegs
from pipeline.config import ImageLimits, ModelConfig
from pipeline.errors import UsageError
from pipeline.extractor import load_extractor

ROOT = Path(__file__).parents[1]
TINY = (
    "--model", "test_vit", "--device", "cpu", "--precision", "fp32", "--sizes", "1", "2", "--threads", "1", "2",
    "--batch-size", "2", "--gemm", "64", "--seconds", "0.05",
)  # fmt: skip


def test_one_command_measures_all_of_it_without_ray(tmp_path: Path) -> None:
    code = "import sys; from pipeline.bench_gpu import main; main(sys.argv[1:]); assert 'ray' not in sys.modules"
    arguments = [*TINY, "--no-compile", "--output", str(tmp_path / "figures.json")]
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=280, check=False
    )
    assert result.returncode == 0, result.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["gemm_tflops"] > 0
    assert {name: list(rates) for name, rates in figures["images_per_second"].items()} == {
        "raysight": ["1", "2"],
        "timm, amp": ["1", "2"],
    }
    assert all(rate > 0 for rates in figures["images_per_second"].values() for rate in rates.values())
    assert [item["threads"] for item in figures["jpegs"]] == [1, 2]
    assert all(item["rate"] > 0 and 0 < item["busy"] <= 1 for item in figures["jpegs"])
    assert figures["cosine"] > 0.999999
    assert "| decode threads |" in result.stdout
    assert "test_vit" in result.stdout


def test_what_was_measured_is_kept_when_the_rest_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(folder: Path | None) -> list[bytes]:
        raise RuntimeError("the card is gone")

    monkeypatch.setattr(bench_gpu, "make_jpegs", lost)
    output = tmp_path / "figures.json"
    with pytest.raises(RuntimeError, match="the card is gone"):
        bench_gpu.main([*TINY, "--no-compile", "--output", str(output)])
    figures = json.loads(output.read_text())
    assert list(figures["images_per_second"]["timm, amp"]) == ["1", "2"]


@pytest.mark.soak
def test_the_compiled_model_is_measured_beside_the_plain_one(tmp_path: Path) -> None:
    output = tmp_path / "figures.json"
    command = [sys.executable, "-m", "pipeline.bench_gpu", *TINY, "--output", str(output)]
    subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800, check=True)
    figures = json.loads(output.read_text())
    assert list(figures["images_per_second"]["raysight, compiled"]) == ["1", "2"]
    assert figures["compile_seconds"] > 0
    assert figures["compiled"]["cosine"] > 0.999999
    assert [item["threads"] for item in figures["compiled"]["jpegs"]] == [1, 2]


def test_the_flops_are_those_of_the_models_matrix_products() -> None:
    extractor = load_extractor(
        ModelConfig("test_vit", "random:0", precision="fp32"), ImageLimits(), torch.device("cpu")
    )
    model = timm.create_model("test_vit", num_classes=0)
    tokens, width, depth = model.pos_embed.shape[1], model.embed_dim, len(model.blocks)
    hidden = model.blocks[0].mlp.fc1.out_features
    embed = 2 * (tokens - 1) * model.patch_embed.proj.weight.numel()
    linear = 2 * tokens * width * (3 * width + width + 2 * hidden)
    attention = 2 * 2 * tokens * tokens * width
    assert model_flops(extractor) * 1e9 == pytest.approx(embed + depth * (linear + attention), rel=1e-6)


def test_the_least_similar_image_is_the_one_that_counts() -> None:
    class Fixed:
        def __init__(self, rows: list[list[float]]) -> None:
            self.rows = rows

        def prepare(self, data: bytes) -> SimpleNamespace:
            return SimpleNamespace(pixels=None)

        def forward(self, batch: list[None]) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
            return {"embedding": np.array(self.rows, np.float32)}

    one, other = Fixed([[1.0, 0.0], [3.0, 4.0]]), Fixed([[2.0, 0.0], [4.0, 3.0]])
    assert least_cosine(one, other, [b"", b""]) == pytest.approx(24 / 25)  # type: ignore[arg-type]


def test_the_peak_is_counted_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(torch.device("cpu"), 0.01)
    monkeypatch.setattr(card, "seconds", lambda call: call() is not None and 2e-3)
    assert gemm_peak(card, "fp32", 100) == pytest.approx(2 * 100**3 / 2e-3 / 1e12)


def test_made_jpegs_are_as_large_as_photographs_and_all_different() -> None:
    made = make_jpegs(None)
    assert len(set(made)) == len(made)
    assert 30_000 < np.mean([len(data) for data in made]) < 70_000


def test_a_folder_without_jpegs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no JPEGs"):
        make_jpegs(tmp_path)
