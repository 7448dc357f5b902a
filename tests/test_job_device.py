"""The job on a real local Ray: a device that is lost, and decoding away from the device; what its workers log then."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import jobs
import psutil
import pytest
from PIL import Image
from stubs import POISON

from pipeline.config import ImageLimits, ModelConfig
from pipeline.extractor import load_extractor

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Where Ray keeps its logs. Its sockets lie there too, so that the name must be short."""
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def check_log(folder: Path, dest: Path, logger: str, message: str) -> None:
    """Workers wrote this message as JSON, in lines that name the run and the dataset."""
    (log,) = dest.glob("_raysight/run-*.json")
    text = "\n".join(path.read_text() for path in folder.glob("ray/session_latest/logs/worker-*.err"))
    lines = [json.loads(line) for line in text.splitlines() if line.startswith('{"')]
    found = {(line["run"], line["dataset"]) for line in lines if (line["logger"], line["message"]) == (logger, message)}
    assert found == {(log.stem.removeprefix("run-"), str(dest))}, text


def test_an_actor_that_loses_its_device_says_so_in_json_is_replaced_and_every_image_has_one_row(
    tmp_path: Path, photographs: Mapping[str, bytes], ray_folder: Path
) -> None:
    source, dest, lost = tmp_path / "photos", tmp_path / "out", tmp_path / "lost"
    lost.mkdir()
    paths = jobs.write_corpus(source, photographs, 40)
    code, output = jobs.run(
        "extract", source, dest, *jobs.MODEL, "--batch-size", "2", "--max-actors", "1",
        settings={"factory": "failing", "job": {"chunk_rows": 8, "log_format": "json"}},
        env={"TEST_LOST_DEVICES": str(lost), "RAY_TMPDIR": str(ray_folder)},
    )  # fmt: skip
    assert code == 0, output
    workers = {int(path.name) for path in lost.iterdir()}
    assert len(workers) == 2  # the first, and the one in its place
    assert not any(psutil.pid_exists(pid) for pid in workers)
    assert jobs.last_line(output)["rows"] == 40
    assert jobs.rejects(dest) == {}
    check_log(ray_folder, dest, "pipeline.worker", "device error; ending this worker")
    jobs.assert_same(jobs.features(dest), alone(paths))


def alone(paths: Sequence[Path]) -> dict[str, NDArray[np.float32]]:
    """The vector of each image, one by one, without Ray."""
    extractor = load_extractor(ModelConfig("test_vit", "random:0", precision="fp32"), ImageLimits())
    pixels = {str(path): extractor.prepare(path.read_bytes()).pixels for path in paths}
    return {name: extractor.forward([image])["embedding"][0] for name, image in pixels.items()}


def test_tasks_that_decode_give_the_same_rows_and_rejects_survive_a_poison_image_and_log_in_json(
    tmp_path: Path, photographs: Mapping[str, bytes], ray_folder: Path
) -> None:
    source, dest = tmp_path / "photos", tmp_path / "out"
    paths = jobs.write_corpus(source, photographs, 40)
    broken, poison = source / "broken.jpg", source / "poison.jpg"
    broken.write_bytes(b"no image")
    Image.new("RGB", (64, 64), "red").save(poison, "JPEG", comment=POISON)
    code, output = jobs.run(
        "extract", source, dest, *jobs.MODEL, "--decode", "tasks",
        settings={"factory": "poisoned", "job": {"chunk_rows": 8, "log_format": "json"}},
        env={"RAY_TMPDIR": str(ray_folder)},
    )  # fmt: skip
    assert code == 0, output
    verdicts = {uri: (stage, error) for uri, (stage, error, _) in jobs.rejects(dest).items()}
    assert verdicts == {str(broken): ("decode", "NotAnImage"), str(poison): ("decode", "WorkerDied")}
    jobs.assert_same(jobs.features(dest), alone(paths))
    (run,) = dest.glob("_raysight/run-*.json")
    figures = json.loads(run.read_text())
    assert figures["budget"]["cpus_per_read"] >= 0.5  # a task had a core, or half of the only one
    check_log(ray_folder, dest, "somebody", "decoding")
