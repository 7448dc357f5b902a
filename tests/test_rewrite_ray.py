"""Shards rewritten by Ray's tasks: what fails or dies in one is done again, and what cannot be done ends the job."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import pytest
import trouble
from shards import Sealed

from pipeline.budget import make_budget
from pipeline.cluster import Node, local_ray
from pipeline.config import Config, JobConfig, ModelConfig
from pipeline.errors import RaysightError
from pipeline.local import LocalStore
from pipeline.retire import retire_rows, unapplied

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pipeline.rayworkers import RayWorkers

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")]


@pytest.fixture(scope="module")
def ray_on_two_cpus() -> Iterator[None]:
    with local_ray(2):
        from ray import cloudpickle

        cloudpickle.register_pickle_by_value(trouble)  # Ray's workers do not find the helpers beside the tests
        yield
        cloudpickle.unregister_pickle_by_value(trouble)


@pytest.fixture
def dataset(tmp_path: Path) -> Sealed:
    """A row of the features and one of the rejects are to leave."""
    made = Sealed.make(LocalStore(str(tmp_path / "out")))
    made.retire(0, 1)
    return made


@pytest.fixture
def workers(ray_on_two_cpus: None, tmp_path: Path) -> RayWorkers:
    from datasets import FINGERPRINT

    from pipeline.rayworkers import RayWorkers
    from pipeline.worker import JobSpec

    config = Config(("/nowhere",), str(tmp_path / "out"), model=ModelConfig(), job=JobConfig(max_actors=1))
    budget = make_budget(config.job, [Node(2, 0, 8 << 30)], can_grow=False)

    def factory() -> None:
        raise AssertionError("nothing is extracted here")

    return RayWorkers(JobSpec(config, budget, FINGERPRINT, factory))  # type: ignore[arg-type]


def rewrite(workers: RayWorkers, dataset: Sealed, what: str, marker: Path) -> list[int]:
    """What the run does; in the worker there is trouble when the new rejects are there and the features are not."""
    (part,) = dataset.manifest.last.retired
    rewriting = functools.partial(retire_rows, generation=dataset.manifest.last.number, part=part)
    workers.submit(
        0, functools.partial(trouble.retire_with_trouble, task=rewriting, trouble=what, marker=marker), cpus=1
    )
    return list(workers.done(wait=True))


@pytest.mark.parametrize("what", ["the store fails once", "the process dies once"])
def test_what_goes_wrong_once_between_rejects_and_features_is_done_again(
    workers: RayWorkers, dataset: Sealed, tmp_path: Path, what: str
) -> None:
    assert rewrite(workers, dataset, what, tmp_path / "trouble") == [0]
    assert (tmp_path / "trouble").exists()
    dataset.assert_holds(tmp_path, [2, 3, 4, 5, 6, 7])


def test_a_store_that_stays_down_ends_the_job_and_the_next_one_finishes(
    workers: RayWorkers, dataset: Sealed, tmp_path: Path
) -> None:
    with pytest.raises(RaysightError, match="the store is down"):
        rewrite(workers, dataset, "the store fails", tmp_path / "trouble")
    assert [part.shard for part in unapplied(dataset.dest, dataset.manifest)] == [0]
    assert rewrite(workers, dataset, "none", tmp_path / "trouble") == [0]
    dataset.assert_holds(tmp_path, [2, 3, 4, 5, 6, 7])
