"""The guides: each command says what stands behind it, names what exists, and sums are right."""

from __future__ import annotations

import re

import pytest
from manifests import ROOT, render
from test_project import tracked_text

README = (ROOT / "deploy" / "README.md").read_text()
SIZING = (ROOT / "docs" / "sizing.md").read_text()
LABEL = re.compile(r"# (executed|validated|unverified here): (.+)")


def commands() -> list[tuple[str, str]]:
    """(label's line, command) of all shell blocks."""
    pairs = []
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL):
        lines = block.strip().splitlines()
        assert len(lines) % 2 == 0, block
        pairs += list(zip(lines[::2], lines[1::2], strict=True))
    return pairs


def test_every_command_is_labelled_with_what_stands_behind_it() -> None:
    assert len(commands()) > 10
    assert [label for label, _ in commands() if not LABEL.match(label)] == []
    assert [command for _, command in commands() if command.startswith("#")] == []


def test_what_is_called_executed_or_validated_names_a_test() -> None:
    for label, command in commands():
        match = LABEL.match(label)
        assert match is not None
        assert match[1] == "unverified here" or re.search(r"tests/test_\w+\.py", match[2]), command


@pytest.mark.parametrize("text", [README, SIZING])
def test_files_that_are_named_exist(text: str) -> None:
    names = set(re.findall(r"(?<![\w/.])(?:deploy|tests|docs)/[\w/.-]+", text))
    assert [name for name in names if not (ROOT / name.rstrip(".")).exists()] == []


def test_parts_that_are_applied_are_parts_of_the_overlay() -> None:
    parts = {item["metadata"]["labels"]["app.kubernetes.io/component"] for item in render("gpu")}
    chosen = re.findall(r"-l 'app.kubernetes.io/component in \(([^)]+)\)'", README)
    assert len(chosen) == 3
    assert {part.strip() for choice in chosen for part in choice.split(",")} == parts


def table(heading: str) -> list[list[float]]:
    """The numbers of the table whose first column is headed so, a list a row."""
    (_, text) = SIZING.split(f"| {heading} |", 1)
    rows = [line for line in text.split("\n\n", 1)[0].splitlines()[2:] if line.startswith("|")]
    return [[float(re.sub(r"[$,h ]", "", cell)) for cell in row.strip("|").split("|")] for row in rows]


def test_the_hours_are_images_over_rates() -> None:
    for images, *hours in table("images | 1 × 488/s"):
        assert hours == [round(images / rate / 3600, 2) for rate in (488, 895, 8 * 895, 64 * 895)]


def test_the_requests_cost_what_they_cost_each() -> None:
    for images, *dollars in table("images | GET"):
        each = (0.0004 / 1000, 0.005 / 1000 / 1000, 0.005 / 1000 / 1024)
        assert dollars == [pytest.approx(images * price, abs=0.0051) for price in each]


def test_the_rates_called_measured_stand_in_the_measurements() -> None:
    measured = tracked_text()["docs/performance.md"]
    assert re.search(r"\| raysight \| [\d,]+ \| 472 \(", measured)
    assert "bf16 took 0.83 to 0.85 s of CPU for an image" in measured
    assert "fp32 1.13 to 1.18" in measured
    steps = re.findall(r"\| (0\.\d\d) \|$", measured.split("| step | ms |")[1].split("\n\n")[0], re.MULTILINE)
    assert sum(map(float, steps)) == pytest.approx(1.77)
