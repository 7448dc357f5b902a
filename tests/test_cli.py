"""The command line: what it says, what it takes, and how it refuses."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pipeline.sections import Settings
from pipeline.settings import load_settings
from serve.cli import build_parser, main

if TYPE_CHECKING:
    from collections.abc import Mapping

SMALL = ("--model", "test_vit", "--weights", "random:0", "--precision", "fp32")


def commands() -> Mapping[str, argparse.ArgumentParser]:
    parser = build_parser()
    (action,) = (item for item in parser._actions if isinstance(item, argparse._SubParsersAction))
    return dict(action.choices)


@pytest.fixture
def photos(tmp_path: Path, photographs: dict[str, bytes]) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("chelsea.png", "coffee.png", "rocket.jpg"):
        (folder / name).write_bytes(photographs[name])
    return folder


def refused(*arguments: str | Path) -> int:
    """The exit code, also where argparse raises it."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as exit_:
        return int(exit_.code or 0)


@pytest.mark.parametrize("command", ["extract", "embed", "verify", "config", "bench"])
def test_each_command_is_listed_in_the_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    assert exit_.value.code == 0
    assert f"    {command} " in capsys.readouterr().out


@pytest.mark.parametrize("command", sorted(commands()))
def test_the_help_of_a_command_explains_every_option(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([command, "--help"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: raysight {command} ")
    options = [action for action in commands()[command]._actions if action.option_strings]
    assert [action.option_strings for action in options if not action.help] == []


@pytest.mark.parametrize(("path", "shown"), [("source.exclude", "(default: none)"), ("job.min_actors", "(default: 1)")])
def test_the_help_of_a_setting_ends_with_its_default(path: str, shown: str) -> None:
    (action,) = (action for action in commands()["extract"]._actions if action.dest == path)
    assert str(action.help).endswith(shown)


def test_extract_without_options_is_the_default_configuration() -> None:
    assert load_settings(build_parser().parse_args(["extract", "SOURCE", "DEST"])) == Settings()


def test_embed_takes_the_model_options_of_extract() -> None:
    flags = {name: set(commands()[name]._option_string_actions) for name in ("extract", "embed")}
    assert {"--config", "--model", "--weights", "--preset", "--implementation", "--precision"} <= flags["embed"]
    assert flags["embed"] - flags["extract"] == {"--format", "--output"}


def test_a_relative_checkpoint_becomes_absolute_since_workers_have_other_folders() -> None:
    options = build_parser().parse_args(["extract", "a", "b", "--weights", "weights.pth"])
    assert load_settings(options).model.weights == str(Path.cwd() / "weights.pth")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["extract", "photos"], "the following arguments are required"),
        (["extract", "a", "b", "--nonsense"], "unrecognized arguments: --nonsense"),
        (["extract", "a", "b", "--batch-size", "-1"], "-1: must be a whole number, at least 1"),
        (["extract", "a", "b", "--chunk-rows", "0"], "0: must be a whole number, at least 1"),
        (["extract", "a", "b", "--limit", "ten"], "ten: must be a whole number, at least 1"),
        (["extract", "a", "b", "--cpus-per-actor", "-0.5"], "-0.5: must be a number, at least 0"),
        (["extract", "a", "b", "--gpus-per-actor", "nan"], "nan: must be a number, at least 0"),
        (["extract", "a", "b", "--max-reject-rate", "1.5"], "1.5: must be a number from 0 to 1"),
        (["extract", "a", "b", "--max-reject-rate", "many"], "many: must be a number from 0 to 1"),
        (["extract", "a", "b", "--preset", "dino-224"], "one of timm, dinov2-224; did you mean dinov2-224?"),
        (["verify", "b", "--sample", "-3"], "-3 is negative"),
        (["extract", "ftp://host/a", "b"], "the scheme ftp:// is not supported"),
        (["extract", "a", "gs://bucket/b"], "the scheme gs:// is not supported here (images are read from it)"),
        (["extract", "s3://", "b"], "the bucket is missing"),
        (["extract", "a", "s3:///prefix"], "the bucket is missing"),
        (["extract", "a", ""], "a path is empty: a variable of the shell that is not set?"),
        (["extract", "", "b"], "a path is empty"),
        (["verify", "file://"], "a path is empty"),
    ],
)
def test_bad_arguments_exit_2_and_say_why_in_one_line(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(*arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("raysight")
    assert complaint in lines[0]


def test_a_source_that_does_not_exist_is_refused_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused("extract", tmp_path / "nowhere", tmp_path / "out", *SMALL) == 2
    assert f"there is no folder {tmp_path / 'nowhere'}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_source_without_images_is_refused_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "texts"
    source.mkdir()
    (source / "notes.txt").write_text("no picture")
    assert refused("extract", source, tmp_path / "out", *SMALL) == 2
    assert "holds no image" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--model", "vit_smal", "--weights", "random:0"], "has no model 'vit_smal'"),
        (["--model", "test_vit", "--weights", "random:seed"], "must be a whole number"),
        (["--model", "test_vit", "--weights", "nowhere.safetensors"], "there is no such file"),
        (["--model", "test_vit", "--weights", "weights.onnx"], "a file ending in"),
        (["--model", "test_vit", "--weights", "s3:///w.pth"], "the bucket is missing"),
    ],
)
def test_a_model_or_weights_that_do_not_exist_exit_2(
    photos: Path, tmp_path: Path, options: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused("extract", photos, tmp_path / "out", *options, "--dry-run") == 2
    assert complaint in capsys.readouterr().err


def test_verify_of_a_place_without_dataset_exits_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused("verify", tmp_path) == 2
    assert "holds no raysight dataset" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["npy", "parquet"])
def test_embed_writes_nothing_binary_to_a_terminal(
    form: str, photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert refused("embed", photos / "rocket.jpg", *SMALL, "--format", form) == 2
    said = capsys.readouterr()
    assert (said.out, f"--format {form} is binary: give --output FILE" in said.err) == ("", True)


def test_dry_run_prints_the_plan_writes_nothing_and_never_imports_ray(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    script = (
        "import sys; from serve.cli import main; code = main(sys.argv[1:]);"
        " sys.exit(code if 'ray' not in sys.modules else 'ray was imported')"
    )
    arguments = ("extract", photos, out, *SMALL, "--dry-run", "--chunk-rows", "2")
    finished = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=Path(__file__).parents[1],
    )
    assert (finished.returncode, finished.stderr) == (0, "")
    assert f"source       {photos}/: 3 images" in finished.stdout
    assert f"dest         {out}/: new; about 2 chunk(s) of 2" in finished.stdout
    assert "model        test_vit, fp32" in finished.stdout
    assert "MiB declared for each actor" in finished.stdout
    assert "embedding: float32[" in finished.stdout
    assert "estimate     none: no run of this dataset is on record" in finished.stdout
    assert not out.exists()


def test_a_price_without_a_dry_run_exits_2(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused("extract", photos, tmp_path / "out", *SMALL, "--dollars-per-hour", "2") == 2
    assert "--dollars-per-hour goes with --dry-run" in capsys.readouterr().err


def test_dry_run_of_a_job_that_would_be_refused_says_so_and_exits_2(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    write_description(out, photos)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert refused("extract", photos, out, *SMALL, "--implementation", "reference", "--dry-run") == 2
    assert "implementation: fast → reference" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def write_description(out: Path, photos: Path) -> None:
    """What a job with the options ``SMALL`` writes before its listing."""
    from pipeline.config import ImageLimits, StorageConfig
    from pipeline.dataset import agree_on
    from pipeline.extractor import load_extractor
    from pipeline.storage import open_store

    options: Any = build_parser().parse_args(["extract", str(photos), str(out), *SMALL])
    model = load_settings(options).model
    agree_on(open_store(str(out), StorageConfig()), load_extractor(model, ImageLimits()).fingerprint, model)


def test_embed_prints_json_with_the_features_and_the_fingerprint(
    photos: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert refused("embed", photos / "chelsea.png", *SMALL) == 0
    answer = json.loads(capfdbinary.readouterr().out)
    (image,) = answer["images"]
    assert (image["uri"], image["width"], image["height"]) == (str(photos / "chelsea.png"), 451, 300)
    assert len(image["embedding"]) > 1
    assert len(answer["fingerprint"]) == 16


def test_embed_exits_1_when_an_image_is_rejected_and_says_which(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff but no more")
    assert refused("embed", photos / "broken.jpg", *SMALL) == 1
    assert f"{photos / 'broken.jpg'}: " in capsys.readouterr().err


def test_embed_into_a_folder_that_does_not_exist_is_refused_before_the_work(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused("embed", photos / "chelsea.png", *SMALL, "--output", tmp_path / "nowhere" / "out.json") == 2
    assert "there is no folder" in capsys.readouterr().err


def test_embed_refuses_folders_before_the_work(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused("embed", photos / "chelsea.png", *SMALL, "--output", tmp_path) == 2
    assert f"--output {tmp_path}: this is a folder" in capsys.readouterr().err
    assert refused("embed", photos, "--model", "none that is loaded") == 2
    assert f"{photos} is a folder; name its images, or: raysight extract" in capsys.readouterr().err


def test_a_full_disk_is_a_line_and_exit_code_1(photos: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert refused("embed", photos / "chelsea.png", *SMALL, "--output", "/dev/full") == 1
    assert capfd.readouterr().err.splitlines() == ["raysight: [Errno 28] No space left on device"]


def test_the_exit_code_is_the_commands_whatever_happens_as_python_comes_down() -> None:
    program = (
        "import atexit, os, sys; atexit.register(os.abort); from serve.cli import entry;"
        "sys.argv = ['raysight', 'config']; entry()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0
    assert "model.name" in done.stdout
