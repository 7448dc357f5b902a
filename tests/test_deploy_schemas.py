"""Every overlay renders, and what it renders is what the API server would take, down to the last key."""

from __future__ import annotations

import copy
from typing import Any

import jsonschema
import kubernetes_validate
import manifests
import pytest
import yaml
from manifests import CLUSTER, KUBERNETES, OVERLAYS, closed_schema, cluster, one, pods, render

CORE = {"ServiceAccount", "ConfigMap", "NetworkPolicy", "PodDisruptionBudget", "Ingress"}
KUBERNETES_VERSION = "1.37"

POD_MONITOR = {
    # Python has no schema of the Prometheus operator; these are the fields in use, as its API reference has them. They
    # were once held against npm's @kubernetes-models/prometheus-operator 6.0.0 (its types and its validation).
    "metadata": {"name", "labels"},
    "spec": {"selector", "podMetricsEndpoints"},
    "endpoint": {"port", "interval", "relabelings"},
    "relabeling": {"sourceLabels", "targetLabel"},
}

GATEWAY = {
    # Nor of the Gateway API: once held against @kubernetes-models/gateway-api 2.0.0.
    "Gateway": {"spec": {"gatewayClassName", "listeners"},
                "listeners": {"name", "protocol", "port", "hostname", "tls", "allowedRoutes"},
                "tls": {"mode", "certificateRefs"}, "certificateRefs": {"name"}, "allowedRoutes": {"namespaces"},
                "namespaces": {"from"}},
    "HTTPRoute": {"spec": {"parentRefs", "hostnames", "rules"}, "parentRefs": {"name", "sectionName"},
                  "rules": {"matches", "timeouts", "backendRefs"}, "matches": {"path"}, "path": {"type", "value"},
                  "timeouts": {"request"}, "backendRefs": {"name", "port"}},
}  # fmt: skip
"""Kind → key → the keys in use below it, as the API reference has them."""


def ray_kinds(overlay: str) -> list[manifests.Manifest]:
    return [item for item in render(overlay) if item["kind"] in CLUSTER]


def errors(manifest: manifests.Manifest) -> list[str]:
    validator = jsonschema.Draft202012Validator(closed_schema(manifest["kind"]))
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(manifest)]


def core(manifest: manifests.Manifest) -> None:
    kubernetes_validate.validate(manifest, KUBERNETES_VERSION, strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_renders_what_belongs_to_job_nightly_job_and_endpoint(overlay: str) -> None:
    found = {(item["kind"], item["metadata"]["name"]) for item in render(overlay)}
    assert {("RayJob", "raysight"), ("RayCronJob", "raysight-nightly"), ("RayService", "raysight")} <= found
    assert {kind for kind, _ in found} - set(CLUSTER) - CORE == {"PodMonitor"}
    assert not any("settings" in name or "template" in name for _, name in found), "scaffolding would be applied"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_rays_kinds_hold_no_key_that_kuberay_does_not_know(overlay: str) -> None:
    assert {item["metadata"]["name"]: errors(item) for item in ray_kinds(overlay) if errors(item)} == {}


@pytest.mark.parametrize("kind", ["RayJob", "RayService", "RayCronJob"])
@pytest.mark.parametrize(
    "place",
    [(), ("workerGroupSpecs", 0), ("headGroupSpec", "template", "spec", "containers", 0), ("autoscalerOptions",)],
)
def test_a_misspelt_key_is_found_wherever_it_stands(kind: str, place: tuple[str | int, ...]) -> None:
    manifest = one(render("gpu"), kind)
    node: Any = cluster(manifest)
    for step in place:
        node = node[step]
    node["minReplica"] = 1
    assert any("minReplica" in error for error in errors(manifest))


def test_a_misspelt_key_of_the_job_itself_is_found() -> None:
    manifest = one(render("gpu"), "RayJob")
    manifest["spec"]["shutdownAfterJobFinish"] = manifest["spec"].pop("shutdownAfterJobFinishes")
    assert any("shutdownAfterJobFinish'" in error for error in errors(manifest))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_core_kinds_pass_kubernetes_own_schema(overlay: str) -> None:
    checked = [item for item in render(overlay) if item["kind"] in CORE]
    assert {item["kind"] for item in checked} == CORE - {"Ingress"}
    for manifest in checked:
        core(manifest)


def test_the_ingress_example_passes_and_speaks_tls_alone_for_its_host() -> None:
    (manifest,) = yaml.safe_load_all((KUBERNETES / "examples" / "ingress.yaml").read_text())
    core(manifest)
    assert [item["hosts"] for item in manifest["spec"]["tls"]] == [[rule["host"] for rule in manifest["spec"]["rules"]]]


@pytest.mark.parametrize("kind", sorted(CORE - {"Ingress", "ServiceAccount", "ConfigMap"}))
def test_a_misspelt_key_of_a_core_kind_is_found(kind: str) -> None:
    manifest = copy.deepcopy(next(item for item in render("gpu") if item["kind"] == kind))
    manifest["spec"]["podSelektor"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        core(manifest)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_pass_kubernetes_own_schema_too(overlay: str) -> None:
    for manifest in ray_kinds(overlay):
        for role, template in pods(manifest):
            core({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": role, **template["metadata"]},
                  "spec": template["spec"]})  # fmt: skip


def test_the_pod_monitor_uses_known_fields_alone() -> None:
    monitor = one(render("gpu"), "PodMonitor")
    endpoints = monitor["spec"]["podMetricsEndpoints"]
    assert monitor["metadata"].keys() == POD_MONITOR["metadata"]
    assert monitor["spec"].keys() == POD_MONITOR["spec"]
    assert all(item.keys() == POD_MONITOR["endpoint"] for item in endpoints)
    assert all(rule.keys() == POD_MONITOR["relabeling"] for item in endpoints for rule in item["relabelings"])


def keys_below(node: Any, key: str = "spec") -> dict[str, set[str]]:
    """Key → the keys of the objects that stand below it, wherever that is."""
    found: dict[str, set[str]] = {}
    for item in node if isinstance(node, list) else [node]:
        if isinstance(item, dict):
            found.setdefault(key, set()).update(item)
            for name, below in item.items():
                for place, names in keys_below(below, name).items():
                    found.setdefault(place, set()).update(names)
    return found


def test_the_gateway_example_uses_known_fields_alone_and_speaks_tls_for_its_host() -> None:
    gateway, route = yaml.safe_load_all((KUBERNETES / "examples" / "gateway.yaml").read_text())
    for manifest in (gateway, route):
        assert manifest["apiVersion"] == "gateway.networking.k8s.io/v1"
        assert keys_below(manifest["spec"]) == GATEWAY[manifest["kind"]]
    (listener,) = gateway["spec"]["listeners"]
    assert (listener["protocol"], listener["tls"]["mode"]) == ("HTTPS", "Terminate")
    assert [listener["hostname"]] == route["spec"]["hostnames"]
    (parent,) = route["spec"]["parentRefs"]
    assert (parent["name"], parent["sectionName"]) == (gateway["metadata"]["name"], listener["name"])
