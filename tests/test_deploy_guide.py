"""deploy/README.md: each command says what stands behind it, which is so; those that need no cluster are run here."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import guide
import jsonschema
import pytest
import yaml
from guide import LABEL, README, commands
from manifests import ROOT, closed_schema, cluster, one, pods, render, settings_file, toml_path


def test_every_command_is_labelled_with_what_stands_behind_it() -> None:
    assert len(commands()) > 10
    assert [label for label, _ in commands() if not LABEL.match(label)] == []
    assert [command for _, command in commands() if command.startswith("#")] == []


def test_the_test_that_a_label_names_runs_the_command_or_reads_the_file() -> None:
    for label, line in commands():
        match = LABEL.match(label)
        assert match is not None
        if match[1] == "unverified here":
            continue
        name = re.search(r"tests/test_\w+\.py", match[2])
        assert name is not None, line
        text = (ROOT / name[0]).read_text()
        starts = re.findall(r"""(?:guide\.command|dry_run)\(\s*["']([^"']+)""", text)
        run = any(line.startswith(start) for start in starts)
        read = match[1] == "validated" and f'"{Path(line.split()[-1]).name}"' in text
        assert run or read, line


def test_the_guide_builds_the_image_that_the_settings_name() -> None:
    images = re.findall(r"registry\.example\.com/[\w./:-]+[\w]", README)
    assert len(images) == 2
    assert set(images) == {settings_file("gpu")["image"]}


def run(command: list[str], folder: Path = ROOT, **environment: str) -> str:
    """What a command prints, with the virtual environment's programs at hand."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY")}
    env = {**inherited, "PATH": path, **environment}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout


def dry_run(start: str, folder: Path = ROOT, **environment: str) -> dict[str, Any]:
    """What ``kubectl create`` would send."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not on this machine")
    command = guide.command(start)
    command[-1] += " --dry-run=client --output yaml"
    made: dict[str, Any] = yaml.safe_load(run(command, folder, **environment))
    return made


def test_the_settings_can_be_looked_at_before_anything_is_applied() -> None:
    said = run(guide.command("raysight config --config deploy/kubernetes/settings/gpu/raysight.toml"))
    source = "deploy/kubernetes/settings/gpu/raysight.toml"
    assert re.search(rf"^job\.gpus_per_actor +1(\.0)? .*{source}$", said, re.MULTILINE)


def test_the_overlay_can_be_looked_at_before_it_is_applied() -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl, which renders the overlays, is not on this machine")
    said = run(guide.command("kubectl kustomize deploy/kubernetes/overlays/gpu"))
    assert list(yaml.safe_load_all(said)) == render("gpu")


def test_parts_that_are_applied_are_parts_of_the_overlay() -> None:
    parts = {item["metadata"]["labels"]["app.kubernetes.io/component"] for item in render("gpu")}
    chosen = re.findall(r"-l 'app.kubernetes.io/component in \(([^)]+)\)'", README)
    assert len(chosen) == 3
    assert {part.strip() for choice in chosen for part in choice.split(",")} == parts


def test_commands_speak_of_the_namespace_that_is_made_and_of_prometheus_own() -> None:
    made = dry_run("kubectl create namespace")["metadata"]["name"]
    named = {name for _, line in commands() for name in re.findall(r"kubectl -n (\S+)", line)}
    assert named == {made, settings_file("gpu")["monitoring_namespace"]}


def test_the_secret_of_the_keys_is_the_one_that_pods_mount_and_the_settings_read(tmp_path: Path) -> None:
    made = dry_run("printf %s", tmp_path, KEY="a key")
    path = Path(tomllib.loads(toml_path("gpu").read_text())["serve"]["api_keys"])
    assert made["data"].keys() == {path.name}
    for _, template in pods(one(render("gpu"), "RayService")):
        names = {volume.get("secret", {}).get("secretName") for volume in template["spec"]["volumes"]}
        assert made["metadata"]["name"] in names


def test_the_secret_of_redis_is_the_one_that_the_endpoint_names() -> None:
    made = dry_run("kubectl -n raysight create secret generic raysight-redis", REDIS_PASSWORD="a word")
    options = cluster(one(render("gpu"), "RayService"))["gcsFaultToleranceOptions"]
    reference = options["redisPassword"]["valueFrom"]["secretKeyRef"]
    assert (reference["name"], {reference["key"]}) == (made["metadata"]["name"], set(made["data"]))


def test_the_dashboards_fit_into_a_config_map_that_gets_the_label() -> None:
    made = dry_run("kubectl -n monitoring create configmap")
    assert made["data"].keys() == {"endpoint.json", "job.json"}
    assert sum(map(len, made["data"].values())) < 1 << 20
    assert len([line for _, line in commands() if f"label configmap {made['metadata']['name']} " in line]) == 1


def test_the_patch_that_suspends_a_job_is_one_that_kuberay_knows() -> None:
    *_, name, _, kind, _, patch = shlex.split(guide.command("kubectl -n raysight patch rayjob")[-1])
    job = one(render("gpu"), "RayJob")
    assert (name, kind) == (job["metadata"]["name"], "merge")
    job["spec"].update(json.loads(patch)["spec"])
    jsonschema.Draft202012Validator(closed_schema("RayJob")).validate(job)


def test_ray_makes_the_token_that_the_launcher_copies(tmp_path: Path) -> None:
    run(guide.command("ray get-auth-token --generate"), tmp_path, HOME=str(tmp_path))
    mounts = yaml.safe_load((ROOT / "deploy" / "cluster.yaml").read_text())["file_mounts"]
    (token,) = (source for source in mounts.values() if "token" in source)
    assert len((tmp_path / Path(token).relative_to("~")).read_text()) >= 32
