"""Settings: what is stronger, what is refused and in which words, and files that give themselves back."""

from __future__ import annotations

import argparse
import math
import re
import tomllib
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from pipeline.config import JobConfig, ModelConfig
from pipeline.errors import UsageError
from pipeline.keys import Key, all_keys
from pipeline.options import add_config_option, add_setting
from pipeline.sections import Settings
from pipeline.settings import Resolved, resolve
from pipeline.toml import to_toml
from serve.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable


def settle(flags: str = "", file: Path | None = None, **environment: str) -> Resolved:
    """What the flags of ``extract``, a file and an environment come to."""
    from serve.cli import build_parser

    arguments = ["extract", "SOURCE", "DEST", *flags.split(), *(["--config", str(file)] if file else [])]
    return resolve(build_parser().parse_args(arguments), environment)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    """``write(text)`` → a TOML file."""

    def write(text: str) -> Path:
        path = tmp_path / "settings.toml"
        path.write_text(text)
        return path

    return write


def test_nothing_given_is_the_default_everywhere() -> None:
    assert settle() == Resolved(Settings(), {})


def test_a_file_is_stronger_than_a_default(write: Callable[[str], Path]) -> None:
    file = write("[job]\nchunk_rows = 10\n")
    assert settle(file=file) == Resolved(Settings(job=JobConfig(chunk_rows=10)), {"job.chunk_rows": str(file)})


def test_the_environment_is_stronger_than_a_file(write: Callable[[str], Path]) -> None:
    resolved = settle(file=write("[job]\nchunk_rows = 10\nlimit = 7\n"), RAYSIGHT_JOB_CHUNK_ROWS="20")
    assert resolved.settings.job == JobConfig(chunk_rows=20, limit=7)
    assert resolved.origins["job.chunk_rows"] == "RAYSIGHT_JOB_CHUNK_ROWS"


def test_a_flag_is_stronger_than_the_environment(write: Callable[[str], Path]) -> None:
    resolved = settle("--chunk-rows 30", write("[job]\nchunk_rows = 10\n"), RAYSIGHT_JOB_CHUNK_ROWS="20")
    assert resolved.settings.job == JobConfig(chunk_rows=30)
    assert resolved.origins == {"job.chunk_rows": "flag"}


def test_a_flag_that_says_the_default_is_stronger_too(write: Callable[[str], Path]) -> None:
    file = write("[job]\nmax_reject_rate = 0.5\n")
    assert settle("--max-reject-rate 0.1", file).settings.job.max_reject_rate == 0.1


def test_the_environment_can_name_the_file(write: Callable[[str], Path]) -> None:
    resolved = settle(RAYSIGHT_CONFIG=str(write("[job]\nlimit = 7\n")))
    assert resolved.settings.job.limit == 7


def test_an_empty_variable_counts_as_not_set() -> None:
    assert settle(RAYSIGHT_JOB_LIMIT="") == Resolved(Settings(), {})


def test_the_key_of_a_client_in_the_same_shell_is_no_setting() -> None:
    assert settle(RAYSIGHT_API_KEY="secret") == Resolved(Settings(), {})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RAYSIGHT_SERVE_PORT", "tcp://10.0.0.7:8000"),
        ("RAYSIGHT_SERVE_SERVICE_HOST", "10.0.0.7"),
        ("RAYSIGHT_SERVICE_PORT_HTTP", "8000"),
        ("RAYSIGHT_PORT_8000_TCP_ADDR", "10.0.0.7"),
    ],
)
def test_what_kubernetes_says_of_a_service_called_raysight_is_no_setting(name: str, value: str) -> None:
    assert settle(**{name: value}) == Resolved(Settings(), {})


def test_a_relative_file_in_a_toml_file_is_beside_it(write: Callable[[str], Path]) -> None:
    file = write('[model]\nweights = "weights/vit.pth"\n')
    assert settle(file=file).settings.model.weights == str(file.parent / "weights" / "vit.pth")


def test_a_relative_file_in_a_flag_or_variable_is_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert settle("--weights vit.pth").settings.model.weights == str(tmp_path / "vit.pth")
    assert settle(RAYSIGHT_MODEL_WEIGHTS="vit.pth").settings.model.weights == str(tmp_path / "vit.pth")


def test_a_tilde_is_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[str], Path]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert settle(file=write('[model]\nweights = "~/vit.pth"\n')).settings.model.weights == f"{tmp_path}/vit.pth"


@pytest.mark.parametrize("weights", ["pretrained", "random:0", "s3://bucket/vit.pth", "/models/vit.pth"])
def test_weights_that_are_no_relative_file_stay_as_they_are(weights: str, write: Callable[[str], Path]) -> None:
    assert settle(file=write(f'[model]\nweights = "{weights}"\n')).settings.model.weights == weights


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[jobs]\n", "there is no section [jobs], only [model], [job], "),
        ("[jobs]\n", "; did you mean job?"),
        ("[job]\nchunk-rows = 3\n", "[job] has no key chunk-rows; did you mean chunk_rows?"),
        ("[job]\nxyz = 3\n", "[job] has no key xyz"),
        ("[model]\nbatch_size = 3\n", "[model] has no key batch_size; it is one of [job]"),
        ("chunk_rows = 3\n", "chunk_rows stands outside of a section; it belongs to [job]"),
        ("job = 3\n", "[job] must be a section, not job = …"),
        ("[job]\nchunk_rows = 0\n", "[job] chunk_rows = 0: must be a whole number, at least 1"),
        ("[job]\nchunk_rows = 1.5\n", "[job] chunk_rows = 1.5: must be a whole number, at least 1"),
        ("[job]\nchunk_rows = true\n", "[job] chunk_rows = true: must be a whole number, at least 1"),
        ('[job]\nchunk_rows = "8"\n', '[job] chunk_rows = "8": must be a whole number, at least 1'),
        ("[job]\nmax_reject_rate = 2\n", "[job] max_reject_rate = 2: must be a number from 0 to 1"),
        ("[job]\nlease_ttl_s = 0\n", "[job] lease_ttl_s = 0: must be a number above 0"),
        ("[job]\nlease_ttl_s = inf\n", "[job] lease_ttl_s = inf: must be a number above 0"),
        ("[storage]\nanonymous = 1\n", "[storage] anonymous = 1: must be true or false"),
        ('[model]\nname = ""\n', '[model] name = "": must be text'),
        ("[model]\nname = {x = [1, 'a']}\n", '[model] name = {x = [1, "a"]}: must be text'),
        ("[job]\nlimit = 2026-11-26\n", "[job] limit = 2026-11-26: must be a whole number, at least 1"),
        ('[model]\nprecision = "fp23"\n', "must be one of auto, fp32, bf16, fp16; did you mean fp32?"),
        ("[job\n", "(at line 1, column 5)"),
    ],
)
def test_a_bad_file_is_refused_with_its_name_the_place_and_the_way_out(
    text: str, complaint: str, write: Callable[[str], Path]
) -> None:
    file = write(text)
    with pytest.raises(UsageError) as error:
        settle(file=file)
    assert str(file) in str(error.value)
    assert complaint in str(error.value)


def test_a_file_that_is_not_there_or_not_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere\.toml: No such file or directory"):
        settle(file=tmp_path / "nowhere.toml")
    (tmp_path / "photo.toml").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(UsageError, match=r"photo\.toml: 'utf-8' codec can't decode"):
        settle(file=tmp_path / "photo.toml")


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("RAYSIGHT_JOB_CHUNKROWS", "3", "is not a setting; did you mean RAYSIGHT_JOB_CHUNK_ROWS?"),
        ("RAYSIGHT_CONFIGS", "a.toml", "is not a setting; did you mean RAYSIGHT_CONFIG?"),
        ("RAYSIGHT_JOB_CHUNK_ROWS", "many", "CHUNK_ROWS=many in the environment: must be a whole number, at least 1"),
        ("RAYSIGHT_STORAGE_ANONYMOUS", "1", "ANONYMOUS=1 in the environment: must be true or false"),
        ("RAYSIGHT_MODEL_PRESET", "tim", "one of timm, dinov2-224; did you mean timm?"),
    ],
)
def test_a_bad_variable_is_refused_by_name(name: str, value: str, complaint: str) -> None:
    with pytest.raises(UsageError) as error:
        settle(**{name: value})
    assert str(error.value).startswith(name)
    assert complaint in str(error.value)


def test_every_field_of_every_section_is_a_key() -> None:
    sections = get_type_hints(Settings)
    assert set(all_keys()) == {f"{name}.{item.name}" for name, kind in sections.items() for item in fields(kind)}


def test_every_key_says_what_it_means() -> None:
    assert [path for path, key in all_keys().items() if not key.meaning] == []
    assert all_keys()["job.max_actors"].meaning == "actors at most; None is what fits on the nodes there are."


def values(key: Key) -> st.SearchStrategy[Any]:
    """All that a key takes."""
    low, above, high = (key.rules.get(name) for name in ("minimum", "above", "maximum"))
    if key.choices:
        one: st.SearchStrategy[Any] = st.sampled_from(key.choices)
    elif key.kind is bool:
        one = st.booleans()
    elif key.kind is str:
        one = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
    elif key.kind is int:
        one = st.integers(low, high)
    else:
        one = st.floats(
            low if above is None else math.nextafter(above, math.inf), high, allow_nan=False, allow_infinity=False
        )
    one = st.lists(one, max_size=3).map(tuple) if key.many else one
    # A path is anchored as it is read, which a file beside it would undo once more: absolute, normal ones stay.
    return one.map(lambda text: str(Path(f"/{text}"))) if key.rules.get("path") else one


def some_settings() -> st.SearchStrategy[Settings]:
    """Settings with some keys at other values than their defaults."""
    sections = {
        name: st.fixed_dictionaries(
            {}, optional={key.name: values(key) for key in all_keys().values() if key.section == name}
        ).map(lambda chosen, kind=kind: kind(**chosen))
        for name, kind in get_type_hints(Settings).items()
    }
    return st.builds(Settings, **sections)


@hypothesis_settings(deadline=None)
@given(settings=some_settings())
def test_settings_written_as_toml_and_read_again_are_the_same(
    settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.getbasetemp() / "round-trip.toml"
    file.write_text(to_toml(settings), newline="")
    assert settle(file=file).settings == settings


@hypothesis_settings(deadline=None)
@given(data=st.data())
def test_what_a_variable_spells_is_what_the_key_holds(data: st.DataObject) -> None:
    scalars = [key for key in all_keys().values() if not key.many and key.kind is not str]
    key = data.draw(st.sampled_from(scalars))
    value = data.draw(values(key))
    text = str(value).lower() if key.kind is bool else str(value)
    resolved = settle(**{key.variable: text})
    assert getattr(getattr(resolved.settings, key.section), key.name) == value


@pytest.mark.parametrize(("text", "value"), [("TRUE", True), (" false ", False)])
def test_case_and_blanks_around_a_variables_value_do_not_count(text: str, value: bool) -> None:
    assert settle(RAYSIGHT_STORAGE_ANONYMOUS=text).settings.storage.anonymous is value


def test_a_list_has_commas_in_a_variable_and_repeats_in_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    key = Key("job", "limit", str, True, (), {})
    assert key.parse("a, b,c") == ("a", "b", "c")
    monkeypatch.setattr("pipeline.options.all_keys", lambda: {"job.limit": key})
    monkeypatch.setattr("pipeline.settings.all_keys", lambda: {"job.limit": key})
    parser = argparse.ArgumentParser()
    add_setting(parser, "job.limit", "names")
    options = parser.parse_args(["--limit", "a,b", "--limit", "c"])
    assert resolve(options, {}).settings.job.limit == ("a", "b", "c")


def test_a_switch_can_be_turned_off_where_the_file_turns_it_on(write: Callable[[str], Path]) -> None:
    parser = argparse.ArgumentParser()
    add_config_option(parser)
    add_setting(parser, "storage.anonymous", "unsigned requests")
    file = str(write("[storage]\nanonymous = true\n"))
    assert resolve(parser.parse_args(["--config", file]), {}).settings.storage.anonymous
    assert not resolve(parser.parse_args(["--config", file, "--no-anonymous"]), {}).settings.storage.anonymous


def test_config_prints_what_holds_and_whence(
    write: Callable[[str], Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write("[job]\nlimit = 7\nchunk_rows = 5\n")
    monkeypatch.setenv("RAYSIGHT_JOB_CHUNK_ROWS", "6")
    assert main(["config", "--config", str(file), "--preset", "dinov2-224"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["job.limit", "7", str(file)] in lines
    assert ["job.chunk_rows", "6", "RAYSIGHT_JOB_CHUNK_ROWS"] in lines
    assert ["model.preset", '"dinov2-224"', "flag"] in lines
    assert ["model.precision", '"auto"', "default"] in lines
    assert len(lines) == 1 + len(all_keys())


def test_config_as_toml_can_be_fed_back(
    write: Callable[[str], Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = write('[model]\nname = "resnet50"\nweights = "w.pth"\n[job]\nmax_reject_rate = 1\n')
    assert main(["config", "--config", str(file), "--format", "toml"]) == 0
    again = tmp_path / "elsewhere" / "again.toml"
    again.parent.mkdir()
    again.write_text(capsys.readouterr().out)
    assert settle(file=again).settings == settle(file=file).settings
    written = tomllib.loads(again.read_text())["model"]
    assert written.keys() == {name for name, value in asdict(ModelConfig()).items() if value is not None}
    assert (written["name"], written["weights"]) == ("resnet50", str(tmp_path / "w.pth"))


def test_the_example_in_the_documentation_is_read_as_it_stands(write: Callable[[str], Path]) -> None:
    page = (Path(__file__).parents[1] / "docs" / "configuration.md").read_text()
    (example,) = re.findall(r"^```toml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    resolved = settle(file=write(example))
    assert resolved.settings.job == JobConfig(chunk_rows=512, max_reject_rate=0.02, grace_s=120.0)
    assert {path.partition(".")[0] for path in resolved.origins} == set(get_type_hints(Settings))
