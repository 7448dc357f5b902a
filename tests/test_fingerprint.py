"""The fingerprint: equal where the numbers are, and readable where they are not."""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields, replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from datasets import LIMITS
from safetensors.torch import save_file

from pipeline.config import ModelConfig
from pipeline.dataset import agree_on
from pipeline.errors import UsageError
from pipeline.extractor import load_extractor
from pipeline.fingerprint import Fingerprint
from pipeline.local import LocalStore

if TYPE_CHECKING:
    from pathlib import Path

BASE = Fingerprint(
    model="resnet18",
    weights="ab" * 32,
    preset="timm",
    transform="224x224 crop_pct=0.95 crop_mode=center bicubic mean=0,0,0 std=1,1,1",
    implementation="fast",
    precision="fp32",
    outputs=("embedding: float32[512]",),
)


def changed(name: str) -> Fingerprint:
    values: dict[str, object] = {name: ("patches: float16[512]",) if name == "outputs" else "other"}
    return replace(BASE, **values)  # type: ignore[arg-type]


def test_it_survives_json() -> None:
    assert Fingerprint.from_dict(json.loads(json.dumps(BASE.to_dict()))) == BASE


def test_its_digest_is_of_the_canonical_json() -> None:
    canonical = json.dumps({**BASE.to_dict()}, sort_keys=True, separators=(",", ":"))
    assert BASE.digest == hashlib.sha256(canonical.encode()).hexdigest()[:16]


@pytest.mark.parametrize("name", [field.name for field in fields(Fingerprint)])
def test_every_field_changes_the_digest_and_is_named_as_a_difference(name: str) -> None:
    other = changed(name)
    assert other.digest != BASE.digest
    (difference,) = BASE.differences(other)
    assert difference.startswith(f"{name}: ")


def test_equal_fingerprints_do_not_differ() -> None:
    assert BASE.differences(replace(BASE)) == []


def test_a_difference_reads_from_this_one_to_the_other() -> None:
    assert BASE.differences(replace(BASE, precision="bf16")) == ["precision: fp32 → bf16"]


@pytest.mark.parametrize("values", [{}, {"outputs": []}, {**BASE.to_dict(), "device": "cuda"}])
def test_another_shape_is_refused(values: dict[str, object]) -> None:
    with pytest.raises((TypeError, KeyError)):
        Fingerprint.from_dict(values)


def write_head(path: Path, seed: int) -> str:
    """A linear classifier of ten classes over the 64 values of ``test_vit``."""
    values = np.random.default_rng(seed).normal(size=(10, 65)).astype(np.float32)
    save_file({"weight": torch.from_numpy(values[:, :64].copy()), "bias": torch.from_numpy(values[:, 64].copy())}, path)
    return str(path)


def refusal(dest: LocalStore, config: ModelConfig) -> list[str]:
    """The differences shown to a job with this model; none where it may go on."""
    try:
        agree_on(dest, load_extractor(config, LIMITS).fingerprint, config)
    except UsageError as error:
        return [line.strip() for line in str(error).splitlines()[1:-1]]
    return []


def test_a_dataset_refuses_another_image_size_and_another_head_and_shows_the_difference(tmp_path: Path) -> None:
    """What counts of a head is what is in its file, not how it is called."""
    first = write_head(tmp_path / "first.safetensors", 0)
    made = ModelConfig("test_vit", "random:0", first, precision="fp32", features=("embedding", "classes"))
    dest = LocalStore(str(tmp_path / "out"))
    assert refusal(dest, made) == []

    sizes = [line for line in refusal(dest, replace(made, image_size=192)) if line.startswith("transform: ")]
    assert [(line.split()[1], line.partition(" → ")[2].split()[0]) for line in sizes] == [("160x160", "192x192")]

    assert refusal(dest, replace(made, head=write_head(tmp_path / "copy.safetensors", 0))) == []
    (other,) = refusal(dest, replace(made, head=write_head(tmp_path / "other.safetensors", 1)))
    assert other.startswith("head: ")
    write_head(tmp_path / "first.safetensors", 1)
    assert refusal(dest, made) == [other]
