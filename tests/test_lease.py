from __future__ import annotations

import functools
import json
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pipeline import lease
from pipeline.config import StorageConfig
from pipeline.errors import UnavailableError, UsageError
from pipeline.lease import Lease
from pipeline.storage import open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from s3_server import Bucket

    from pipeline.storage import Store

KEY = "_raysight/lease.json"
LONG_S, SHORT_S = 600.0, 0.5

HOLDER = """
import socket, sys
from pipeline import lease
from pipeline.config import StorageConfig
from pipeline.lease import Lease
from pipeline.storage import open_store

lease._SETTLE_S = 0.0
url, ttl, host = sys.argv[1:]
if host:
    socket.gethostname = lambda: host
with Lease(open_store(url, StorageConfig()), float(ttl), print):
    print("held", flush=True)
    sys.stdin.read()
print("released", flush=True)
"""


@pytest.fixture
def hold() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """``hold(url, ttl_s, host="")`` starts a process that holds a lease until its standard input ends."""
    with ExitStack() as stack:
        yield functools.partial(start, stack)


def start(stack: ExitStack, url: str, ttl_s: float, host: str = "") -> subprocess.Popen[str]:
    process = stack.enter_context(
        subprocess.Popen(
            [sys.executable, "-c", HOLDER, url, str(ttl_s), host],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[1],
        )
    )
    stack.callback(process.kill)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The lease that a killed process of this machine has left behind."""
    folder = tmp_path_factory.mktemp("left")
    with ExitStack() as stack:
        process = start(stack, str(folder), LONG_S)
        process.send_signal(signal.SIGKILL)
        process.wait()
    held: dict[str, Any] = json.loads((folder / KEY).read_bytes())
    assert held["pid"] == process.pid
    return held


@pytest.fixture(autouse=True)
def alone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only those that race need the second in which both writes are done."""
    if "race" not in request.node.name:
        monkeypatch.setattr(lease, "_SETTLE_S", 0.0)


@pytest.fixture
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where to keep a dataset: a folder, unless the test is :data:`everywhere`."""
    where = getattr(request, "param", "folder")
    if where == "folder":
        return str(tmp_path / "dest")
    bucket: Bucket = request.getfixturevalue("bucket")
    bucket.server.set_faults(no_conditional_puts=where != "bucket")
    return f"{bucket.url}/dest"


everywhere = pytest.mark.parametrize("url", ["folder", "bucket", "bucket without conditional puts"], indirect=True)


@pytest.fixture
def dest(url: str) -> Store:
    return open_store(url, StorageConfig())


def put(dest: Store, held: dict[str, Any]) -> None:
    dest.put(KEY, json.dumps(held).encode())


@everywhere
def test_a_lease_is_there_while_it_is_held_and_gone_afterwards(dest: Store) -> None:
    with Lease(dest, LONG_S, print):
        assert [item.key for item in dest.list_objects("_raysight/")] == [KEY]
    assert list(dest.list_objects("_raysight/")) == []
    with Lease(dest, LONG_S, print):
        pass


def test_a_job_that_fails_gives_its_lease_back(dest: Store) -> None:
    with pytest.raises(ZeroDivisionError), Lease(dest, LONG_S, print):
        1 / 0  # noqa: B018
    with Lease(dest, LONG_S, print):
        pass


@everywhere
def test_a_living_job_on_this_machine_is_seen_at_once(
    url: str, dest: Store, hold: Callable[..., subprocess.Popen[str]]
) -> None:
    process = hold(url, LONG_S)
    with pytest.raises(UsageError, match=f"in use by another job .process {process.pid}"), Lease(dest, LONG_S, print):
        pass
    assert process.communicate("")[0] == "released\n"  # and was not disturbed
    with Lease(dest, LONG_S, print):
        pass


@everywhere
def test_a_killed_job_of_this_machine_is_replaced_without_a_wait(dest: Store, left: dict[str, Any]) -> None:
    put(dest, left)
    said: list[str] = []
    with Lease(dest, LONG_S, said.append):
        assert json.loads(dest.get(KEY))["pid"] != left["pid"]
    assert any(f"process {left['pid']} of this machine is gone" in line for line in said)


def test_a_process_that_only_has_the_number_of_the_dead_one_does_not_count(dest: Store, left: dict[str, Any]) -> None:
    put(dest, {**left, "pid": 1})  # process 1 lives, but started at another time
    with Lease(dest, LONG_S, print):
        pass


def test_a_process_that_is_dead_but_not_buried_does_not_count(dest: Store, left: dict[str, Any]) -> None:
    """Its number stays taken until its parent asks for its exit code; in a container that may be never."""
    zombie = subprocess.Popen(["true"])
    stat = Path(f"/proc/{zombie.pid}/stat")
    until(lambda: ") Z " in stat.read_text())
    started = stat.read_text().rpartition(")")[2].split()[19]
    put(dest, {**left, "pid": zombie.pid, "started": started})
    with Lease(dest, LONG_S, print):
        pass
    zombie.wait()


@pytest.mark.parametrize("part", [0, 1], ids=["another boot", "another container"])
def test_the_process_table_says_nothing_of_a_machine_that_only_has_the_same_name(
    dest: Store, left: dict[str, Any], part: int
) -> None:
    boot = left["boot"].split("/", 1)
    boot[part] = "another"
    put(dest, {**left, "boot": "/".join(boot)})
    said: list[str] = []
    with Lease(dest, SHORT_S, said.append):
        pass
    assert said[0].endswith("waiting 0.5 s for a heartbeat")


def test_a_lease_that_is_given_back_while_another_waits_is_taken_at_once(
    url: str, dest: Store, hold: Callable[..., subprocess.Popen[str]]
) -> None:
    process = hold(url, LONG_S, "elsewhere")
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        process.communicate("")  # ends, and so gives the lease back

    with Lease(dest, LONG_S, say):  # would else wait for ten minutes
        assert json.loads(dest.get(KEY))["host"] != "elsewhere"
    assert [line.partition(";")[2] for line in said] == [" waiting 600 s for a heartbeat"]


def test_a_living_job_elsewhere_is_told_by_its_heartbeat(
    url: str, dest: Store, hold: Callable[..., subprocess.Popen[str]]
) -> None:
    hold(url, SHORT_S, "elsewhere")
    # Waits for a beat as long as it takes: a slow machine must not be taken for a dead one here.
    with pytest.raises(UsageError, match=r"in use by another job .* on elsewhere"), Lease(dest, LONG_S, print):
        pass


@everywhere
def test_a_dead_job_elsewhere_is_replaced_once_its_heartbeat_has_stood_still(dest: Store, left: dict[str, Any]) -> None:
    put(dest, {**left, "host": "elsewhere"})
    said: list[str] = []
    start = time.monotonic()
    with Lease(dest, SHORT_S, said.append):
        assert time.monotonic() - start >= SHORT_S
    assert any("no heartbeat for 0.5 s: taking over from a dead job on elsewhere" in line for line in said)


def test_a_job_whose_lease_was_taken_is_told_and_leaves_it_to_the_taker(dest: Store) -> None:
    lost = threading.Event()
    said: list[str] = []
    with Lease(dest, SHORT_S, said.append, on_lost=lost.set):
        other = {"owner": "somebody else", "host": "elsewhere", "pid": 1}
        dest.put(KEY, json.dumps(other).encode())
        assert lost.wait(60)
    assert json.loads(dest.get(KEY)) == other
    assert any("taken over by another job" in line for line in said)


def test_a_lease_that_is_deleted_counts_as_lost(dest: Store) -> None:
    lost = threading.Event()
    with Lease(dest, SHORT_S, print, on_lost=lost.set):
        dest.delete([KEY])
        assert lost.wait(60)


@everywhere
def test_of_two_that_race_for_a_free_lease_one_wins(dest: Store) -> None:
    assert race(dest, 2) == 1


@everywhere
def test_of_two_that_race_for_a_dead_jobs_lease_one_wins(dest: Store, left: dict[str, Any]) -> None:
    put(dest, left)
    assert race(dest, 2) == 1


def race(dest: Store, runners: int) -> int:
    """How many of several threads hold the lease at the end, when all went for it at once."""
    start, finish = threading.Barrier(runners), threading.Barrier(runners)
    lost = [threading.Event() for _ in range(runners)]
    holding = [False] * runners
    refusals: list[str] = []

    def run(number: int) -> None:
        start.wait()
        try:
            with Lease(dest, SHORT_S, print, on_lost=lost[number].set):
                holding[number] = True
                finish.wait()
                until(lambda: len(refusals) + sum(event.is_set() for event in lost) == runners - 1)
        except UsageError as error:
            refusals.append(str(error))
            finish.wait()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(runners)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kept = sum(held and not event.is_set() for held, event in zip(holding, lost, strict=True))
    assert len(refusals) + sum(holding) == runners
    return kept


def test_a_missed_heartbeat_is_said_and_made_good(bucket: Bucket) -> None:
    dest = open_store(bucket.url, StorageConfig(max_retries=0))
    said: list[str] = []
    with Lease(dest, SHORT_S, said.append):
        bucket.server.set_faults(failing=True)
        until(lambda: any("could not be renewed" in line for line in said))
        bucket.server.set_faults()
        before = json.loads(bucket.get(KEY))["beat"]
        until(lambda: json.loads(bucket.get(KEY))["beat"] > before)
    assert bucket.keys() == []


def test_a_store_that_is_down_at_the_end_does_not_hide_the_error_of_the_job(bucket: Bucket) -> None:
    dest = open_store(bucket.url, StorageConfig(max_retries=0))
    said: list[str] = []

    def fail() -> None:
        with Lease(dest, LONG_S, said.append):
            bucket.server.set_faults(failing=True)
            raise UnavailableError("the first error")

    with pytest.raises(UnavailableError, match="the first error"):
        fail()
    assert any("could not be given back" in line for line in said)


def test_a_conditional_put_whose_answer_was_lost_is_no_other_job(tmp_path: Path) -> None:
    """The client sends it again, and finds its own lease there."""
    store = open_store(str(tmp_path), StorageConfig())

    class Twice:
        def __getattr__(self, name: str) -> object:
            return getattr(store, name)

        def put_if_absent(self, key: str, data: bytes) -> bool:
            store.put_if_absent(key, data)
            return store.put_if_absent(key, data)

    with Lease(Twice(), LONG_S, print):
        pass


@pytest.mark.parametrize("content", [b"", b'"x"', b"7", b"[]"])
def test_what_is_not_a_lease_is_named(content: bytes, tmp_path: Path) -> None:
    dest = open_store(str(tmp_path), StorageConfig())
    dest.put(KEY, content)
    with pytest.raises(UsageError, match=r"lease\.json is not a lease"), Lease(dest, LONG_S, print):
        pass


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
