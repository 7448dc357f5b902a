"""A dataset of another format is refused, by whoever would read or continue it, before anything is written."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from datasets import FINGERPRINT, Numbers, numbers

from pipeline import __version__
from pipeline.config import ModelConfig
from pipeline.cut import Cut
from pipeline.dataset import agree_on, load_info
from pipeline.errors import UsageError
from pipeline.local import LocalStore
from pipeline.manifest import load_manifest
from serve.cli import main

if TYPE_CHECKING:
    from pathlib import Path

DESCRIPTION = "_raysight/dataset.json"
MARKER = "_raysight/manifest/committed.json"
COMMANDS = {
    "extract": ["extract", "{source}", "{dest}"],
    "extract --dry-run": ["extract", "{source}", "{dest}", "--dry-run"],
    "retry-rejects": ["retry-rejects", "{dest}"],
    "verify": ["verify", "{dest}"],
}


@pytest.fixture
def dataset(tmp_path: Path) -> Numbers:
    return numbers(LocalStore(str(tmp_path / "out")), 3, Cut(3, 1000, 3))


def doctor(dataset: Numbers, key: str, **changes: Any) -> None:
    """Changes a description or marker; None takes a value away."""
    values = {**json.loads(dataset.dest.get(key)), **changes}
    dataset.dest.put(key, json.dumps({name: value for name, value in values.items() if value is not None}).encode())


@pytest.mark.parametrize("key", [DESCRIPTION, MARKER])
def test_description_and_marker_say_their_format_and_who_wrote_them(dataset: Numbers, key: str) -> None:
    values = json.loads(dataset.dest.get(key))
    assert (values["format"], values["raysight"]) == (2, __version__)


@pytest.mark.parametrize("key", [DESCRIPTION, MARKER])
@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (
            {"format": 1, "raysight": None},
            "written by an early raysight in format 1; raysight {me} reads and writes format 2. Nothing was changed;",
        ),
        (
            {"format": 1, "raysight": "0.0.9"},
            "written by raysight 0.0.9 in format 1; raysight {me} reads and writes format 2. Nothing was changed;",
        ),
        ({"format": 1}, "extract into another DEST, or go on with the raysight that wrote it"),
        ({"format": 3, "raysight": "7.1.0"}, "use raysight 7.1.0 or a later one"),
        ({"format": None, "raysight": None}, "in format unknown"),
        ({"format": "two"}, "in format unknown"),
    ],
    ids=["nameless", "older", "what to do about it", "newer", "none", "no number"],
)
def test_another_format_is_refused_with_its_writer_and_what_to_do(
    dataset: Numbers, key: str, changes: dict[str, Any], complaint: str
) -> None:
    doctor(dataset, key, **changes)
    with pytest.raises(UsageError) as refusal:
        load_info(dataset.dest) if key == DESCRIPTION else load_manifest(dataset.dest)
    assert key in str(refusal.value)
    assert complaint.format(me=__version__) in str(refusal.value)


def test_a_job_that_would_go_on_with_it_is_refused(dataset: Numbers) -> None:
    doctor(dataset, DESCRIPTION, format=1)
    with pytest.raises(UsageError, match="in format 1"):
        agree_on(dataset.dest, FINGERPRINT, ModelConfig())


@pytest.mark.parametrize("key", [DESCRIPTION, MARKER])
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_it_and_leaves_it_as_it_was(
    tmp_path: Path, dataset: Numbers, command: str, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    doctor(dataset, key, format=1, raysight="0.0.9")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jpg").write_bytes(b"x")
    dest = tmp_path / "out"
    before = {path: path.read_bytes() for path in dest.rglob("*") if path.is_file()}
    arguments = [word.format(source=tmp_path / "in", dest=dest) for word in COMMANDS[command]]
    code = main([*arguments, *(["--model", "test_vit", "--weights", "random:0"] if "extract" in command else [])])
    assert code == 2
    assert "written by raysight 0.0.9 in format 1" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in dest.rglob("*") if path.is_file()} == before
