"""deploy/cluster.yaml: what Ray's launcher takes, and the same sizes and settings as the manifests."""

from __future__ import annotations

import argparse
import re
from typing import Any

import jsonschema
import pytest
import yaml
from manifests import ROOT, settings_file, toml_path
from ray.autoscaler._private.util import prepare_config, validate_config

from pipeline.budget import make_budget
from pipeline.cluster import Node
from pipeline.settings import resolve
from serve.ingress import ENVIRONMENT


def launcher() -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "cluster.yaml").read_text())
    return config


def test_the_launcher_takes_it() -> None:
    validate_config(prepare_config(launcher()))


@pytest.mark.parametrize("place", [(), ("docker",), ("available_node_types", "worker")])
def test_a_misspelt_key_is_found(place: tuple[str, ...]) -> None:
    config = launcher()
    node = config
    for step in place:
        node = node[step]
    node["min_worker"] = 1
    with pytest.raises(jsonschema.ValidationError, match="min_worker"):
        validate_config(prepare_config(config))


def test_image_and_number_of_workers_are_those_of_the_manifests() -> None:
    config, given = launcher(), settings_file("gpu")
    assert config["docker"]["image"] == given["image"]
    worker = config["available_node_types"]["worker"]
    assert config["max_workers"] == worker["max_workers"] == int(given["max_workers"])


def test_nodes_run_with_the_settings_that_the_manifests_use() -> None:
    config = launcher()
    mounted = config["file_mounts"]["~/raysight.toml"]
    assert ROOT / mounted == toml_path("gpu")
    for role in ("head", "worker"):
        (start,) = (line for line in config[f"{role}_start_ray_commands"] if "ray start" in line)
        assert "RAYSIGHT_CONFIG=$HOME/raysight.toml" in start
        assert all(f"export {name}={value};" in start for name, value in ENVIRONMENT.items())


def test_ray_job_stop_waits_for_longer_than_the_job_takes_to_drain() -> None:
    (start,) = (line for line in launcher()["head_start_ray_commands"] if "ray start" in line)
    match = re.search(r"RAY_JOB_STOP_WAIT_TIME_S=(\d+)", start)
    assert match is not None
    assert float(match[1]) > resolve(argparse.Namespace(config=str(toml_path("gpu"))), {}).settings.job.grace_s


def test_an_actor_fits_a_worker() -> None:
    worker = launcher()["available_node_types"]["worker"]["resources"]
    node = Node(worker["CPU"], worker["GPU"], 0.7 * 32 * 2**30)  # a g6.2xlarge has 32 GiB
    job = resolve(argparse.Namespace(config=str(toml_path("gpu"))), {}).settings.job
    budget = make_budget(job, [node] * job.max_actors if job.max_actors else [], can_grow=False)
    assert (budget.notes, budget.max_actors) == ((), launcher()["max_workers"])


def test_nobody_from_outside_reaches_the_dashboard() -> None:
    config = launcher()
    (start,) = (line for line in config["head_start_ray_commands"] if "ray start" in line)
    assert "--dashboard-host=127.0.0.1" in start
    for role in ("head", "worker"):
        assert any("RAY_AUTH_MODE=token" in line for line in config[f"{role}_start_ray_commands"])
    assert "~/.ray/auth_token" in config["file_mounts"]


def test_workers_are_spot_machines_and_the_head_is_not() -> None:
    types = launcher()["available_node_types"]
    assert types["worker"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in types[launcher()["head_node_type"]]["node_config"]
