"""The rendered Kubernetes manifests, and the strict schemas they are held against."""

from __future__ import annotations

import copy
import functools
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator

Manifest = dict[str, Any]

ROOT = Path(__file__).parents[1]
KUBERNETES = ROOT / "deploy" / "kubernetes"
CRDS = ROOT.parent / "shared" / "crds"
"""KubeRay's CRDs, beside the checkout; they are not in it."""

OVERLAYS = ("gpu", "cpu", "spot")
SETTINGS = {"gpu": "gpu", "cpu": "cpu", "spot": "gpu"}
"""Overlay → the folder of settings that it reads."""

CLUSTER = {
    "RayCluster": ("spec",),
    "RayJob": ("spec", "rayClusterSpec"),
    "RayService": ("spec", "rayClusterConfig"),
    "RayCronJob": ("spec", "jobTemplate", "rayClusterSpec"),
}
"""Kind → where its cluster stands."""


def render(overlay: str) -> list[Manifest]:
    """What ``kubectl apply -k`` would send."""
    return copy.deepcopy(_rendered(overlay))


@functools.cache
def _rendered(overlay: str) -> list[Manifest]:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl, which renders the overlays, is not on this machine")
    command = [kubectl, "kustomize", str(KUBERNETES / "overlays" / overlay)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "kustomize warns"
    return list(yaml.safe_load_all(done.stdout))


def one(manifests: list[Manifest], kind: str, name: str | None = None) -> Manifest:
    """The only manifest of a kind, or the one of a name."""
    (found,) = (item for item in manifests if item["kind"] == kind and name in (None, item["metadata"]["name"]))
    return found


def cluster(manifest: Manifest) -> Manifest:
    """The RayClusterSpec inside one of Ray's kinds."""
    for name in CLUSTER[manifest["kind"]]:
        manifest = manifest[name]
    return manifest


def pods(manifest: Manifest) -> Iterator[tuple[str, Manifest]]:
    """(role, pod template) of one of Ray's kinds; roles are head, worker and submitter."""
    spec = cluster(manifest)
    yield "head", spec["headGroupSpec"]["template"]
    for group in spec["workerGroupSpecs"]:
        yield "worker", group["template"]
    job = {"RayJob": manifest["spec"], "RayCronJob": manifest["spec"].get("jobTemplate")}.get(manifest["kind"])
    if job:
        yield "submitter", job["submitterPodTemplate"]


def settings_file(overlay: str) -> dict[str, str]:
    """``settings.env``, as plain lines of key=value."""
    text = (KUBERNETES / "settings" / SETTINGS[overlay] / "settings.env").read_text()
    pairs = (line.split("=", 1) for line in text.splitlines() if line and not line.startswith("#"))
    return dict(pairs)


def toml_path(overlay: str) -> Path:
    """The TOML file that the overlay's ConfigMap is made from."""
    return KUBERNETES / "settings" / SETTINGS[overlay] / "raysight.toml"


@functools.cache
def closed_schema(kind: str) -> Manifest:
    """KubeRay's schema of a kind, such that keys that it does not name are errors."""
    path = CRDS / f"ray.io_{kind.lower()}s.yaml"
    if not path.is_file():
        pytest.skip("KubeRay's CRDs are not beside this checkout (../shared/crds)")
    document = yaml.load(path.read_text(), yaml.CSafeLoader)  # megabytes; the loader in C is ten times as fast
    (schema,) = (item["schema"]["openAPIV3Schema"] for item in document["spec"]["versions"] if item["name"] == "v1")
    return _closed(schema)


def _closed(node: Any) -> Any:
    if isinstance(node, list):
        return [_closed(item) for item in node]
    if not isinstance(node, dict):
        return node
    closed = {key: _closed(value) for key, value in node.items()}
    named = isinstance(node.get("properties"), dict) and node.get("type") == "object"
    if named and "additionalProperties" not in node and not node.get("x-kubernetes-preserve-unknown-fields"):
        closed["additionalProperties"] = False
    return closed
