"""docs/reading.md: its blocks are run as they stand, beside a small dataset, and give what plain Python gives."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
from datasets import DIM, FINGERPRINT, STORAGE, numbers, vector

from pipeline.columns import to_column
from pipeline.commit import build_chunk, commit_chunk
from pipeline.cut import Cut
from pipeline.errors import RejectError
from pipeline.generation import Listing, write_generation
from pipeline.schema import MANIFEST_SCHEMA, class_fields, patches_field
from pipeline.seal import seal_shard
from pipeline.storage import open_store

if TYPE_CHECKING:
    from collections.abc import Mapping

PAGE = Path(__file__).parents[1] / "docs" / "reading.md"
ROWS, REJECTED, QUERY = 20, 3, 7
GOOD = [number for number in range(ROWS) if number != REJECTED]

# What each block leaves behind that is worth a look, as an expression over its names.
PROBES = {
    "DuckDB": "{'nearest': nearest, 'reasons': reasons}",
    "Polars": "{'uris': frame['uri'].to_list(), 'matrix': matrix.tolist()}",
    "pandas": "{'uris': frame['uri'].tolist(), 'matrix': matrix.tolist()}",
    "NumPy": (
        "{'uris': table['uri'].to_pylist(), 'matrix': matrix.tolist(), 'parts': [part.tolist() for part in parts],"
        " 'copied': [not np.shares_memory(part, np.frombuffer(chunk.flatten().buffers()[1], np.float32))"
        " for part, chunk in zip(parts, table['embedding'].chunks)]}"
    ),
    "Hugging Face datasets": "{'uris': list(rows['uri']), 'matrix': matrix.tolist()}",
    "LanceDB": "{'nearest': nearest}",
    "FAISS": "{'nearest': nearest}",
    "Patch tokens and classes": (
        "{'likeliest': likeliest, 'first': first_tokens, 'polars': tokens.tolist(), 'classes': classes.tolist(),"
        " 'pandas': in_pandas.tolist(), 'group': of_a_row_group.tolist(),"
        " 'types': [str(array.dtype) for array in (tokens, in_pandas, of_a_row_group, classes)]}"
    ),
}
WIDE = "Patch tokens and classes"
"""Whose block runs beside a dataset of its own."""

# One process runs all blocks, each on its own names after those of the page's head. Without the folder of the tests on
# its path, where ``datasets`` would be another module.
RUNNER = """
import contextlib, io, json, os, sys, traceback
blocks, probes, folders = json.load(sys.stdin)
answers = {}
for name, probe in probes.items():
    names = {}
    os.chdir(folders.get(name, folders[""]))
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            exec(blocks[""], names)
            exec(blocks[name], names)
            answers[name] = eval(probe, names)
    except Exception:
        answers[name] = traceback.format_exc()
print(json.dumps(answers))
"""


def blocks() -> dict[str, str]:
    """Heading → its Python block; that before the first heading of the second level has none."""
    head, *sections = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)
    parts = {"": head, **{section.partition("\n")[0]: section for section in sections}}
    found = {name: re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL) for name, text in parts.items()}
    return {name: code for name, (code,) in found.items()}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """Heading → what the probe found, or a traceback."""
    folder = tmp_path_factory.mktemp("reading")
    dataset = numbers(open_store(str(folder / "DEST"), STORAGE), ROWS, Cut(5, 1 << 20, 10), rejected=[REJECTED])
    for shard in (0, 1):
        dataset.commit_all(shard)
        dataset.seal(shard)
    wide = tmp_path_factory.mktemp("wide")
    write_wide(wide / "DEST")
    for place in (folder, wide):
        np.save(place / "query.npy", np.array([vector(QUERY)], np.float32))
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-c", RUNNER],
        input=json.dumps([blocks(), PROBES, {"": str(folder), WIDE: str(wide)}]),
        env={**inherited, "HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    result: dict[str, Any] = json.loads(finished.stdout)
    return result


def wide_row(number: int) -> dict[str, np.ndarray[Any, Any]]:
    """Patch tokens (6, 4) and the five likeliest classes of a row."""
    return {
        "patches": np.arange(24, dtype=np.float16).reshape(6, 4) / 8 + number,
        "class_index": np.arange(5, dtype=np.int32) * 100 + number,
        "class_probability": np.float32(50) / np.arange(1, 6, dtype=np.float32),
    }


def write_wide(dest: Path) -> None:
    """A dataset of patch tokens and classes, one shard of a row group for every five rows."""
    store = open_store(str(dest), STORAGE)
    fields = (patches_field(6, 4), *class_fields(5))
    rows = pa.record_batch([list(map(uri, range(ROWS))), [1] * ROWS, ["v"] * ROWS], schema=MANIFEST_SCHEMA)
    cut = Cut(5, 1 << 20, ROWS)
    (shard,) = write_generation(store, None, Listing(("/nowhere/",)), [("/nowhere/", rows)], cut).shards
    for chunk in range(len(shard.chunks)):
        members = range(chunk * 5, chunk * 5 + 5)
        values = {field.name: np.stack([wide_row(n)[field.name] for n in members if n != REJECTED]) for field in fields}
        columns = {field.name: to_column(values[field.name], field.type) for field in fields}
        outcomes = [RejectError("decode", "Corrupt", "") if n == REJECTED else (1, 1) for n in members]
        commit_chunk(store, 0, chunk, build_chunk([uri(n) for n in members], ["v"] * 5, outcomes, columns, fields))
    seal_shard(store, 0, shard, FINGERPRINT)


def expected_matrix() -> list[list[float]]:
    return [vector(number) for number in GOOD]


def uri(number: int) -> str:
    return f"/nowhere/image-{number}"


def cosine(number: int) -> float:
    """With the query."""
    a, b = vector(number), vector(QUERY)
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


def test_every_block_of_the_page_is_run() -> None:
    assert blocks().keys() - {""} == PROBES.keys()


@pytest.mark.parametrize("tool", ["Polars", "pandas", "NumPy", "Hugging Face datasets"])
def test_a_table_has_every_row_and_every_number(tool: str, answers: Mapping[str, Any]) -> None:
    assert isinstance(answers[tool], dict), answers[tool]
    assert answers[tool]["uris"] == [uri(number) for number in GOOD]
    assert answers[tool]["matrix"] == expected_matrix()


@pytest.mark.parametrize("tool", ["DuckDB", "LanceDB", "FAISS"])
def test_a_search_finds_the_nearest_rows_by_cosine(tool: str, answers: Mapping[str, Any]) -> None:
    assert isinstance(answers[tool], dict), answers[tool]
    nearest = sorted(GOOD, key=cosine, reverse=True)[:3]
    assert [name for name, _ in answers[tool]["nearest"]] == [uri(number) for number in nearest]
    assert [value for _, value in answers[tool]["nearest"]] == pytest.approx([cosine(number) for number in nearest])


def test_duckdb_counts_the_rejects_by_reason(answers: Mapping[str, Any]) -> None:
    assert answers["DuckDB"]["reasons"] == [["Corrupt", 1]]


def test_numpy_sees_the_memory_that_the_parquet_reader_filled(answers: Mapping[str, Any]) -> None:
    assert answers["NumPy"]["copied"] == [False] * len(answers["NumPy"]["parts"])
    assert [row for part in answers["NumPy"]["parts"] for row in part] == expected_matrix()
    assert {len(row) for part in answers["NumPy"]["parts"] for row in part} == {DIM}


def test_patch_tokens_are_a_float16_matrix_in_each_row_whichever_way_they_are_read(answers: Mapping[str, Any]) -> None:
    assert isinstance(answers[WIDE], dict), answers[WIDE]
    expected = [wide_row(number)["patches"].tolist() for number in GOOD]
    assert answers[WIDE]["polars"] == answers[WIDE]["pandas"] == expected
    assert answers[WIDE]["group"] == [rows for number, rows in zip(GOOD, expected, strict=True) if number < 5]
    assert answers[WIDE]["first"] == [[rows[0]] for _, rows in sorted(zip(map(uri, GOOD), expected, strict=True))]
    assert answers[WIDE]["types"] == ["float16"] * 3 + ["int32"]


def test_classes_come_likeliest_first(answers: Mapping[str, Any]) -> None:
    assert answers[WIDE]["classes"] == [wide_row(number)["class_index"].tolist() for number in GOOD]
    assert answers[WIDE]["likeliest"] == sorted([uri(number), number, 50.0] for number in GOOD)
