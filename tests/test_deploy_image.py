"""The image: a Dockerfile that hadolint accepts, dependencies locked by hash, and code that runs where it is put."""

from __future__ import annotations

import json
import os
import platform
import re
import runpy
import shutil
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest
from manifests import OVERLAYS, settings_file
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from safetensors.torch import load_file
from test_project import PYPROJECT, ROOT, pins

DOCKERFILE = ROOT / "deploy" / "Dockerfile"
TEXT = DOCKERFILE.read_text().replace("\\\n", " ")
LOCK = ROOT / "deploy" / "requirements.lock"


def steps(instruction: str) -> list[str]:
    return re.findall(rf"^{instruction} +(.+)$", TEXT, re.MULTILINE)


def copies() -> list[tuple[str, str]]:
    """(source, target) of what is copied from the checkout."""
    words = [
        [word for word in line.split() if not word.startswith("--")] for line in steps("COPY") if "--from" not in line
    ]
    return [(source, target) for *sources, target in words for source in sources]


def mounts() -> list[str]:
    return re.findall(r"--mount=type=bind,source=([^, ]+)", TEXT)


def locked() -> dict[str, str]:
    lines = [line for line in LOCK.read_text().splitlines() if not line.startswith("#")]
    matches = [re.fullmatch(r"([\w.-]+)==([\w.+!]+) --hash=sha256:[0-9a-f]{64}", line) for line in lines]
    assert all(matches)
    return {canonicalize_name(match[1]): match[2] for match in matches if match}


def closure(requirements: list[str]) -> set[str]:
    """Names of everything that requirements need on this machine, found by walking the installed metadata."""
    todo = [(item, extra) for text in requirements for item in [Requirement(text)] for extra in ("", *item.extras)]
    seen: set[tuple[str, str]] = set()
    while todo:
        item, extra = todo.pop()
        name = canonicalize_name(item.name)
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        for text in distribution(name).requires or []:
            child = Requirement(text)
            if child.marker is None or child.marker.evaluate({"extra": extra}):
                todo += [(child, wanted) for wanted in ("", *child.extras)]
    return {name for name, _ in seen}


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([str(hadolint), "--no-color", str(DOCKERFILE)], capture_output=True, text=True)
    assert done.stdout + done.stderr == ""
    assert done.returncode == 0


def test_hadolint_is_awake(tmp_path: Path) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM python:latest\nRUN cd /tmp && sudo true\n")
    done = subprocess.run([str(hadolint), str(bad)], capture_output=True, text=True)
    assert done.returncode == 1
    assert "DL3007" in done.stdout


def test_rays_version_is_one_in_image_manifests_and_constraints() -> None:
    version = pins()["ray"]
    arguments = dict(line.split("=", 1) for line in steps("ARG") if "=" in line)
    assert arguments["RAY_VERSION"] == version
    assert locked()["ray"] == version
    assert {settings_file(overlay)["ray_version"] for overlay in OVERLAYS} == {version}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_images_tag_says_what_is_in_it(overlay: str) -> None:
    variant = {"cpu": "cpu"}.get(overlay, "gpu")
    tag = settings_file(overlay)["image"].rpartition(":")[2]
    assert tag == f"{PYPROJECT['project']['version']}-ray{pins()['ray']}-{variant}"


def test_the_lock_is_what_raysight_needs_at_the_versions_of_the_constraints() -> None:
    needed = closure(PYPROJECT["project"]["dependencies"])
    assert set(locked()) == needed
    differing = {name: version for name, version in locked().items() if pins().get(name, version) != version}
    assert differing == {}
    assert set(locked()) - set(pins()) == {"certifi", "setuptools"}  # constraints.txt leaves both out


def test_the_base_has_the_python_that_the_lock_is_for() -> None:
    (base,) = (line.partition("=")[2] for line in steps("ARG") if line.startswith("BASE="))
    assert base == "rayproject/ray:${RAY_VERSION}-py311-${VARIANT}"


def test_installs_are_by_hash_and_keep_no_cache() -> None:
    (install,) = (line for line in steps("RUN") if "pip install" in line)
    assert {"--require-hashes", "--no-deps", "--no-cache-dir"} <= set(install.split())


def test_the_code_comes_after_the_dependencies_so_that_its_layers_are_small() -> None:
    assert TEXT.index("pip install") < TEXT.index("WEIGHTS_OF") < TEXT.index("COPY pipeline")


def test_the_user_is_nobody_special_and_the_one_that_the_manifests_name() -> None:
    assert steps("USER")[-1] == "1000:100"


def test_what_kuberays_probes_call_is_checked_for_while_building() -> None:
    assert any("command -v bash" in line and "command -v wget" in line for line in steps("RUN"))


def test_the_context_holds_what_is_copied_and_nothing_else() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    assert {line[1:] for line in lines if line.startswith("!")} == {source for source, _ in copies()} | set(mounts())


def build(image: Path, python: Path) -> dict[str, str]:
    """Copies what the Dockerfile copies. Returns the environment of the image, with ``python`` as its interpreter."""
    for source, target in copies():
        place = image / target.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, place, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / source, place)
    (path,) = re.findall(r"PYTHONPATH=(\S+)", TEXT)
    search = os.pathsep.join([str(python.parent), str(image / "usr/local/bin"), os.environ["PATH"]])
    return {**os.environ, "PYTHONPATH": str(image / path.lstrip("/")), "PATH": search}


def test_the_command_runs_from_the_copied_code_alone(tmp_path: Path) -> None:
    image = tmp_path / "image"
    environment = build(image, Path(sys.executable))
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "serve").mkdir(parents=True)  # a folder of the same name must not win
    (elsewhere / "serve" / "__init__.py").write_text("raise RuntimeError('the current folder won')")
    command = str(image / "usr/local/bin/raysight")
    done = subprocess.run([command, "--version"], capture_output=True, text=True, env=environment, cwd=elsewhere)
    assert (done.stdout, done.stderr) == (f"raysight {PYPROJECT['project']['version']}\n", "")
    script = "import serve.app, pipeline.job; print(serve.app.__file__, pipeline.job.__file__)"
    imported = subprocess.run(
        [sys.executable, "-P", "-c", script], capture_output=True, text=True, env=environment, cwd=elsewhere
    )
    assert imported.returncode == 0, imported.stderr
    assert all(word.startswith(str(image)) for word in imported.stdout.split())


@pytest.mark.soak
def test_the_steps_of_the_dockerfile_go_through_in_a_new_virtual_environment(
    tmp_path: Path, photograph_paths: dict[str, Path]
) -> None:
    """All but the base image and the weights of the hub. Fetches gigabytes the first time."""
    lock = runpy.run_path(str(ROOT / "deploy" / "lock.py"))
    machine = (platform.system(), platform.machine(), platform.python_version().rpartition(".")[0])
    if machine != lock["LIKE_THE_IMAGE"]:
        pytest.skip(f"the lock is for {lock['LIKE_THE_IMAGE']}, not for {machine}")
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    (install,) = (line.partition("python ")[2].split() for line in steps("RUN") if "pip install" in line)
    subprocess.run([str(python), *install[:-1], str(LOCK)], check=True)
    subprocess.run([str(python), "-m", "pip", "check"], check=True)
    environment = build(tmp_path / "image", python)
    compiling = steps("RUN")[-1].replace("/srv/raysight", environment["PYTHONPATH"])
    subprocess.run(["bash", "-c", compiling], env=environment, cwd=tmp_path, check=True)
    photographs = [str(path) for path in photograph_paths.values()]
    command = ["raysight", "embed", "--model", "test_vit", "--weights", "random:0", *photographs]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, check=True)
    assert len(json.loads(done.stdout)["images"]) == len(photographs)


def test_baked_weights_are_a_checkpoint_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    import timm

    spec = importlib.util.spec_from_file_location("bake", ROOT / "deploy" / "bake.py")
    assert spec is not None
    assert spec.loader is not None
    bake = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bake)
    made = timm.create_model("test_vit")
    asked: list[object] = []
    monkeypatch.setattr(timm, "create_model", lambda name, *, pretrained: asked.append((name, pretrained)) or made)
    bake.bake("test_vit", str(tmp_path / "model.safetensors"))
    assert asked == [("test_vit", True)]
    saved = load_file(tmp_path / "model.safetensors")
    assert saved.keys() == made.state_dict().keys()
    assert all((saved[key] == value).all() for key, value in made.state_dict().items())
