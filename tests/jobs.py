"""Helpers of the tests that run whole jobs: corpora, processes, and what DuckDB says of the result."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import psutil
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

TESTS = Path(__file__).parent
MODEL = ("--model", "test_vit", "--weights", "random:0", "--precision", "fp32")
"""timm's own model for tests: 160 px, a millisecond an image."""

TIMEOUT_S = 240


def write_corpus(folder: Path, photographs: Mapping[str, bytes], count: int) -> list[Path]:
    """``count`` different JPEGs: crops of real photographs, in two folders."""
    images = [Image.open(io.BytesIO(data)).convert("RGB") for data in photographs.values()]
    images = [image for image in images if min(image.size) >= 120]
    generator = np.random.default_rng(0)
    paths = []
    for number in range(count):
        image = images[number % len(images)]
        width, height = generator.integers(80, 120, size=2)
        left, top = (int(generator.integers(0, side - 119)) for side in image.size)
        path = folder / f"folder-{number % 2}" / f"{number:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.crop((left, top, left + int(width), top + int(height))).save(path, quality=90)
        paths.append(path)
    return paths


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Of a job's process: workers can import the stubs and this checkout's modules, and no other Ray is meant."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**inherited, "PYTHONPATH": f"{TESTS}:{TESTS.parent}", **(extra or {})}


def start(
    *arguments: str | Path, settings: Mapping[str, Any] | None = None, env: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """Starts ``raysight`` as a process."""
    command = [sys.executable, str(TESTS / "driver.py"), json.dumps(settings or {}), *map(str, arguments)]
    return subprocess.Popen(
        command, env=environment(env), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd="/"
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """The exit code and all output of a process; it is ended, children included, when it hangs."""
    try:
        output, _ = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        kill_tree(process)
        output, _ = process.communicate()
        raise AssertionError(f"the job did not end in {TIMEOUT_S} s:\n{output}") from None
    return process.returncode, output


def run(
    *arguments: str | Path, settings: Mapping[str, Any] | None = None, env: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Runs ``raysight`` to its end."""
    return finish(start(*arguments, settings=settings, env=env))


def kill_tree(process: subprocess.Popen[str]) -> None:
    """SIGKILL for a driver and whatever it started."""
    try:
        children = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        children = []
    process.kill()
    for child in children:
        if child.is_running():
            child.kill()
    psutil.wait_procs(children, timeout=20)


def until(condition: Callable[[], Any], process: subprocess.Popen[str], what: str) -> Any:
    """Waits for a condition while the process lives."""
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        if value := condition():
            return value
        if process.poll() is not None:
            raise AssertionError(f"the job ended before {what}:\n{process.communicate()[0]}")
        time.sleep(0.01)
    kill_tree(process)
    raise AssertionError(f"no {what} in {TIMEOUT_S} s:\n{process.communicate()[0]}")


def workers(process: subprocess.Popen[str], title: str) -> list[psutil.Process]:
    """Ray workers below a driver whose process title holds ``title``."""
    return list(_matching(psutil.Process(process.pid).children(recursive=True), title))


def _matching(processes: list[psutil.Process], title: str) -> Iterator[psutil.Process]:
    for child in processes:
        try:
            if title in " ".join(child.cmdline()):
                yield child
        except psutil.NoSuchProcess:
            continue


def chunks(dest: Path) -> list[Path]:
    """Committed chunks."""
    return sorted(dest.glob("_raysight/chunks/*/*.parquet"))


def features(dest: Path) -> dict[str, np.ndarray[Any, Any]]:
    """uri → embedding, as DuckDB reads them; fails when a uri stands there twice."""
    rows = duckdb.sql(f"select uri, embedding from '{dest}/features/*.parquet'").fetchall()
    result = {uri: np.array(values, dtype=np.float32) for uri, values in rows}
    assert len(result) == len(rows), "a uri stands in the features twice"
    return result


def rejects(dest: Path) -> dict[str, tuple[str, str, str]]:
    """uri → (stage, error, message), as DuckDB reads them."""
    if not list(dest.glob("rejects/*.parquet")):
        return {}
    rows = duckdb.sql(f"select uri, stage, error, message from '{dest}/rejects/*.parquet'").fetchall()
    result = {uri: (stage, error, message) for uri, stage, error, message in rows}
    assert len(result) == len(rows), "a uri stands in the rejects twice"
    return result


def last_line(output: str) -> dict[str, float]:
    """The figures of the summary line."""
    line = output.strip().splitlines()[-1]
    return {name: float(value) for name, value in (pair.split("=") for pair in line.split())}


def assert_same(found: Mapping[str, np.ndarray[Any, Any]], expected: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """The same uris with the same vectors."""
    assert found.keys() == expected.keys()
    for uri, vector in found.items():
        np.testing.assert_allclose(vector, expected[uri], rtol=0, atol=1e-5, err_msg=uri)
