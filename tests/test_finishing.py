"""What a Ray task does for a shard, without Ray."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.config import Config
from pipeline.finishing import finish_shard

if TYPE_CHECKING:
    from pathlib import Path


def test_the_task_is_given_the_dataset_and_its_requests_are_counted(tmp_path: Path) -> None:
    config = Config(("/photos",), str(tmp_path / "out"))
    assert finish_shard(config, {}, 3, lambda dest: dest.put("a", b"1")) == (3, {"put": 1})
    assert (tmp_path / "out/a").read_bytes() == b"1"
