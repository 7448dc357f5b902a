"""The project's outside: what a stranger finds, and what must not be in it."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from pipeline import __version__

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PIN = re.compile(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.!+]+)")


def normal(name: str) -> str:
    """A distribution name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> dict[str, str]:
    lines = (line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#"))
    matches = {line: PIN.fullmatch(line) for line in lines}
    assert [line for line, match in matches.items() if not match] == []
    return {normal(match[1]): match[2] for match in matches.values() if match}


def tracked_text() -> dict[str, str]:
    """Every tracked file that is text."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    texts = {}
    for name in filter(None, names.split("\0")):
        path = ROOT / name
        if path.is_file() and b"\0" not in (data := path.read_bytes()):
            texts[name] = data.decode()
    assert "pyproject.toml" in texts
    return texts


def recipe(target: str) -> str:
    """What make would run for a target, dependencies and all."""
    command = ["make", "--dry-run", "--always-make", "--no-print-directory", target]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("command", ["make demo", "make test"])
def test_the_readme_shows_the_two_commands_on_lines_of_their_own(command: str) -> None:
    assert re.search(rf"^{command}\b", (ROOT / "README.md").read_text(), re.MULTILINE)


def test_ci_calls_make_test_and_can_be_executed() -> None:
    script = ROOT / ".ci" / "run"
    assert "make test" in script.read_text()
    assert "set -euo pipefail" in script.read_text()
    assert os.access(script, os.X_OK)


@pytest.mark.parametrize("target", ["install", "demo", "test", "lint", "bench", "soak"])
def test_every_target_installs_first_and_runs_from_the_virtual_environment(target: str) -> None:
    steps = [line for line in recipe(target).splitlines() if ".venv/bin/" in line]
    assert "pip install" in steps[0] or "pip install" in steps[1]
    assert "-c constraints.txt" in "\n".join(steps)


def test_make_test_lints_and_ends_with_pytest() -> None:
    steps = recipe("test").strip().splitlines()
    assert steps[-1] == ".venv/bin/python -m pytest"
    assert ".venv/bin/ruff check ." in steps
    assert ".venv/bin/mypy" in steps


def test_constraints_pin_every_direct_dependency() -> None:
    project = PYPROJECT["project"]
    wanted = [
        *project["dependencies"],
        *(item for extra in project["optional-dependencies"].values() for item in extra),
    ]
    names = {normal(re.split(r"[\[<>=!~ ;]", requirement)[0]) for requirement in wanted}
    assert names - set(pins()) == set()


def test_torch_and_torchvision_are_the_pair_of_one_release() -> None:
    assert (pins()["torch"], pins()["torchvision"]) == ("2.14.1", "0.29.1")


def test_the_wheel_holds_the_two_packages_and_must_not_be_uploaded() -> None:
    assert PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["pipeline", "serve"]
    assert "Private :: Do Not Upload" in PYPROJECT["project"]["classifiers"]
    assert PYPROJECT["project"]["scripts"] == {"raysight": "serve.cli:entry"}


def test_the_version_is_one_and_the_changelog_has_it() -> None:
    assert PYPROJECT["project"]["version"] == __version__
    assert re.search(rf"^## \[{re.escape(__version__)}\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_no_tracked_file_names_a_registry_or_a_place_on_somebodys_machine() -> None:
    registry = re.compile(r"(index-url|find-links|trusted-host)[ =:]|https?://\S+/simple", re.IGNORECASE)
    place = re.compile(r"(?<![\w.~*-])/(home|root|Users|work|opt)/\w")
    own = "tests/test_project.py"  # the patterns themselves
    found = {
        name: match[0]
        for name, text in tracked_text().items()
        if name != own and (match := registry.search(text) or place.search(text))
    }
    assert found == {}


def test_no_tracked_file_is_over_a_megabyte() -> None:
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    sizes = {name: (ROOT / name).stat().st_size for name in filter(None, names.split("\0")) if (ROOT / name).is_file()}
    assert [name for name, size in sizes.items() if size > 1_000_000] == []


def test_links_between_the_documents_lead_somewhere() -> None:
    link = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")
    documents = [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")]
    broken = [
        f"{document.name}: {target}"
        for document in documents
        for target in link.findall(document.read_text())
        if not (document.parent / target).exists()
    ]
    assert broken == []


def test_hooks_call_the_tools_of_the_virtual_environment_and_fetch_nothing() -> None:
    text = (ROOT / ".pre-commit-config.yaml").read_text()
    assert re.findall(r"repo: (\S+)", text) == ["local"]
    entries = re.findall(r"entry: (\S+)", text)
    assert entries
    assert all(entry.startswith(".venv/bin/") for entry in entries)
