"""The guides: what they name exists, and the sums of the sizing guide are right."""

from __future__ import annotations

import math
import re

import pytest
from guide import README, ROOT

SIZING = (ROOT / "docs" / "sizing.md").read_text()
PERFORMANCE = (ROOT / "docs" / "performance.md").read_text()
RATES = (488, 895, 1243)
"""Images/s of the three GPUs, as timm has published them."""


@pytest.mark.parametrize("text", [README, SIZING])
def test_files_that_are_named_exist(text: str) -> None:
    names = set(re.findall(r"(?<![\w/.])(?:deploy|tests|docs)/[\w/.-]+", text))
    assert [name for name in names if not (ROOT / name.rstrip(".")).exists()] == []


def table(heading: str) -> list[list[float]]:
    """The numbers of the table whose first columns are headed so, a list a row."""
    (_, text) = SIZING.split(f"| {heading} |", 1)
    rows = [line for line in text.split("\n\n", 1)[0].splitlines()[2:] if line.startswith("|")]
    cells = [[re.sub(r"[$,h ]", "", cell) for cell in row.strip("|").split("|")] for row in rows]
    return [[float(cell) for cell in row if re.fullmatch(r"[\d.]+", cell)] for row in cells]


def fed_a_core() -> float:
    """Images/s of 500×375 that a core feeds, by the table of docs/performance.md."""
    feed = PERFORMANCE.split("\n## Feed\n")[1].split("\n## ")[0]
    (cores,) = set(re.findall(r"^(\d+) cores", feed, re.MULTILINE))
    row = re.search(r"^\| raysight \| [\d,]+ \| ([\d,]+)", feed, re.MULTILINE)
    assert row is not None
    return float(row[1].replace(",", "")) / int(cores)


def cpu_ms() -> dict[str, float]:
    """Step → CPU ms of an image, by the table of docs/performance.md."""
    steps = re.findall(
        r"^\| (.+) \| (\d\.\d\d) \|$", PERFORMANCE.split("| step | ms |")[1].split("\n\n")[0], re.MULTILINE
    )
    return {step: float(ms) for step, ms in steps}


def pixels_ms() -> float:
    """Of these, what the pixels cost."""
    return sum(ms for step, ms in cpu_ms().items() if re.match("decode|header|antialiased", step))


def test_the_rates_called_measured_stand_in_the_measurements() -> None:
    fed, every = fed_a_core(), sum(cpu_ms().values())
    sizing, measured = (" ".join(text.split()) for text in (SIZING, PERFORMANCE))
    assert f"{2 * fed:,.0f} images/s of 500×375 were fed" in sizing
    assert f"which is {fed:.0f} a core; an image took {every:.2f} CPU ms" in sizing
    assert f"| decoding | {fed:.0f} images/s a core at 500×375 |" in sizing
    assert f"but for its pixels is {every - pixels_ms():.2f} CPU ms" in sizing
    assert f"its pixels cost {pixels_ms():.2f} at 500×375" in sizing
    assert "bf16 took 0.51 s of CPU for an image that took fp32 0.90, and by OpenVINO 0.23 and 0.42" in measured
    assert "takes a core 0.90 s in fp32, and 0.51 s in bf16 where the CPU has it; 0.42 and 0.23 s with" in sizing
    assert "0.21 KiB stay for each chunk" in measured


def test_the_cores_of_a_gpu_are_its_rate_over_that_of_a_core() -> None:
    each = sum(cpu_ms().values())
    larger = [float(ms) for ms in re.findall(r"(\d+(?:\.\d)?) at (?:1600×1200|4000×3000)", SIZING)[:2]]
    rates = [fed_a_core(), *(fed_a_core() * each / (each - pixels_ms() + ms) for ms in larger)]
    assert f"leaves a core {rates[1]:.0f} and {rates[2]:.0f} images/s" in SIZING
    assert table("GPU | images/s") == [[gpu, *(round(gpu / rate, 1) for rate in rates)] for gpu in RATES]


def test_the_hours_are_images_over_rates() -> None:
    for images, *hours, gpus in table("images | 1 × 488/s"):
        assert hours == [round(images / rate / 3600, 2) for rate in (488, 895, 8 * 895, 64 * 895)]
        assert gpus == math.ceil(images / 895 / 86400)


def test_the_dollars_are_hours_at_a_dollar() -> None:
    for images, *dollars in table("images | at 488/s"):
        assert dollars == [pytest.approx(images / rate / 3600, abs=0.0051) for rate in RATES]
    assert [row[0] for row in table("images | at 488/s")] == [1e6, 1e8, 1e9]


def test_what_bounds_a_job_of_many_gpus_is_what_they_ask_for() -> None:
    (_, eight, many) = (line for line in SIZING.splitlines() if re.match(r"\| 1[0,]+ \| \d+ GPU", line))
    assert f"{8 * 895:,} GETs/s" in eight
    assert f"{64 * 895:,} GETs/s, that is {math.ceil(64 * 895 / 5500)} prefixes; " in many
    assert f"{64 * 895 * 45_000 * 8 / 1e9:.1f} Gbit/s" in many


def test_the_requests_cost_what_they_cost_each() -> None:
    for images, *dollars in table("images | GET"):
        each = (0.0004 / 1000, 0.005 / 1000 / 1000, 0.005 / 1000 / 1024)
        assert dollars == [pytest.approx(images * price, abs=0.0051) for price in each]
