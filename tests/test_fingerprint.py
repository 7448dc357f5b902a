"""The fingerprint: equal where the numbers are, and readable where they are not."""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields, replace

import pytest

from pipeline.fingerprint import Fingerprint

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
