"""What the manifests say is what the code does: commands, paths, ports, sizes, and the rules of KubeRay itself."""

from __future__ import annotations

import argparse
import importlib
import inspect
import ipaddress
import re
import shlex
import tomllib
from typing import TYPE_CHECKING, Any

import pytest
import ray._private.ray_constants
import ray.dashboard.modules.job.job_supervisor
import yaml
from manifests import (
    CLUSTER,
    KUBERNETES,
    OVERLAYS,
    Manifest,
    cluster,
    one,
    pods,
    render,
    settings_file,
    toml_path,
)
from test_deploy_image import copies

from pipeline.budget import make_budget
from pipeline.cluster import Node
from pipeline.settings import resolve
from serve.cli import build_parser
from serve.ingress import ENVIRONMENT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pipeline.sections import Settings

RAY_PORTS = {"gcs-server": 6379, "dashboard": 8265, "client": 10001, "metrics": 8080, "serve": 8000}
"""KubeRay finds a head's ports by these names."""

DRAIN = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"

STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"

PARTS = {"shared", "batch", "nightly", "online"}


def ray_kinds(overlay: str) -> list[Manifest]:
    return [item for item in render(overlay) if item["kind"] in CLUSTER]


def settings(overlay: str) -> Settings:
    return resolve(argparse.Namespace(config=str(toml_path(overlay))), {}).settings


def containers(overlay: str) -> Iterator[tuple[str, Manifest, Manifest]]:
    for manifest in ray_kinds(overlay):
        for role, template in pods(manifest):
            for container in template["spec"]["containers"]:
                yield role, template, container


def bytes_of(quantity: str) -> int:
    number, unit = re.fullmatch(r"(\d+)([MG]i)", quantity).groups()  # type: ignore[union-attr]
    return int(number) << {"Mi": 20, "Gi": 30}[unit]


def worker_nodes(overlay: str) -> list[Node]:
    """The nodes of a fully grown cluster; Ray sets 70 % of a pod's memory aside for workers."""
    nodes = []
    group = cluster(one(render(overlay), "RayJob"))["workerGroupSpecs"][0]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    node = Node(float(limits["cpu"]), float(limits.get("nvidia.com/gpu", 0)), 0.7 * bytes_of(limits["memory"]))
    nodes += [node] * group["maxReplicas"]
    return nodes


# One source of truth


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_config_map_holds_the_very_file_that_the_command_line_reads(overlay: str) -> None:
    config = next(item for item in render(overlay) if item["kind"] == "ConfigMap")
    assert config["data"] == {"raysight.toml": toml_path(overlay).read_text()}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_mount_that_config_map_and_find_the_file_where_the_environment_says(overlay: str) -> None:
    config = next(item for item in render(overlay) if item["kind"] == "ConfigMap")
    for role, template, container in containers(overlay):
        if role == "submitter":
            continue
        (path,) = (item["value"] for item in container["env"] if item["name"] == "RAYSIGHT_CONFIG")
        folder, _, name = path.rpartition("/")
        (volume,) = (item["name"] for item in container["volumeMounts"] if item["mountPath"] == folder)
        (source,) = (item["configMap"]["name"] for item in template["spec"]["volumes"] if item["name"] == volume)
        assert source == config["metadata"]["name"]
        assert name in config["data"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_rays_proxies_are_told_of_the_bound_on_bodies(overlay: str) -> None:
    for role, _, container in containers(overlay):
        if role != "submitter":
            assert ENVIRONMENT.items() <= {item["name"]: item.get("value") for item in container["env"]}.items()


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_settings_file_reaches_every_place_that_it_names(overlay: str) -> None:
    given, rendered = settings_file(overlay), render(overlay)
    assert {container["image"] for _, _, container in containers(overlay)} == {given["image"]}
    assert {cluster(item)["rayVersion"] for item in ray_kinds(overlay)} == {given["ray_version"]}
    groups = [group for item in ray_kinds(overlay) for group in cluster(item)["workerGroupSpecs"]]
    assert {group["maxReplicas"] for group in groups} == {int(given["max_workers"])}
    assert one(rendered, "ServiceAccount")["metadata"]["annotations"] == {"eks.amazonaws.com/role-arn": given["role"]}
    options = cluster(one(rendered, "RayService"))["gcsFaultToleranceOptions"]
    assert options["redisAddress"] == given["redis"]
    for policy, setting in (
        ("raysight-operator", "operator_namespace"),
        ("raysight-metrics", "monitoring_namespace"),
        ("raysight-endpoint", "gateway_namespace"),
    ):
        (peer, *_) = one(rendered, "NetworkPolicy", policy)["spec"]["ingress"][0]["from"]
        assert peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"] == given[setting]


def test_the_settings_of_both_devices_differ_where_the_device_does_and_nowhere_else() -> None:
    gpu, cpu = (tomllib.loads(toml_path(overlay).read_text()) for overlay in ("gpu", "cpu"))
    differences = {
        f"{section}.{key}" for section in gpu for key in gpu[section] if gpu[section][key] != cpu[section].get(key)
    }
    assert gpu.keys() == cpu.keys()
    assert differences == {"job.gpus_per_actor", "serve.gpus_per_replica"}
    environments = settings_file("gpu"), settings_file("cpu")
    assert {key for key in environments[0] if environments[0][key] != environments[1][key]} == {"image"}


# The job


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("kind", ["RayJob", "RayCronJob"])
def test_the_entrypoint_is_a_command_that_raysight_knows(overlay: str, kind: str) -> None:
    spec = one(render(overlay), kind)["spec"]
    words = shlex.split(spec.get("jobTemplate", spec)["entrypoint"])
    given = settings_file(overlay)
    assert words[0] == "raysight"
    options = build_parser().parse_args(words[1:])
    assert (options.sources, options.dest) == ([given["source"]], given["dest"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_entrypoint_means_the_same_to_the_shell_of_the_submitter(overlay: str) -> None:
    entrypoint = one(render(overlay), "RayJob")["spec"]["entrypoint"]
    assert re.fullmatch(r"[\w:/. -]+", entrypoint), "KubeRay puts it into a shell script as it is"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_nightly_job_is_the_job_itself(overlay: str) -> None:
    rendered = render(overlay)
    assert one(rendered, "RayCronJob")["spec"]["jobTemplate"] == one(rendered, "RayJob")["spec"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_actor_fits_each_worker_and_all_actors_the_grown_cluster(overlay: str) -> None:
    nodes = worker_nodes(overlay)
    budget = make_budget(settings(overlay).job, nodes, can_grow=False)
    assert budget.notes == ()
    assert budget.max_actors == len(nodes)
    assert budget.cpus_per_actor == nodes[0].cpus
    assert budget.gpus_per_actor == nodes[0].gpus


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_job_on_a_cluster_without_workers_yet_waits_for_them(overlay: str) -> None:
    head = Node(0.0, 0.0, float(8 << 30))
    budget = make_budget(settings(overlay).job, [head], can_grow=True)
    assert budget.notes == ("no node can hold an actor yet: waiting for the cluster to grow",)
    assert budget.max_actors == int(settings_file(overlay)["max_workers"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_head_is_given_longer_than_the_job_takes_to_drain(overlay: str) -> None:
    head = cluster(one(render(overlay), "RayJob"))["headGroupSpec"]["template"]["spec"]
    assert head["terminationGracePeriodSeconds"] > settings(overlay).job.grace_s


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_head_ends_its_jobs_before_it_ends_by_a_script_of_the_image_that_outlasts_their_grace(overlay: str) -> None:
    for role, template, container in containers(overlay):
        if role != "head":
            assert "lifecycle" not in container
            continue
        interpreter, script, url, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
        assert interpreter == "python"
        assert ("deploy/end_jobs.py", script) in copies()
        assert url == f"http://127.0.0.1:{RAY_PORTS['dashboard']}"
        grace = template["spec"]["terminationGracePeriodSeconds"]
        assert settings(overlay).job.grace_s < float(seconds) < grace, "the kubelet kills when the grace is over"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_ray_job_stop_waits_for_longer_than_the_job_takes_to_drain(overlay: str) -> None:
    for role, _, container in containers(overlay):
        if role == "head":
            (seconds,) = (float(item["value"]) for item in container["env"] if item["name"] == STOP_WAIT)
            assert settings(overlay).job.grace_s < seconds


def test_ray_reads_how_long_to_wait_by_that_name() -> None:
    assert f'"{STOP_WAIT}"' in inspect.getsource(ray.dashboard.modules.job.job_supervisor)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_pod_drains_for_less_time_than_it_is_given_to_end(overlay: str) -> None:
    for role, template, container in containers(overlay):
        if role == "submitter":
            continue
        (drain,) = (float(item["value"]) for item in container["env"] if item["name"] == DRAIN)
        assert 0 < drain <= template["spec"]["terminationGracePeriodSeconds"] - 5


def test_ray_reads_how_long_to_drain_by_that_name() -> None:
    assert hasattr(ray._private.ray_constants, DRAIN)


# KubeRay's own rules, which its schemas do not hold


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_names_leave_room_for_what_kuberay_appends(overlay: str) -> None:
    limits = {"RayJob": 47, "RayService": 47, "RayCronJob": 35}  # a label value of 63, less suffixes
    for manifest in ray_kinds(overlay):
        name = manifest["metadata"]["name"]
        assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name)
        assert len(name) <= limits[manifest["kind"]]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_ray_runs_in_the_first_container_of_a_pod_that_is_not_restarted_in_place(overlay: str) -> None:
    for manifest in ray_kinds(overlay):
        for role, template in pods(manifest):
            assert template["spec"]["containers"][0]["name"] == {"submitter": "ray-job-submitter"}.get(role, "ray")
            assert template["spec"].get("restartPolicy", "Never") == "Never", "autoscaler v2 replaces pods itself"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_redis_stands_in_the_options_alone_and_its_password_in_a_secret(overlay: str) -> None:
    service = cluster(one(render(overlay), "RayService"))
    assert service["gcsFaultToleranceOptions"]["backend"] == "redis"
    assert service["gcsFaultToleranceOptions"]["redisPassword"].keys() == {"valueFrom"}
    for manifest in ray_kinds(overlay):
        assert not [key for key in cluster(manifest)["headGroupSpec"]["rayStartParams"] if key.startswith("redis")]
    names = {item["name"] for _, _, container in containers(overlay) for item in container.get("env", [])}
    assert not {name for name in names if "REDIS" in name}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_cluster_goes_away_with_its_job_and_tries_are_bounded(overlay: str) -> None:
    spec = one(render(overlay), "RayJob")["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert "deletionStrategy" not in spec, "it excludes shutdownAfterJobFinishes"
    assert spec["submissionMode"] == "K8sJobMode", "SidecarMode forbids submitterConfig"
    assert min(spec[key] for key in ("backoffLimit", "activeDeadlineSeconds", "preRunningDeadlineSeconds")) > 0


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_workers_scale_between_bounds_with_the_autoscaler_that_knows_priorities(overlay: str) -> None:
    for manifest in ray_kinds(overlay):
        spec = cluster(manifest)
        assert spec["enableInTreeAutoscaling"] is True
        assert spec["autoscalerOptions"]["version"] == "v2"
        groups = spec["workerGroupSpecs"]
        assert len({group["groupName"] for group in groups}) == len(groups)
        assert all(group["minReplicas"] <= group["replicas"] <= group["maxReplicas"] for group in groups)
        assert not any(group.get("suspend") for group in groups)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_tokens_guard_the_apis_with_a_ray_that_knows_them(overlay: str) -> None:
    for manifest in ray_kinds(overlay):
        spec = cluster(manifest)
        assert spec["authOptions"] == {"mode": "token"}
        assert tuple(map(int, spec["rayVersion"].split("."))) >= (2, 52, 0)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_endpoints_head_service_is_named_by_kuberay(overlay: str) -> None:
    service = one(render(overlay), "RayService")
    assert "headService" not in cluster(service)["headGroupSpec"]
    assert service["spec"]["upgradeStrategy"] == {"type": "NewCluster"}


def test_spot_workers_come_first_and_the_head_stays_on_demand() -> None:
    for manifest in ray_kinds("spot"):
        spec = cluster(manifest)
        key = "karpenter.sh/capacity-type"
        assert spec["headGroupSpec"]["template"]["spec"]["nodeSelector"][key] == "on-demand"
        kinds = [
            (group.get("priority", 0), group["template"]["spec"]["nodeSelector"][key])
            for group in spec["workerGroupSpecs"]
        ]
        assert sorted(kinds, reverse=True) == [(10, "spot"), (0, "on-demand")]


# Ports, labels and who may talk to whom


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_ports_have_the_names_that_kuberay_looks_for(overlay: str) -> None:
    for role, _, container in containers(overlay):
        ports = {item["name"]: item["containerPort"] for item in container.get("ports", [])}
        expected = {"head": RAY_PORTS, "submitter": {}}.get(
            role, {name: RAY_PORTS[name] for name in ("metrics", "serve")}
        )
        assert ports == expected


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_is_scraped_is_rays_port_of_every_node(overlay: str) -> None:
    spec = one(render(overlay), "PodMonitor")["spec"]
    (scraped,) = (item["port"] for item in spec["podMetricsEndpoints"])
    for role, template, container in containers(overlay):
        if spec["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items():
            assert {"name": scraped, "containerPort": RAY_PORTS["metrics"]} in container["ports"]
        else:
            assert role == "submitter"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_selector_selects_something(overlay: str) -> None:
    labels = [
        # KubeRay adds ray.io/node-type.
        {**template["metadata"]["labels"], "ray.io/node-type": role}
        for manifest in ray_kinds(overlay)
        for role, template in pods(manifest)
    ]
    chosen = {"NetworkPolicy": "podSelector", "PodDisruptionBudget": "selector", "PodMonitor": "selector"}
    for manifest in render(overlay):
        if manifest["kind"] in chosen:
            wanted = manifest["spec"][chosen[manifest["kind"]]]["matchLabels"].items()
            assert any(wanted <= pod.items() for pod in labels), manifest["metadata"]["name"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_parts_can_be_applied_by_label(overlay: str) -> None:
    parts = {item["metadata"]["labels"]["app.kubernetes.io/component"] for item in render(overlay)}
    assert parts == PARTS
    for manifest in ray_kinds(overlay):
        part = manifest["metadata"]["labels"]["app.kubernetes.io/component"]
        of_pods = {"nightly": "batch"}.get(part, part)
        for role, template in pods(manifest):
            if role != "submitter":
                assert template["metadata"]["labels"]["app.kubernetes.io/component"] == of_pods


def ingress_ports(rendered: list[Manifest]) -> dict[str, set[int]]:
    return {
        item["metadata"]["name"]: {port["port"] for rule in item["spec"]["ingress"] for port in rule.get("ports", [])}
        for item in rendered
        if item["kind"] == "NetworkPolicy" and item["spec"].get("ingress")
    }


def test_what_is_not_allowed_is_denied_and_the_dashboard_is_for_operator_and_submitter() -> None:
    rendered = render("gpu")
    deny = one(rendered, "NetworkPolicy", "raysight-deny-all")["spec"]
    assert deny == {
        "podSelector": {"matchLabels": {"app.kubernetes.io/name": "raysight"}},
        "policyTypes": ["Ingress", "Egress"],
    }
    assert ingress_ports(rendered) == {
        "raysight-ray": set(),  # all ports, between Ray's own pods
        "raysight-operator": {8265, 8000},
        "raysight-metrics": {8080},
        "raysight-endpoint": {8000},
    }


def test_a_pod_cannot_take_the_credentials_of_its_node() -> None:
    metadata = ipaddress.ip_address("169.254.169.254")
    blocks = [
        peer["ipBlock"]
        for item in render("gpu")
        if item["kind"] == "NetworkPolicy"
        for rule in item["spec"].get("egress", [])
        for peer in rule["to"]
        if "ipBlock" in peer
    ]
    assert blocks
    for block in blocks:
        inside = metadata in ipaddress.ip_network(block["cidr"])
        assert not inside or any(metadata in ipaddress.ip_network(net) for net in block.get("except", []))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_containers_have_no_more_rights_than_they_need(overlay: str) -> None:
    for role, template, container in containers(overlay):
        assert template["spec"]["securityContext"]["runAsNonRoot"] is True
        assert template["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert role == "submitter" or container["securityContext"]["readOnlyRootFilesystem"] is True
        assert role == "head" or template["spec"]["automountServiceAccountToken"] is False


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_secrets_are_named_and_not_written_down(overlay: str) -> None:
    rendered = render(overlay)
    assert not [item for item in rendered if item["kind"] == "Secret"]
    assert not re.search(r"AKIA|BEGIN [A-Z ]*PRIVATE|password: *[^\s{]", yaml.safe_dump(rendered))


# The endpoint

RAYS_OWN = pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20")


def serve_config() -> Any:
    return yaml.safe_load(one(render("gpu"), "RayService")["spec"]["serveConfigV2"])


@RAYS_OWN
def test_the_serve_config_is_one_that_serve_takes() -> None:
    from ray.serve.schema import ServeDeploySchema

    config = ServeDeploySchema.model_validate(serve_config())
    assert [item.name for item in config.applications] == ["raysight"]
    assert config.http_options.port == RAY_PORTS["serve"]
    assert config.http_options.host == "0.0.0.0"


@RAYS_OWN
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_import_path_builds_the_application_from_the_mounted_settings(
    overlay: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (application,) = serve_config()["applications"]
    module, _, name = application["import_path"].partition(":")
    keys = tmp_path / "api-keys"
    keys.write_text(f"{'0' * 64}\n")
    monkeypatch.setenv("RAYSIGHT_CONFIG", str(toml_path(overlay)))
    monkeypatch.setenv("RAYSIGHT_SERVE_API_KEYS", str(keys))  # the Secret is not mounted here
    built = getattr(importlib.import_module(module), name)(application["args"])
    deployment = built._bound_deployment
    expected = settings(overlay).serve
    assert deployment.ray_actor_options["num_gpus"] == expected.gpus_per_replica
    assert deployment.ray_actor_options["num_cpus"] == expected.cpus_per_replica


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_replica_fits_a_worker_and_all_replicas_the_grown_cluster(overlay: str) -> None:
    nodes, serve = worker_nodes(overlay), settings(overlay).serve
    assert serve.cpus_per_replica is not None
    assert serve.cpus_per_replica <= nodes[0].cpus
    assert serve.gpus_per_replica == nodes[0].gpus
    assert serve.max_replicas <= len(nodes)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_key_file_lies_in_the_mounted_secret(overlay: str) -> None:
    service = one(render(overlay), "RayService")
    path = settings(overlay).serve.api_keys
    assert path is not None
    for _, template in pods(service):
        (mount,) = (
            item
            for item in template["spec"]["containers"][0]["volumeMounts"]
            if item["mountPath"] == path.rpartition("/")[0]
        )
        (volume,) = (item for item in template["spec"]["volumes"] if item["name"] == mount["name"])
        assert volume["secret"]["secretName"] == "raysight-api-keys"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_timeouts_grow_outwards_so_that_the_innermost_answers(overlay: str) -> None:
    (ingress,) = yaml.safe_load_all((KUBERNETES / "examples" / "ingress.yaml").read_text())
    proxy = int(ingress["metadata"]["annotations"]["nginx.ingress.kubernetes.io/proxy-read-timeout"])
    serve = settings(overlay).serve
    assert serve.request_timeout_s < serve_config()["http_options"]["request_timeout_s"] < proxy
    size = ingress["metadata"]["annotations"]["nginx.ingress.kubernetes.io/proxy-body-size"]
    assert int(size.removesuffix("m")) << 20 == serve.max_body_bytes


def test_the_ingress_leads_to_the_service_that_kuberay_makes() -> None:
    (manifest,) = yaml.safe_load_all((KUBERNETES / "examples" / "ingress.yaml").read_text())
    (path,) = manifest["spec"]["rules"][0]["http"]["paths"]
    name = one(render("gpu"), "RayService")["metadata"]["name"]
    assert path["backend"]["service"] == {"name": f"{name}-serve-svc", "port": {"number": RAY_PORTS["serve"]}}


def test_the_gateway_leads_where_the_ingress_does() -> None:
    (ingress,) = yaml.safe_load_all((KUBERNETES / "examples" / "ingress.yaml").read_text())
    _, route = yaml.safe_load_all((KUBERNETES / "examples" / "gateway.yaml").read_text())
    (rule,) = route["spec"]["rules"]
    (there,) = ingress["spec"]["rules"]
    (path,) = there["http"]["paths"]
    assert route["spec"]["hostnames"] == [there["host"]]
    assert rule["matches"] == [{"path": {"type": "PathPrefix", "value": path["path"]}}]
    service = path["backend"]["service"]
    assert rule["backendRefs"] == [{"name": service["name"], "port": service["port"]["number"]}]
    assert int(rule["timeouts"]["request"].removesuffix("s")) > serve_config()["http_options"]["request_timeout_s"]
