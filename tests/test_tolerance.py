"""The tolerances that ``verify`` judges by; test_extractor.py measures that they hold."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipeline.tolerance import tolerance

COMBINATIONS = [(way, precision) for way in ("reference", "fast") for precision in ("fp32", "fp16", "bf16")]


def test_fast_in_fp32_keeps_the_cosine_the_design_promises() -> None:
    assert tolerance("fast", "fp32").cosine >= 0.9999


def test_reference_in_fp32_is_timm_but_for_the_order_of_sums() -> None:
    bound = tolerance("reference", "fp32")
    assert bound.cosine >= 0.999999
    assert bound.relative <= 1e-4


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_fast_is_never_held_tighter_than_reference(precision: str) -> None:
    fast, reference = tolerance("fast", precision), tolerance("reference", precision)
    assert fast.cosine <= reference.cosine
    assert fast.relative >= reference.relative


@pytest.mark.parametrize("way", ["reference", "fast"])
def test_fewer_bits_are_never_held_tighter(way: str) -> None:
    bounds = [tolerance(way, precision) for precision in ("fp32", "fp16", "bf16")]
    assert [bound.cosine for bound in bounds] == sorted((bound.cosine for bound in bounds), reverse=True)
    assert [bound.relative for bound in bounds] == sorted(bound.relative for bound in bounds)


@pytest.mark.parametrize(("way", "precision"), COMBINATIONS)
def test_the_documented_bounds_are_these(way: str, precision: str) -> None:
    text = (Path(__file__).parents[1] / "docs" / "tolerances.md").read_text(encoding="utf-8")
    row = re.search(rf"^\| {way} \| {precision} \| ([\d.]+) \| ([\d.e-]+) \|$", text, re.MULTILINE)
    assert row is not None
    bound = tolerance(way, precision)
    assert (float(row[1]), float(row[2])) == (bound.cosine, bound.relative)
