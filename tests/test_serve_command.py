"""What ``raysight serve`` refuses before anything is started, and how it waits at the end."""

from __future__ import annotations

import hashlib
import socket
from typing import TYPE_CHECKING, Any

import pytest

from serve.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")

MODEL = ("--model", "test_vit", "--weights", "random:0")


@pytest.fixture
def refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[int, str]]:
    """Exit code and message of the command with these options and lines of ``[serve]``; Ray must not start."""
    import ray

    def start(*_: object, **__: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(ray, "init", start)

    def run(*options: str, settings: str = "") -> tuple[int, str]:
        (tmp_path / "raysight.toml").write_text(f"[serve]\n{settings}\n")
        code = main(["serve", "--config", str(tmp_path / "raysight.toml"), *MODEL, *options])
        return code, capsys.readouterr().err

    return run


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_without_keys_no_address_but_a_loopback_one_is_listened_on(
    refused: Callable[..., tuple[int, str]], host: str
) -> None:
    code, message = refused("--host", host)
    assert code == 2
    assert "can be reached from other machines: give --api-keys" in message


def test_a_key_file_is_read_before_anything_starts(refused: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("a key as it is\n")
    code, message = refused("--host", "0.0.0.0", "--api-keys", str(tmp_path / "keys"))
    assert code == 2
    assert "line 1: not a SHA-256" in message
    assert "a key as it is" not in message


def test_a_port_in_use_is_told(refused: Callable[..., tuple[int, str]]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code, message = refused("--port", str(port))
    assert (code, message) == (2, f"raysight: cannot listen on 127.0.0.1:{port}: Address already in use\n")


def test_an_address_of_another_machine_is_told(refused: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(hashlib.sha256(b"key").hexdigest())
    code, message = refused("--host", "192.0.2.1", "--api-keys", str(tmp_path / "keys"))
    assert code == 2
    assert "cannot listen on 192.0.2.1:8000: Cannot assign requested address" in message


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ("min_replicas = 3\nmax_replicas = 2", "min_replicas 3 is more than max_replicas 2"),
        ("cpus_per_replica = 100000", "1 replica(s) want 100000 CPUs, and this machine has"),
        ("gpus_per_replica = 100000", "1 replica(s) want 100000 GPUs, and this machine has"),
    ],
)
def test_replicas_that_serve_would_wait_for_without_end_are_refused(
    refused: Callable[..., tuple[int, str]], settings: str, problem: str
) -> None:
    code, message = refused("--port", str(free_port()), settings=settings)
    assert code == 2
    assert problem in message


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


class Handle:
    """Of a deployment: what its replicas answer to each round of ``drain``, or what the round raises."""

    def __init__(self, *rounds: list[int] | Exception) -> None:
        self._rounds = list(rounds)
        self.asked: list[str] = []

    def broadcast(self, method: str) -> Handle:
        self.asked.append(method)
        return self

    def results(self, *, timeout_s: float) -> list[int]:
        assert timeout_s > 0
        answer = self._rounds.pop(0) if len(self._rounds) > 1 else self._rounds[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def drain(handle: Any, grace_s: float) -> int:
    from serve.deployment import drain

    return drain(handle, grace_s)


def test_the_end_waits_until_no_replica_has_a_request() -> None:
    handle = Handle([2, 1], [0, 1], [0, 0])
    assert drain(handle, grace_s=60) == 0
    assert handle.asked == ["drain"] * 3


def test_the_wait_ends_with_the_grace_and_tells_how_many_requests_are_left() -> None:
    assert drain(Handle([2, 1]), grace_s=0) == 3


def test_a_replica_that_dies_or_hangs_meanwhile_does_not_end_the_wait_for_the_others() -> None:
    from ray.exceptions import ActorDiedError

    assert drain(Handle([1, 1], ActorDiedError(), TimeoutError(), [1], [0]), grace_s=60) == 0
    assert drain(Handle([1, 1], TimeoutError()), grace_s=0.3) == 2


def test_no_request_is_left_where_no_replica_is() -> None:
    from ray.serve._private.common import DeploymentID
    from ray.serve.exceptions import DeploymentUnavailableError

    assert drain(Handle([1], DeploymentUnavailableError(DeploymentID("endpoint"))), grace_s=60) == 0
