"""However a run ends, what it did is on record; secrets are not."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from world import World

from pipeline.errors import InterruptedJobError, UnavailableError, UsageError
from pipeline.local import LocalStore
from pipeline.redact import redact

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Failing:
    """A store that fails to write an object whose name this says."""

    def __init__(self, store: LocalStore, fails: Callable[[str], bool]) -> None:
        self._store = store
        self._fails = fails

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._store, name)
        if name not in ("put", "put_file", "replace_file"):
            return value

        def call(key: str, *arguments: Any, **options: Any) -> Any:
            if self._fails(key):
                raise UnavailableError(f"https://host/{key}?sig=abc: answered 503")
            return value(key, *arguments, **options)

        return call


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path).fill(8)


def extract(world: World, fails: Callable[[str], bool]) -> None:
    world.extract(dest=Failing(LocalStore(str(world.dest)), fails))


def logs(world: World) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(world.dest.glob("_raysight/run-*.json"))]


def test_a_run_that_fails_is_on_record_with_what_it_did_and_its_error(world: World) -> None:
    with pytest.raises(UnavailableError):
        extract(world, lambda key: key == "_raysight/chunks/shard-000001/00000.parquet")
    (log,) = logs(world)
    assert log["outcome"] == "failed"
    assert log["error"] == {
        "class": "UnavailableError",
        "message": "https://host/_raysight/chunks/shard-000001/00000.parquet?***: answered 503",
    }
    assert (log["images"], log["chunks"], log["rows"]) == (8, 2, 4)


def test_a_failure_before_there_is_a_manifest_is_on_record(world: World) -> None:
    with pytest.raises(UnavailableError):
        extract(world, lambda key: key.startswith("_raysight/manifest/"))
    (log,) = logs(world)
    assert (log["outcome"], log["images"], log["rows"], log["sources"]) == ("failed", 0, 0, [])


def test_a_failure_of_a_rewrite_is_on_record_beside_the_run_that_makes_it_good(world: World) -> None:
    world.extract()
    for path in world.dest.glob("_raysight/run-*.json"):
        path.rename(path.with_name("run-before.json"))
    world.write(0, "0.png", b"10")
    rewrites: list[str] = []

    def fails(key: str) -> bool:
        rewrites.extend([key] if key == "features/shard-000000.parquet" else [])
        return bool(rewrites) and key == rewrites[0]

    with pytest.raises(UnavailableError):
        extract(world, fails)
    _, failed = sorted(logs(world), key=lambda log: log["outcome"] == "failed")
    assert (failed["outcome"], failed["rows"]) == ("failed", 1)
    world.extract()
    assert world.problems() == []


def test_a_run_stopped_while_it_lists_is_interrupted(world: World) -> None:
    def stop() -> None:
        raise InterruptedJobError("stopped")

    with pytest.raises(InterruptedJobError):
        world.extract(after_listing=stop)
    (log,) = logs(world)
    assert (log["outcome"], log["error"]["class"]) == ("interrupted", "InterruptedJobError")


def test_what_is_refused_before_it_did_anything_leaves_no_record(world: World) -> None:
    world.extract()
    for path in world.dest.glob("_raysight/run-*.json"):
        path.unlink()
    for path in world.sources[0].iterdir():
        path.unlink()
    with pytest.raises(UsageError, match="would drop every row"):
        world.extract(prune=True)
    assert logs(world) == []


def test_a_store_that_takes_nothing_any_more_hides_no_error(world: World) -> None:
    with pytest.raises(UnavailableError, match="_raysight/manifest/"):
        extract(world, lambda key: True)
    assert logs(world) == []


@pytest.mark.parametrize(
    ("message", "kept"),
    [
        ("https://user:pass@host/a.jpg: not found", "https://host/a.jpg: not found"),
        ("https://host/a.jpg?X-Amz-Signature=f00&x=1: HTTP 403", "https://host/a.jpg?***: HTTP 403"),
        ("no such file: '/run/secrets/hub-token'", "no such file: '***'"),
        ("InvalidAccessKeyId (AKIAABCDEFGHIJKLMNOP is not known)", "InvalidAccessKeyId (*** is not known)"),
        ("the header was hub-secret-value", "the header was ***"),
        ("s3://bucket/what?.jpg: not found", "s3://bucket/what?.jpg: not found"),
        ("s3://bucket/a token.jpg: not found", "s3://bucket/a token.jpg: not found"),
        ("x" * 600, "x" * 499 + "…"),
    ],
)
def test_a_message_is_kept_without_secrets_and_the_paths_of_their_files(message: str, kept: str) -> None:
    environment = {
        "HF_TOKEN": "hub-secret-value",
        "RAY_AUTH_TOKEN_PATH": "/run/secrets/hub-token",
        "RAY_AUTH_MODE": "token",
        "HOME": "/root",
    }
    assert redact(message, environment) == kept
